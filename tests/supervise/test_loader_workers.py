"""A loader worker of a real run is killed: the run starts again in place, and ends as if it had not been."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from run_harness import start_supervisor
from small_run import end_state, make_small_run
from waiting import wait_for

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.supervise import guard


def train(folder: Path, disturb: Callable[[int, Scratch], None] | None = None, *, workers: int = 2) -> RunRecord:
    """A small run with loader workers, more of whose batches are to come than are read ahead, to its end."""
    folder.mkdir()
    run, scratch = make_small_run(folder / "record", rounds=12, loader_workers=workers), folder / "scratch"
    with start_supervisor(run, scratch) as supervisor:
        if disturb:
            disturb(supervisor.pid, Scratch(scratch / "0001"))
        assert supervisor.wait(500) == 0
        assert supervisor.stderr is not None
        supervisor.stderr.read()
    return run


def loader_workers(supervisor: int) -> list[int]:
    """The children of the trainer's fork server: they have its command line."""
    below = guard._descendants(supervisor)
    servers = [pid for pid in below if b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [pid for pid in servers if _parent(pid) in servers]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def strike(number: signal.Signals, at_step: int) -> Callable[[int, Scratch], None]:
    def disturb(supervisor: int, scratch: Scratch) -> None:
        wait_for(lambda: int(str(scratch.progress().get("step", 0))) >= at_step)
        os.kill(wait_for(lambda: loader_workers(supervisor))[0], number)

    return disturb


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_whose_loader_worker_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight", workers=0)
    run = train(tmp_path / "killed", strike(signal.SIGKILL, at_step=random.randint(1, 20)))
    first = run.exit(1)
    assert first is not None
    assert (first.outcome, first.exit_code) == ("machine_error", 10)
    assert "was ended by SIGKILL; out of memory?" in first.message
    assert end_state(run) == end_state(straight)
