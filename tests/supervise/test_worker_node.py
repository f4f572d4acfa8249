"""The supervisor of a worker node: it follows the leader's attempts, and no attempt of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_harness import FAST, FakeClock, make_run

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, Outcome, ResultRecord
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import Decision
from mtl_cloud.supervise.nodes import Nodes
from mtl_cloud.supervise.stop_conditions import Stop
from mtl_cloud.supervise.worker_node import serve_leader

NOW = "2026-01-01T00:00:00+00:00"
CLAIM = AttemptRecord(number=1, started_at=NOW, host="algo-1", pid=1, backend="sagemaker")
EXIT = ExitRecord(ended_at=NOW, outcome="machine_error", exit_code=-9, message="SIGKILL", seconds=1.0)
RESULT = ResultRecord(ended_at=NOW, outcome="done", message="all rounds are done", attempts=1, rounds=2, seconds=1.0)


class SignalAt:
    """A SIGTERM to this machine after some seconds."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def poll(self) -> Stop | None:
        return Stop(StopReason.SIGTERM, "SIGTERM") if self._clock.seconds >= self._seconds else None


@pytest.fixture
def run() -> RunRecord:
    return make_run(MemoryStorage("worker"), "print('worked')")


def serve(run: RunRecord, clock: FakeClock, folder: Path, stop_at: float) -> Decision:
    context = SupervisorContext(
        scratch=folder, environ=os.environ, watchers=[SignalAt(clock, stop_at)], nodes=Nodes(1, 2, "algo-1"),
        settings=FAST, clock=clock,
    )  # fmt: skip
    return serve_leader(run, context)


def test_it_waits_for_the_leader_and_ends_with_the_run(run: RunRecord, tmp_path: Path) -> None:
    clock = FakeClock()
    run.claim(CLAIM)
    run.write_exit(1, EXIT)  # an attempt that has ended is not served
    clock.at(5, lambda: run.write_result(RESULT, attempt=1))
    assert serve(run, clock, tmp_path, 60) == Decision("finish", Outcome.DONE, "all rounds are done")
    assert 5 <= clock.seconds < 6
    assert set(clock.pauses) == {FAST.poll_s}


def test_it_leaves_when_its_machine_must_stop_before_the_leader_has_begun(run: RunRecord, tmp_path: Path) -> None:
    clock = FakeClock()
    assert serve(run, clock, tmp_path, 5) == Decision("leave", Outcome.INTERRUPTED, "SIGTERM")
    assert 5 <= clock.seconds < 6
    assert (run.owner(), list(tmp_path.iterdir())) == (None, [])
