"""The wheel alone, with what it asks for and nothing more, checks and plans every example job."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest
from loopback_only import package_index

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the built wheel and no extra."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "venv", with_pip=True)
    with package_index():
        run(str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", str(wheel))
    return folder / "venv"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_job_is_valid_and_planned_without_torch(base: Path, tmp_path: Path) -> None:
    command = str(base / "bin/mtl-cloud")
    run(command, "validate", *map(str, JOBS))
    for job in JOBS:
        plan = json.loads(run(command, "plan", str(job), "--json"))
        assert plan["rounds"] > 0
    torch = [str(base / "bin/python"), "-c", "import torch"]
    assert subprocess.run(torch, capture_output=True, check=False).returncode != 0


@pytest.mark.slow
def test_the_base_install_is_small(base: Path) -> None:
    """Under 120 MB and 30 packages, pip and setuptools not counted."""
    listed = json.loads(run(str(base / "bin/python"), "-m", "pip", "list", "--format", "json"))
    packages = {package["name"] for package in listed} - {"pip", "setuptools"}
    (site,) = base.glob("lib/python*/site-packages")
    tools = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
    size = sum(
        path.stat().st_size
        for path in site.rglob("*")
        if path.is_file() and not path.relative_to(site).parts[0].startswith(tools)
    )
    print(f"{len(packages)} packages, {size / 1e6:.0f} MB")
    assert len(packages) < 30
    assert size < 120e6


@pytest.mark.slow
def test_what_needs_an_extra_says_which(base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(base / "bin/mtl-cloud"), "runs", "--storage", "s3://bucket/runs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 11
    assert "pip install 'mtl-cloud[aws]'" in done.stderr
