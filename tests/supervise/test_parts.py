"""The supervisor's small parts: log shipping, threads that survive a bad storage, settings, the trainer's command."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_harness import PLAN, make_run
from waiting import PATIENCE_S

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, StorageError
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, Heartbeat
from mtl_cloud.runs.scratch import Failure, Scratch, StopReason
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.supervise.log import SEGMENT_BYTES, LogShipper, append_line
from mtl_cloud.supervise.nodes import Nodes
from mtl_cloud.supervise.periodic import Periodic
from mtl_cloud.supervise.trainer_process import trainer_command
from mtl_cloud.train.control import ControlChannel
from mtl_cloud.user_dirs import tail


class Sink:
    """Takes segments as the run record does: each number once, the same bytes again; at times it fails, either way."""

    def __init__(self, failures: list[str]) -> None:
        self.failures = failures
        self.segments: dict[int, bytes] = {}

    def __call__(self, number: int, data: bytes) -> None:
        failure = self.failures.pop() if self.failures else ""
        if failure == "lost":
            raise StorageError("no answer")
        if self.segments.setdefault(number, data) != data:
            raise AlreadyExistsError(f"segment {number}")
        if failure == "lost reply":
            raise StorageError("no answer")


@given(
    st.lists(st.binary(max_size=50), max_size=20), st.lists(st.sampled_from(["", "lost", "lost reply"]), max_size=20)
)
def test_every_byte_is_shipped_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, writes: list[bytes], failures: list[str]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    sink = Sink(failures)
    shipper = LogShipper(path, sink)
    for data in [b"", *writes]:
        with path.open("ab") as log:
            log.write(data)
        try:
            shipper.ship()
        except StorageError:
            continue
    sink.failures.clear()
    shipper.ship(last=True)
    assert list(sink.segments) == list(range(1, len(sink.segments) + 1))
    assert b"".join(sink.segments.values()) == b"".join(writes)


def test_segments_are_whole_lines_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * 99 + b"\n" + b"y" * (2 * SEGMENT_BYTES) + b"\nend\nunfinished")
    sink = Sink([])
    LogShipper(path, sink).ship()
    assert max(map(len, sink.segments.values())) <= SEGMENT_BYTES
    assert sink.segments[1] == b"x" * 99 + b"\n"
    assert b"".join(sink.segments.values()).endswith(b"\nend\n")


def test_a_line_of_ours_never_joins_one_of_the_trainers(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.touch()
    append_line(path, "first")
    with path.open("a") as log:
        log.write("half a li")
    append_line(path, "second")
    assert path.read_text() == "first\nhalf a li\nsecond\n"
    assert tail(path, 2) == ["half a li", "second"]


def test_a_periodic_action_survives_failures_and_reports_each_spell_once() -> None:
    answers = [False, True, True, True, False, False, True, False]
    reports: list[str] = []
    over = threading.Event()

    def act() -> None:
        failing = answers.pop(0)
        if not answers:
            over.set()
        if failing:
            raise StorageError("503")

    with Periodic("log", act, interval_s=lambda _age_s: 0 if answers else 60, report=reports.append, clock=Clock()):
        assert over.wait(PATIENCE_S)
    assert (
        reports
        == [
            "log: failed, retrying: 503",
            "log: recovered",
        ]
        * 2
    )


def test_settings_survive_the_command_line() -> None:
    settings = SupervisorOptions(grace_s=30.5, last_s=2)
    parser = argparse.ArgumentParser()
    SupervisorOptions.add_flags(parser)
    assert settings.to_flags() == ["--grace-s", "30.5", "--last-s", "2"]
    assert SupervisorOptions.from_flags(parser.parse_args(settings.to_flags())) == settings
    assert SupervisorOptions().to_flags() == []


def test_the_pace_slows_with_age() -> None:
    pace = SupervisorOptions().pace
    assert [pace(age) for age in (0, 10, 100, 200, 1e6)] == [0.5, 0.5, 5.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("command", "processes", "expected"),
    [
        (["python", "-m", "mtl_cloud.train"], 1, ["/py", "-m", "mtl_cloud.train"]),
        (["./mine", "-x"], 1, ["./mine", "-x"]),
        (
            ["python", "-m", "mtl_cloud.train"],
            8,
            ["/py", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8", "-m", "mtl_cloud.train"],
        ),
        (
            ["./mine"],
            2,
            ["/py", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "./mine"],
        ),
    ],
)
def test_the_trainers_command(command: list[str], processes: int, expected: list[str]) -> None:
    assert trainer_command(replace(PLAN, command=command, processes=processes), "/py") == expected


def test_several_nodes_share_the_processes_and_meet_at_an_attempts_own_port() -> None:
    plan = replace(PLAN, command=["python", "-m", "mtl_cloud.train"], processes=16)
    first, second = (trainer_command(plan, "/py", nodes=Nodes(rank, 2, "algo-1"), attempt=3)[3:-2] for rank in range(2))
    assert [flag.partition("=")[0] for flag in first] == [
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
        "--nproc-per-node",
    ]
    assert (first[0], first[1], first[2], first[4]) == (
        "--nnodes=2",
        "--node-rank=0",
        "--master-addr=algo-1",
        "--nproc-per-node=8",
    )
    assert [*second[:1], *second[2:]] == [*first[:1], *first[2:]]
    assert second[1] == "--node-rank=1"
    ports = {trainer_command(plan, "/py", nodes=Nodes(0, 2, "a"), attempt=n)[6] for n in range(1, 6)}
    assert len(ports) == 5


def test_both_ends_of_the_scratch_understand_each_other(tmp_path: Path) -> None:
    scratch = Scratch.from_environ({"MTL_CLOUD_SCRATCH": str(tmp_path)})
    failure = Failure(exit_code=9, message="nö", hint="do", kind="machine")
    assert (scratch.progress(), scratch.stop_reason(), scratch.failure()) == ({}, None, None)
    scratch.write_progress("training", step=3, losses={"detection": 1.5})
    scratch.request_stop(StopReason.BUDGET)
    scratch.write_failure(failure)
    assert scratch.progress() == {"phase": "training", "step": 3, "losses": {"detection": 1.5}}
    assert scratch.stop_reason() is StopReason.BUDGET
    assert scratch.failure() == failure


def test_a_vanished_attempt_counts_up_to_its_last_heartbeat() -> None:
    run = make_run(MemoryStorage("spent"))
    for number, minute in ((1, 0), (2, 30), (3, 50)):
        at = f"2026-01-01T00:{minute:02d}:00+00:00"
        run.claim(AttemptRecord(number=number, started_at=at, host="here", pid=1, backend="local"))
    run.write_exit(1, ExitRecord(ended_at="", outcome="interrupted", exit_code=75, message="", seconds=1000.0))
    run.write_heartbeat(2, Heartbeat(at="2026-01-01T00:40:30+00:00", phase="training"))
    assert bill_of(run).seconds == 1000 + 630


def test_the_supervisor_imports_neither_pydantic_nor_click_nor_torch() -> None:
    code = "import sys, mtl_cloud.supervise.__main__; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not modules & {"click", "pydantic", "rich", "torch", "yaml"}


def test_a_full_disk_stops_no_trainer_and_is_no_hang(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    channel = ControlChannel(scratch, leads=True)
    channel.report("training", step=1)
    alive = scratch.progress_mtime_ns()
    (tmp_path / f"progress.json.{os.getpid()}").symlink_to("/dev/full")
    channel.report("training", step=2)
    assert scratch.progress_mtime_ns() > alive
    assert scratch.progress() == {"phase": "training", "step": 1}
