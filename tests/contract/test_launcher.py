"""What every launcher promises, asked of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from container_engine import container_run
from ec2_harness import START, World, ec2_plan
from run_harness import FAST, FakeClock, make_run, no_cloud_environ
from sagemaker_harness import plan_on
from waiting import wait_for

from mtl_cloud.backends import BACKENDS
from mtl_cloud.errors import LaunchError
from mtl_cloud.launch import BackendState, Launcher, RunHandle, get_launcher
from mtl_cloud.launch.docker import DockerLauncher
from mtl_cloud.launch.local import LocalLauncher
from mtl_cloud.launch.sagemaker import SageMakerLauncher
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import FolderStorage
from mtl_cloud.testing.launcher import MemoryLauncher


def _local(folder: Path) -> LocalLauncher:
    return LocalLauncher(environ={**no_cloud_environ(), "XDG_STATE_HOME": str(folder)}, settings=FAST)


class LookedAt(FakeClock):
    """A clock that every look at it moves: whatever is waited for comes, on however busy a machine."""

    def now(self) -> datetime:
        self.sleep(1)
        return super().now()


@pytest.fixture
def world() -> World:
    return World(clock=LookedAt(START))


@pytest.fixture(params=["docker", "ec2", "local", "memory", "sagemaker"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path, world: World) -> Launcher:
    launchers: dict[str, Callable[[], Launcher]] = {
        "docker": lambda: DockerLauncher(environ={}, engine=request.getfixturevalue("engine"), settings=FAST),
        "ec2": world.launcher,
        "local": lambda: _local(tmp_path),
        "memory": MemoryLauncher,
        "sagemaker": SageMakerLauncher,
    }
    if request.param == "sagemaker":
        request.getfixturevalue("sagemaker_double")
    return launchers[str(request.param)]()


@pytest.fixture
def plan(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher, world: World) -> Iterator[PlanRecord]:
    """The plan of a run that exists, and whose trainer works until it is asked to stop."""
    if launcher.backend == "ec2":
        yield world.make_run(replace(ec2_plan(), created_at=world.clock.now().isoformat())).plan()
        return
    storage = FolderStorage(tmp_path / "storage")
    if launcher.backend == "docker":
        engine, image = (request.getfixturevalue(name) for name in ("engine", "small_image"))
        with container_run(storage, engine, image, "work()") as run:
            yield run.plan()
        return
    run = make_run(storage, "work()", **plan_on(launcher.backend))
    yield run.plan()
    if run.attempts():
        launcher.stop(RunHandle.of(run.plan()))


def test_preparing_is_pure(launcher: Launcher, plan: PlanRecord) -> None:
    assert launcher.prepare(plan) == launcher.prepare(plan)
    assert launcher.prepare(plan) != launcher.prepare(replace(plan, run_id="digits-2"))


def test_the_handle_can_be_made_from_the_plan_alone(launcher: Launcher, plan: PlanRecord) -> None:
    assert launcher.submit(launcher.prepare(plan)) == RunHandle.of(plan)


def test_a_submitted_run_comes_to_run_and_ends_when_it_is_stopped(launcher: Launcher, plan: PlanRecord) -> None:
    handle = launcher.submit(launcher.prepare(plan))
    wait_for(lambda: launcher.describe(handle) is BackendState.RUNNING)
    launcher.stop(handle)
    wait_for(lambda: launcher.describe(handle) is BackendState.ENDED)
    launcher.stop(handle)
    assert launcher.describe(handle) is BackendState.ENDED


def test_submitting_again_changes_nothing(launcher: Launcher, plan: PlanRecord) -> None:
    submission = launcher.prepare(plan)
    assert launcher.submit(submission) == launcher.submit(submission)
    if isinstance(launcher, MemoryLauncher):
        assert launcher.submissions == [submission]


def test_a_run_that_was_never_submitted_is_unknown(launcher: Launcher, plan: PlanRecord) -> None:
    with pytest.raises(LaunchError, match="nowhere-1"):
        launcher.describe(RunHandle.of(replace(plan, run_id="nowhere-1")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_registered_launcher_is_made_by_its_name(backend: str) -> None:
    assert get_launcher(backend).backend == backend


def test_a_backend_of_another_version_is_refused_with_what_there_is() -> None:
    with pytest.raises(LaunchError, match="cannot start runs on 'lambda'") as caught:
        get_launcher("lambda")
    assert caught.value.hint == f"it can on: {', '.join(BACKENDS)}"
