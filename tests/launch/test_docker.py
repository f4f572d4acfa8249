"""The docker launcher over a stand-in for the engine's command line. Real containers are in tests/docker."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_harness import PLAN, make_run

from mtl_cloud.container.engine import Engine
from mtl_cloud.errors import EngineError, ImageError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.docker import DockerLauncher, remove_leftovers
from mtl_cloud.launch.leftover import Leftover
from mtl_cloud.names import container_name
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import FolderStorage

DOCKER = """#!/bin/sh
# As in docker's reference: `inspect` prints an array, or an error and ends with 1; `run` that starts no container ends
# with 125. Containers and images are files of FOLDER.
case "$1 $2" in
  "container inspect" | "image inspect")
    cat "$FOLDER/$1-$3" 2>/dev/null && exit
    echo "[]"
    echo "Error response from daemon: No such $1: $3" >&2
    exit 1 ;;
  "run --detach")
    [ -f "$FOLDER/theirs" ] && mv "$FOLDER/theirs" "$FOLDER/container-$4"
    echo "docker: Error response from daemon: Conflict. The container name is already in use." >&2
    exit 125 ;;
  rm*) rm "$FOLDER/container-$2" ;;
esac
"""


class FakeDocker:
    """The engine, and what it has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "docker"
        program.write_text(DOCKER)
        program.chmod(0o755)
        self.engine = Engine(str(program), {"PATH": os.environ["PATH"], "FOLDER": str(folder)})

    def has_image(self, name: str) -> None:
        self._write(f"image-{name}", {"Id": "sha256:1"})

    def has_container(self, name: str, status: str) -> None:
        self._write(f"container-{name}", {"Id": "1", "State": {"Status": status}})

    def lets_another_start(self, status: str) -> None:
        """Another process starts the container just before the next ``run``."""
        self._write("theirs", {"Id": "2", "State": {"Status": status}})

    def containers(self) -> list[str]:
        return sorted(path.name.removeprefix("container-") for path in self._folder.glob("container-*"))

    def _write(self, name: str, description: dict[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps([description]))


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    (tmp_path / "docker").mkdir()
    return FakeDocker(tmp_path / "docker")


@pytest.fixture
def launcher(docker: FakeDocker) -> DockerLauncher:
    return DockerLauncher(environ={}, engine=docker.engine, hostname="laptop", user="7:8")


ON_DOCKER: dict[str, Any] = {"backend": "docker", "compute": {"backend": "docker", "gpu_count": 0}}


def on_docker(tmp_path: Path, image: str | None = "mtl:1") -> RunRecord:
    return make_run(FolderStorage(tmp_path / "storage"), image=image, **ON_DOCKER)


def submit(launcher: DockerLauncher, run: RunRecord) -> RunHandle:
    return launcher.submit(launcher.prepare(run.plan()))


def test_a_container_that_is_made_but_not_started_is_pending(
    docker: FakeDocker, launcher: DockerLauncher, tmp_path: Path
) -> None:
    run = on_docker(tmp_path)
    docker.has_container(container_name(run.run_id), "created")
    assert launcher.describe(RunHandle.of(run.plan())) is BackendState.PENDING


def test_a_plan_without_an_image_is_refused(launcher: DockerLauncher, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="digits-1: the plan names no image") as caught:
        submit(launcher, on_docker(tmp_path, image=None))
    assert caught.value.hint == "set compute.image"


def test_a_container_that_another_process_started_in_the_meantime_is_adopted(
    docker: FakeDocker, launcher: DockerLauncher, tmp_path: Path
) -> None:
    run = on_docker(tmp_path)
    docker.has_image("mtl:1")
    docker.lets_another_start("running")
    assert launcher.describe(submit(launcher, run)) is BackendState.RUNNING


@pytest.mark.parametrize("status", [None, "created", "exited"])
def test_a_refusal_of_the_engine_is_told_where_no_container_runs(
    status: str | None, docker: FakeDocker, launcher: DockerLauncher, tmp_path: Path
) -> None:
    docker.has_image("mtl:1")
    if status:
        docker.lets_another_start(status)
    with pytest.raises(EngineError, match="Conflict"):
        submit(launcher, on_docker(tmp_path))


def test_a_container_that_is_gone_already_is_no_error_for_gc(docker: FakeDocker) -> None:
    docker.has_container("mtl-cloud-old", "exited")
    docker.has_container("mtl-cloud-other", "exited")
    leftovers = [Leftover(name, "", "the run is over", (f"container mtl-cloud-{name}",)) for name in ("gone", "old")]
    assert list(remove_leftovers(leftovers, docker.engine)) == leftovers
    assert docker.containers() == ["mtl-cloud-other"]


def mounted(environ: dict[str, str], *options: str) -> list[str]:
    """The options of ``run`` that make AWS reachable."""
    plan = replace(PLAN, storage="s3://b/runs", **ON_DOCKER)
    with_cloud = list(DockerLauncher(environ=environ, hostname="laptop", options=options).surroundings(plan))
    without = list(DockerLauncher(environ={}, hostname="laptop").surroundings(plan))
    assert with_cloud[: len(without)] == without
    return with_cloud[len(without) :]


def test_aws_is_seen_as_by_the_client_whose_files_are_mounted_where_they_are(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"")
    environ = {
        "AWS_CA_BUNDLE": str(bundle),
        "AWS_CONFIG_FILE": str(tmp_path / "absent"),
        "AWS_ENDPOINT_URL": "https://s3.example.org",
        "HOME": str(tmp_path / "home"),
    }
    named = [part for name in sorted(environ) if name != "HOME" for part in ("--env", name)]
    of_files = ["--mount", f"type=bind,source={bundle},target={bundle},readonly"]
    assert mounted(environ) == [*named, *of_files]
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    of_home = ["--mount", f"type=bind,source={tmp_path}/home/.aws,target=/tmp/.aws,readonly"]
    assert mounted(environ) == [*named, *of_files, *of_home]


def test_a_server_on_this_machine_is_reached_by_its_network_unless_the_user_names_another(tmp_path: Path) -> None:
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    assert mounted(environ) == ["--env", "AWS_ENDPOINT_URL", "--network", "host"]
    others = ("--network", "mine")
    assert mounted(environ, *others) == ["--env", "AWS_ENDPOINT_URL", *others]
