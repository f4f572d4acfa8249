"""The image's reference follows from its content, and the engine is asked for exactly that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import BASE_IMAGE, BuildOptions, build_image, image_content, local_platform
from mtl_cloud.errors import EngineError, ImageError

ROOT = Path(__file__).parents[2]
CONTENT = image_content({})


@pytest.fixture
def recorder(tmp_path: Path) -> Engine:
    """An engine that writes down what it is asked for, and the context that it is given."""
    program = tmp_path / "engine"
    program.write_text(
        f'#!/bin/sh\necho "$DOCKER_BUILDKIT $*" >> {tmp_path}/asked\n'
        f'for last; do :; done; [ ! -d "$last" ] || cp -r "$last" {tmp_path}/context\n'
    )
    program.chmod(0o755)
    return Engine(str(program), os.environ)


def test_the_same_content_has_the_same_tag_and_any_other_another(tmp_path: Path) -> None:
    recipe, package = tmp_path / "docker", tmp_path / "package"
    shutil.copytree(CONTENT.recipe, recipe)
    shutil.copytree(CONTENT.package, package, ignore=shutil.ignore_patterns("__pycache__"))
    copy = replace(CONTENT, recipe=recipe, package=package)
    others = ({"base": "debian:13"}, {"platform": "linux/riscv64"}, {"requirements": ("torch==3",)})
    tags = [CONTENT.tag, copy.tag, *(replace(CONTENT, **changed).tag for changed in others)]
    (package / "tasks.py").rename(package / "task.py")
    tags.append(replace(copy).tag)
    (recipe / "Dockerfile").write_text("FROM scratch\n")
    tags.append(replace(copy).tag)
    assert tags[0] == tags[1]
    assert len(set(tags)) == len(tags) - 1


def test_the_base_is_the_options_or_the_environments_or_a_slim_python() -> None:
    environ = {"MTL_CLOUD_BASE_IMAGE": "company:1"}
    assert image_content({}).base == BASE_IMAGE
    assert image_content(environ).base == "company:1"
    assert image_content(environ, base="mine:2").base == "mine:2"
    assert CONTENT.platform == local_platform()


def test_the_installed_wheel_names_the_same_image_as_its_source(wheel: Path, tmp_path: Path) -> None:
    """So the planner's reference is the builder's, wherever either runs."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = "from mtl_cloud.container.image import image_content; print(image_content({}).tag)"
    environ = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == CONTENT.tag


def test_the_build_is_asked_for_the_reference_with_its_parts_and_secrets(
    recorder: Engine, wheel: Path, tmp_path: Path
) -> None:
    content = replace(CONTENT, base="company:1", platform="linux/arm64")
    ca = tmp_path / "ca.pem"
    options = BuildOptions(ca_bundle=ca, pip_config=tmp_path / "pip.conf", network="host", wheel=wheel)
    assert build_image(content, recorder, options) == content.reference
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(
        f"1 build --tag {content.reference} --platform linux/arm64 --build-arg BASE_IMAGE=company:1 "
    )
    assert f"--secret id=ca,src={ca} --secret id=pip,src={tmp_path}/pip.conf --network host" in asked


def test_the_context_is_the_recipe_the_requirements_and_the_wheel(
    recorder: Engine, wheel: Path, tmp_path: Path
) -> None:
    build_image(CONTENT, recorder, BuildOptions(wheel=wheel))
    context = tmp_path / "context"
    assert {path.name for path in context.iterdir()} == {
        ".dockerignore",
        "Dockerfile",
        "requirements.txt",
        "torch.txt",
        wheel.name,
    }
    torch, others = (context / "torch.txt").read_text(), (context / "requirements.txt").read_text()
    names = {re.match(r"[a-z]+", entry)[0] for entry in CONTENT.requirements if entry in torch}  # type: ignore[index]
    assert names == {"torch", "torchvision", "triton", "sympy", "mpmath", "networkx", "cuda", "nvidia"}
    assert sorted((torch + others).splitlines()) == sorted("\n".join(CONTENT.requirements).splitlines())


def test_the_context_leaves_out_no_hash_of_the_lock_file_and_adds_none(
    recorder: Engine, wheel: Path, tmp_path: Path
) -> None:
    build_image(CONTENT, recorder, BuildOptions(wheel=wheel))
    lock = (ROOT / "docker" / "requirements.lock").read_text()
    parts = "".join((tmp_path / "context" / name).read_text() for name in ("torch.txt", "requirements.txt"))
    assert sorted(re.findall(r"sha256:\w+", parts)) == sorted(re.findall(r"sha256:\w+", lock))


def test_the_wheel_carries_the_recipe_that_it_is_built_by(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("Dockerfile", "requirements.lock"):
            assert archive.read(f"mtl_cloud/docker/{name}") == (ROOT / "docker" / name).read_bytes()


def test_an_engine_that_fails_is_an_image_error_of_the_image(tmp_path: Path, wheel: Path) -> None:
    with pytest.raises(ImageError, match=rf"{CONTENT.reference}: /bin/false build: it ended with code 1"):
        build_image(CONTENT, Engine("/bin/false", os.environ), BuildOptions(wheel=wheel))


def test_no_engine_is_an_error_that_says_what_was_looked_for() -> None:
    with pytest.raises(EngineError, match=r"on the PATH \(tried docker, podman\)"):
        Engine.find({"PATH": "/nowhere"})
    with pytest.raises(EngineError, match=r"on the PATH \(tried nerdctl\)"):
        Engine.find({"PATH": "/nowhere", "MTL_CLOUD_ENGINE": "nerdctl"})
