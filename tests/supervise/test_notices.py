"""Whoever asks a real run of a small joint network to stop: it saves in time, and the next attempt loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from fake_imds import MAINTENANCE, REBALANCE, SPOT, FakeImds
from fork_harness import start_forked
from run_harness import supervisor_flags
from small_run import make_small_run
from waiting import wait_for

from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import CancelRecord
from mtl_cloud.runs.scratch import Scratch

NOTICE_S = 120  # as EC2 gives
FLAGS = ("--spot-notices", "--grace-s", "110", "--hang-s", "300")
Act = Callable[["Machine"], object]


class Machine:
    """A supervisor with its metadata service, whose run would go on for an hour."""

    def __init__(self, run: RunRecord, folder: Path, imds: FakeImds) -> None:
        self.run, self.imds, self._folder = run, imds, folder
        self.supervisor: ForkServerProcess | None = None

    def start(self, attempt: int) -> None:
        flags = supervisor_flags(self.run, self._folder, *FLAGS, attempt=attempt)
        self.supervisor = start_forked(flags, self.imds.environ, self._folder / "errors.txt")

    def step(self, attempt: int) -> int:
        """The last one that the trainer told of; 0 before."""
        step = Scratch(self._folder / f"{attempt:04d}").progress().get("step", 0)
        assert isinstance(step, int)
        return step

    def exit_code(self) -> int | None:
        assert self.supervisor is not None
        self.supervisor.join(NOTICE_S)
        return self.supervisor.exitcode

    def kill(self) -> None:
        if self.supervisor is not None and self.supervisor.is_alive():
            self.supervisor.kill()
            self.supervisor.join()


@pytest.fixture
def start_machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """A function that starts the first attempt of a run with the given limits."""
    with FakeImds().serving() as imds:
        machines = []

        def start(**limits: Any) -> Machine:
            run = make_small_run(tmp_path / "storage", rounds=1000, every_minutes=None, **limits)
            machines.append(Machine(run, tmp_path, imds))
            machines[-1].start(1)
            return machines[-1]

        yield start
        for machine in machines:
            machine.kill()


def in_two_minutes() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=NOTICE_S)


def notice(machine: Machine) -> None:
    machine.imds.documents[SPOT] = {"action": "terminate", "time": in_two_minutes().isoformat()}


def schedule_maintenance(machine: Machine) -> None:
    begin = in_two_minutes().strftime("%d %b %Y %H:%M:%S GMT")
    machine.imds.documents[MAINTENANCE] = [{"NotBefore": begin, "Code": "instance-stop", "State": "active"}]


def terminate(machine: Machine) -> None:
    assert machine.supervisor is not None
    assert machine.supervisor.pid is not None
    os.kill(machine.supervisor.pid, signal.SIGTERM)


def cancel(machine: Machine) -> None:
    machine.run.request_cancel(CancelRecord(at="15:00", by="ann"))


def stopped(machine: Machine, act: Act | None) -> CheckpointId:
    """What was committed, within the notice, after a trainer that was under way was asked to stop."""
    told = 0
    if act is not None:
        wait_for(lambda: machine.step(1) > 0)
        act(machine)
        told = machine.step(1)
    ended_by, code = in_two_minutes(), machine.exit_code()
    end, beat, newest = machine.run.exit(1), machine.run.heartbeat(1), machine.run.checkpoints()[-1]
    manifest = machine.run.manifest(newest)
    assert end is not None
    assert beat is not None
    assert code in (7, 75), end
    assert end.exit_code == 75, end
    assert manifest.reason in {"stop", "round"}  # the wish may come as a round ends, which saves too
    assert datetime.fromisoformat(manifest.created_at) < ended_by
    step = beat.progress["step"]
    assert isinstance(step, int)
    assert max(told, step - 1) <= newest.step
    return newest


@pytest.mark.parametrize("act", [notice, schedule_maintenance, terminate])
def test_who_is_interrupted_commits_in_time_and_goes_on_from_there(
    act: Act, start_machine: Callable[..., Machine]
) -> None:
    machine = start_machine()
    newest = stopped(machine, act)
    end = machine.run.exit(1)
    assert end is not None
    assert (end.outcome, machine.run.result()) == ("interrupted", None)
    machine.imds.documents = {}
    machine.start(2)
    start = wait_for(lambda: machine.run.start(2))
    assert (start.checkpoint_step, start.checkpoint_attempt) == newest


@pytest.mark.parametrize(
    ("limits", "act", "outcome"),
    [
        ({}, cancel, "cancelled"),
        ({"deadline_s": 3.0}, None, "out_of_time"),
        ({"budget_usd": 3.0, "usd_per_hour": 3600.0}, None, "out_of_budget"),
    ],
)
def test_who_is_ended_commits_the_last_step(
    limits: dict[str, float], act: Act | None, outcome: str, start_machine: Callable[..., Machine]
) -> None:
    machine = start_machine(**limits)
    stopped(machine, act)
    result = machine.run.result()
    assert result is not None
    assert result.outcome == outcome


def test_a_rebalance_recommendation_is_a_checkpoint_ahead_of_time(start_machine: Callable[..., Machine]) -> None:
    machine = start_machine(epochs_per_round=1000)
    wait_for(lambda: machine.step(1) > 0)
    assert machine.run.checkpoints() == []
    machine.imds.documents[REBALANCE] = {"noticeTime": "2026-01-01T00:00:30Z"}
    (early,) = wait_for(machine.run.checkpoints)
    wait_for(lambda: machine.step(1) > early.step)
