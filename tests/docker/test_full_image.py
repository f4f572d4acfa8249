"""The image that trains: built, rebuilt, looked into, and run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from container_engine import base_image, build_options, built, small_content
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from real_data import real
from waiting import wait_for
from wheels import make_wheel

from mtl_cloud.clock import Clock
from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import ImageContent, build_image, image_content, layer_sizes
from mtl_cloud.errors import ImageError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.launch.docker import DockerLauncher
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.names import container_name
from mtl_cloud.planning.plan import Facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CheckpointManifest
from mtl_cloud.storage import FolderStorage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
TRAINING = {
    "rounds": 2,
    "epochs_per_round": 1,
    "batch_size": 4,
    "image_size": 64,
    "loader_workers": 0,
    "deterministic": True,
}


@pytest.fixture(scope="module")
def content(engine: Engine) -> ImageContent:
    return image_content({}, base=base_image(engine))


@pytest.fixture(scope="module")
def image(engine: Engine, content: ImageContent) -> str:
    started = time.monotonic()
    reference = built(content, engine)
    found = engine.inspect("image", reference)
    assert found is not None
    print(f"{reference}: {found['Size'] / 1e9:.2f} GB in {time.monotonic() - started:.0f} s")
    return reference


@pytest.fixture
def start(engine: Engine, image: str, tmp_path: Path) -> Iterator[Callable[..., RunRecord]]:
    """A function that submits a job under a run id."""
    runs: list[str] = []
    launcher, storage = DockerLauncher(environ={}, engine=engine), FolderStorage(tmp_path / "runs")

    def start(run_id: str, dataset: dict[str, Any], **training: Any) -> RunRecord:
        document = {"dataset": dataset, "model": {"width": 0.0625}, "compute": {"backend": "docker"}}
        job = JobSpec.model_validate({**document, "training": {**TRAINING, **training}, "storage": storage.url})
        plan = plan_run(job, Facts(image=image), run_id=run_id, now=Clock().now())
        runs.append(run_id)
        submit_run(plan, spec_yaml=b"", spec_json=job_to_json(job), storage=storage, launcher=launcher)
        return RunRecord(storage, run_id)

    yield start
    for run_id in runs:
        engine.ask("rm", "--force", container_name(run_id))


def inside(engine: Engine, image: str, *command: str) -> str:
    return engine.ask("run", "--rm", "--entrypoint", command[0], image, *command[1:])


def last_checkpoint(run: RunRecord) -> CheckpointManifest:
    return run.manifest(run.checkpoints()[-1])


EMBEDDED = {"name": "embedded", "max_train_samples": 32, "max_val_samples": 8}


def test_docker_stop_saves_and_the_run_goes_on_to_the_same_state_bit_for_bit(
    start: Callable[..., RunRecord], engine: Engine
) -> None:
    straight = start("straight", EMBEDDED)
    stopped = start("stopped", EMBEDDED)
    wait_for(lambda: (beat := stopped.heartbeat(1)) and (beat.progress.get("step") or 0) >= 1, 240)  # type: ignore[operator]
    engine.ask("stop", container_name("stopped"), timeout_s=None)
    first = stopped.exit(1)
    assert first is not None
    assert (first.outcome, first.exit_code) == ("interrupted", 75)
    assert 0 < last_checkpoint(stopped).step < 16
    start("stopped", EMBEDDED)
    results = [wait_for(run.result, 400) for run in (straight, stopped)]
    assert [(result.outcome, result.attempts) for result in results] == [("done", 1), ("done", 2)]
    one, other = (last_checkpoint(run) for run in (straight, stopped))
    assert (one.step, one.parts) == (other.step, other.parts)


@pytest.mark.parametrize("voc_photographs", ["shipped", real(tier="exhaustive")], indirect=True)
def test_voc_images_train_in_the_container(start: Callable[..., RunRecord], voc_photographs: Path) -> None:
    dataset = {"name": "voc", "uri": str(voc_photographs / "VOCdevkit")}
    run = start("voc", {**dataset, "max_train_samples": 16, "max_val_samples": 8})
    result = wait_for(run.result, 600)
    assert (result.outcome, result.rounds) == ("done", 2), run.read_log(1)[-2000:]
    assert run.rounds()[-1].images > 0


def test_a_change_of_code_rebuilds_one_layer(engine: Engine, image: str, content: ImageContent, tmp_path: Path) -> None:
    for name in ("docker", "infra", "mtl_cloud"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "mtl_cloud" / "tasks.py").open("a") as file:
        file.write("# changed\n")
    started = time.monotonic()
    options = replace(build_options(), wheel=make_wheel(tmp_path, tmp_path / "dist"))
    changed = replace(content, package=tmp_path / "mtl_cloud")
    build_image(changed, engine, options)
    print(f"rebuilt in {time.monotonic() - started:.1f} s")
    try:
        before, after = (engine.inspect("image", one)["RootFS"]["Layers"] for one in (image, changed.reference))  # type: ignore[index]
    finally:
        engine.ask("rmi", changed.reference)
    differing = [index for index, layers in enumerate(zip(before, after, strict=True)) if len(set(layers)) > 1]
    assert len(differing) <= 2  # the wheel's, and an empty one for the working directory
    assert min(differing) >= len(before) - 2


def test_the_wheel_is_what_the_image_contains(engine: Engine, image: str, wheel: Path) -> None:
    script = (
        "import hashlib, json, mtl_cloud, pathlib; root = pathlib.Path(mtl_cloud.__file__).parents[1];"
        "print(json.dumps({str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()"
        " for p in root.glob('mtl_cloud/**/*') if p.is_file() and '__pycache__' not in p.parts}))"
    )
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("mtl_cloud/")]
        expected = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}
    assert json.loads(inside(engine, image, "python", "-c", script)) == expected


def test_the_image_is_whole_and_holds_nothing_that_it_should_not(engine: Engine, image: str) -> None:
    assert inside(engine, image, "pip", "check") == "No broken requirements found."
    assert inside(engine, image, "id", "--user") == "10001"
    empty = "/root/.cache /run/secrets"  # mount points of the build
    find = f"find {empty} -type f; ls /usr/bin/gcc /usr/bin/make /usr/bin/git 2>/dev/null; true"
    assert engine.ask("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", find) == ""
    found = engine.inspect("image", image)
    assert found is not None
    kept = json.dumps(found["Config"]) + engine.ask("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "CERTIFICATE" not in kept
    assert not [word for word in ("PASSWORD=", "TOKEN=", "SECRET", "index-url") if word in kept.replace("secret,", "")]
    assert (found["Config"]["StopSignal"], found["Config"]["User"]) == ("SIGTERM", "10001")


def test_the_image_holds_what_is_locked_and_nothing_else(engine: Engine, image: str, content: ImageContent) -> None:
    python = inside(engine, image, "python", "-c", "import platform; print(platform.python_version())")
    locked = [Requirement(pin) for pin in content.pins]
    wanted = {
        f"{package.name}{package.specifier}"
        for package in locked
        if package.marker is None or package.marker.evaluate({"python_full_version": python})
    }
    listed = inside(engine, image, "pip", "freeze", "--all", "--exclude", "pip", "--exclude", "mtl-cloud").split()
    held = (Requirement(line) for line in listed)
    assert {f"{canonicalize_name(package.name)}{package.specifier}" for package in held} == wanted


def test_gradient_methods_work_in_the_image_without_copyleft_solvers(engine: Engine, image: str) -> None:
    script = """if True:
        import importlib.util, torch
        from mtl_cloud.jobspec.job import GRADIENT_METHODS, LossWeightingSpec
        from mtl_cloud.tasks import TASKS
        from mtl_cloud.train.optim.gradient_weighting import build_gradient_weighting
        gramian, losses = torch.eye(3).double(), torch.ones(3).double()
        for name in set(GRADIENT_METHODS) - {"cagrad"}:
            factors = build_gradient_weighting(LossWeightingSpec(name=name), TASKS).factors(gramian, losses, range(3))
            print(name, (factors > 0).all().item())
        print([name for name in ("quadprog", "qpsolvers") if importlib.util.find_spec(name)])
    """
    *methods, solvers = inside(engine, image, "python", "-c", script).splitlines()
    assert [line.split()[1] for line in methods] == ["True"] * 7
    assert solvers == "[]"


def test_a_file_with_another_hash_than_the_locked_one_is_refused(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    content = small_content(base_image(engine))
    entry = next(entry for entry in content.requirements if entry.startswith("mdurl=="))
    other = entry.partition(" ")[0] + " --hash=sha256:" + 64 * "0"
    with pytest.raises(ImageError):
        build_image(replace(content, requirements=(other,)), engine, build_options())
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err


def test_torch_is_the_largest_layer(engine: Engine, image: str) -> None:
    layers = layer_sizes(engine, image)
    for size, instruction in layers:
        print(f"{size / 1e6:8,.0f} MB  {instruction[:90]}")
    assert "torch.txt" in layers[0][1]
    assert layers[0][0] > 10 * layers[1][0]


def test_a_bill_of_materials_names_what_is_installed(engine: Engine, image: str, tmp_path: Path) -> None:
    tool = shutil.which("cyclonedx-py", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("cyclonedx-bom is not installed")
    listed = tmp_path / "freeze.txt"
    listed.write_text(inside(engine, image, "pip", "freeze", "--exclude", "mtl-cloud"))
    done = subprocess.run([tool, "requirements", str(listed)], capture_output=True, text=True, check=True)
    components = {component["name"].lower(): component["purl"] for component in json.loads(done.stdout)["components"]}
    print(f"{len(components)} components")
    assert {"torch", "torchvision", "s3fs", "boto3", "torchjd"} <= set(components)
    assert components["torch"].startswith("pkg:pypi/torch@")
