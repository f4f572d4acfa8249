"""The docker launcher over a real engine: what the container sees, how it ends, and how the run goes on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from container_engine import container_run
from run_harness import FAST, PLAN, logged
from waiting import wait_for

from mtl_cloud.container.engine import Engine
from mtl_cloud.errors import ImageError, LaunchError
from mtl_cloud.launch import BackendState, RunHandle
from mtl_cloud.launch.docker import DockerLauncher, find_leftovers, remove_leftovers
from mtl_cloud.names import container_name
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import FolderStorage, open_storage

MakeRun = Callable[..., RunRecord]


@pytest.fixture
def launcher(engine: Engine) -> DockerLauncher:
    return DockerLauncher(environ={}, engine=engine, settings=FAST)


@pytest.fixture
def make_run(engine: Engine, small_image: str, tmp_path: Path) -> Iterator[MakeRun]:
    """A function from a trainer's code to its run, whose container is removed at the end."""
    storage = FolderStorage(tmp_path / "runs, and: more")
    with ExitStack() as stack:

        def make(code: str, **plan: Any) -> RunRecord:
            return stack.enter_context(container_run(storage, engine, small_image, code, **plan))

        yield make


def submit(launcher: DockerLauncher, run: RunRecord) -> RunHandle:
    return launcher.submit(launcher.prepare(run.plan()))


def test_the_container_sees_the_folders_of_the_job_and_nothing_else(
    launcher: DockerLauncher, make_run: MakeRun, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "image").write_text("pixels")
    code = f"""
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return type(error).__name__
print("read", open({str(data / "image")!r}).read())
print("data", refused({str(data / "other")!r}), "root", refused("/other"), "tmp", refused("/tmp/other"))
print("beside", os.path.exists({str(Path(__file__))!r}))
print("user", os.getuid(), os.getgid(), [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")])
"""
    run = make_run(code, inputs=[str(data)])
    submit(launcher, run)
    result = wait_for(run.result)
    log = run.read_log(1).decode()
    assert (result.outcome, result.message) == ("done", "all rounds are done"), log
    assert "read pixels\ndata OSError root OSError tmp None\nbeside False\n" in log
    assert f"user {os.getuid()} {os.getgid()} ['0000000000000000']" in log


def test_docker_stop_saves_and_the_next_submit_goes_on(
    launcher: DockerLauncher, make_run: MakeRun, engine: Engine
) -> None:
    run = make_run("print('attempt', attempt, flush=True)\nif attempt == 1: work()")
    handle = submit(launcher, run)
    wait_for(logged(run, "attempt 1\n"))
    engine.ask("stop", container_name(run.run_id))
    assert b"saved" in run.read_log(1)
    ended = run.exit(1)
    assert ended is not None
    assert ended.outcome == "interrupted"
    assert engine.inspect("container", container_name(run.run_id))["State"]["ExitCode"] == 75  # type: ignore[index]
    assert launcher.describe(handle) is BackendState.ENDED
    submit(launcher, run)
    result = wait_for(run.result)
    assert (result.outcome, result.attempts) == ("done", 2)


def test_many_submits_at_once_start_one_container(launcher: DockerLauncher, make_run: MakeRun) -> None:
    run = make_run("print('attempt', attempt, flush=True); work()")
    with ThreadPoolExecutor(3) as pool:
        handles = list(pool.map(lambda _: submit(launcher, run), range(3)))
    assert handles == [RunHandle.of(run.plan())] * 3
    wait_for(logged(run, "attempt 1\n"))
    assert len(run.attempts()) == 1


def test_process_1_reaps_orphans_and_the_log_is_the_containers(
    launcher: DockerLauncher, make_run: MakeRun, engine: Engine
) -> None:
    run = make_run("print('at work', flush=True); work()")
    submit(launcher, run)
    name = container_name(run.run_id)
    wait_for(lambda: "at work" in engine.ask("logs", name))
    engine.ask("exec", name, "sh", "-c", "sh -c 'sleep 0.05; touch /tmp/done' &")
    wait_for(lambda: "done" in engine.ask("exec", name, "ls", "/tmp"))
    shells = "print([s for p in glob.glob('/proc/[0-9]*/stat') if '(sh)' in (s := open(p).read())])"
    wait_for(lambda: engine.ask("exec", name, "python", "-c", f"import glob; {shells}") == "[]")


def test_a_beating_heart_is_healthy(launcher: DockerLauncher, make_run: MakeRun, engine: Engine) -> None:
    run = make_run("work()")
    submit(launcher, run)
    name = container_name(run.run_id)
    wait_for(lambda: run.heartbeat(1))
    check = engine.inspect("container", name)["Config"]["Healthcheck"]["Test"]  # type: ignore[index]
    assert check[0] == "CMD"
    assert re.fullmatch(r"last heartbeat \d s ago", engine.ask("exec", name, *check[1:]))


def test_gc_removes_ended_containers_of_runs_that_are_over_and_no_others(
    launcher: DockerLauncher, make_run: MakeRun, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, interrupted, living = make_run("print('x')"), make_run("work()"), make_run("work()")
    names = [container_name(run.run_id) for run in (over, interrupted, living)]
    for run in (over, interrupted, living):
        submit(launcher, run)
    wait_for(over.result)
    engine.ask("wait", names[0])
    engine.ask("stop", names[1])
    monkeypatch.setenv("MTL_CLOUD_ENGINE", engine.program)
    command = [sys.executable, "-m", "mtl_cloud", "gc", "--backend", "docker", "--dry-run", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    shown = [(one["names"], one["removed"]) for one in told if f"container {names[0]}" in one["names"]]
    assert shown == [([f"container {names[0]}"], False)]
    assert not {f"container {name}" for name in names[1:]} & {name for one in told for name in one["names"]}

    ours = {run.run_id for run in (over, interrupted, living)}
    ended = find_leftovers(engine, is_over=lambda run_id, _: run_id in ours)
    assert {leftover.run_id for leftover in ended} == {over.run_id, interrupted.run_id}  # what runs is left alone

    def is_over(run_id: str, storage: str) -> bool:  # other tests' containers are theirs
        return run_id == over.run_id and RunRecord(open_storage(storage), run_id).result() is not None

    for expected in ([over.run_id], []):
        found = find_leftovers(engine, is_over=is_over)
        assert [leftover.run_id for leftover in remove_leftovers(found, engine)] == expected
    assert [engine.inspect("container", name) is None for name in names] == [True, False, False]


def test_a_missing_image_names_the_command_that_builds_it(launcher: DockerLauncher, make_run: MakeRun) -> None:
    run = make_run("work()")
    plan = replace(run.plan(), image="mtl-cloud:nowhere")
    with pytest.raises(ImageError, match="image mtl-cloud:nowhere is not on this machine") as caught:
        launcher.submit(launcher.prepare(plan))
    assert "mtl-cloud image build" in str(caught.value.hint)


def test_a_supervisor_that_cannot_start_is_an_error_with_its_last_words(
    launcher: DockerLauncher, make_run: MakeRun
) -> None:
    run = make_run("work()")
    submission = launcher.prepare(run.plan())
    broken = replace(submission, request={**submission.request, "arguments": ["--storage", "/", "--run-id", "x"]})
    with pytest.raises(LaunchError, match=r"the supervisor did not start: .*/runs/x/plan.json: no such object"):
        launcher.submit(broken)


def test_the_request_whole(tmp_path: Path) -> None:
    """It needs no engine, and holds the names of secrets only."""
    (tmp_path / ".aws").mkdir()
    environ = {"AWS_SECRET_ACCESS_KEY": "hidden", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    launcher = DockerLauncher(environ=environ, hostname="laptop", user="7:8", memory="2g")
    asked: dict[str, Any] = {"image": "mtl-cloud:1", "storage": "s3://b/runs", "inputs": ["/data", "s3://b/set"]}
    plan = replace(PLAN, backend="docker", compute={"gpu_count": 2}, run_id="r-1", **asked)
    submission = launcher.prepare(plan)
    assert submission.request == {
        "image": "mtl-cloud:1",
        "run": [
            *("--name", "mtl-cloud-r-1", "--label", "mtl-cloud.run-id=r-1"),
            *("--label", "mtl-cloud.storage=s3://b/runs", "--hostname", "laptop", "--user", "7:8"),
            *("--read-only", "--tmpfs", "/tmp:exec,mode=1777", "--shm-size", "16g"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--stop-timeout", "135"),
            *("--gpus", "2", "--memory", "2g", "--memory-swap", "2g"),
            *("--mount", "type=bind,source=/data,target=/data,readonly"),
            *("--env", "AWS_ENDPOINT_URL", "--env", "AWS_SECRET_ACCESS_KEY"),
            *("--mount", f"type=bind,source={tmp_path}/.aws,target=/tmp/.aws,readonly", "--network", "host"),
        ],
        "arguments": ["--storage", "s3://b/runs", "--run-id", "r-1"],
    }
    assert "hidden" not in json.dumps(submission.request)


def test_a_job_without_the_cloud_is_given_no_credentials(make_run: MakeRun, engine: Engine) -> None:
    launcher = DockerLauncher(environ={"AWS_SECRET_ACCESS_KEY": "hidden"}, engine=engine, settings=FAST)
    assert "AWS_SECRET_ACCESS_KEY" not in str(launcher.prepare(make_run("work()").plan()).request)


def test_a_run_that_lives_on_another_machine_is_adopted(
    launcher: DockerLauncher, make_run: MakeRun, engine: Engine
) -> None:
    run = make_run("print('here', flush=True); work()")
    submit(launcher, run)
    elsewhere = DockerLauncher(environ={}, engine=_Elsewhere(engine), hostname="elsewhere", settings=FAST)
    assert elsewhere.describe(submit(elsewhere, run)) is BackendState.RUNNING
    assert [attempt.host for attempt in run.attempts()] == [socket.gethostname()]
    with pytest.raises(LaunchError, match=f"runs on {socket.gethostname()}, and this is elsewhere"):
        elsewhere.stop(RunHandle.of(run.plan()))


class _Elsewhere(Engine):
    """The engine of another machine: it has the images, and not this machine's containers."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.program, os.environ)

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        return None if kind == "container" else super().inspect(kind, name)
