"""Supervisors in this process, over storages that fail, and over torchrun."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from run_harness import FAST, PRELUDE, make_run, start_supervisor
from waiting import PATIENCE_S

from mtl_cloud.clock import Clock
from mtl_cloud.errors import StorageError
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.storage import Data, FolderStorage, MemoryStorage
from mtl_cloud.storage.retrying import RetryingStorage
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.supervisor import supervise

T = TypeVar("T")


class Stormy(MemoryStorage):
    """A storage of which every third reading or writing request fails, half of these after it was done."""

    def __init__(self, seed: int) -> None:
        super().__init__(f"storm-{seed}")
        self._dice = random.Random(seed)
        self.rages = False
        self.failures = 0

    def read(self, key: str) -> bytes:
        return self._maybe(lambda: super(Stormy, self).read(key))

    def write(self, key: str, data: Data) -> None:
        self._maybe(lambda: super(Stormy, self).write(key, data))

    def create(self, key: str, data: bytes) -> None:
        self._maybe(lambda: super(Stormy, self).create(key, data))

    def _maybe(self, act: Callable[[], T]) -> T:
        luck = self._dice.random() if self.rages else 1.0
        self.failures += luck < 1 / 3
        if luck < 1 / 6:
            raise StorageError("503 SlowDown")
        answer = act()
        if luck < 1 / 3:
            raise StorageError("connection reset")
        return answer


class Hasty(Clock):
    """Pauses are a hundredth of what they should be."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / 100)


@pytest.mark.parametrize("seed", range(3))
def test_a_storage_that_fails_all_the_time_loses_neither_a_line_nor_the_end(seed: int, tmp_path: Path) -> None:
    storm = Stormy(seed)
    code = "for i in range(50): print(i, flush=True); time.sleep(0.01)"
    run = make_run(RetryingStorage(storm, patience_s=60, clock=Hasty()), code)
    storm.rages = True
    assert (
        supervise(run, 1, SupervisorContext(scratch=tmp_path, environ=os.environ, settings=FAST)).outcome
        == Outcome.DONE
    )
    storm.rages = False
    lines = run.read_log(1).decode().splitlines()
    assert [line for line in lines if line.isdigit()] == [str(i) for i in range(50)]
    result = run.result()
    assert result is not None
    assert (result.outcome, result.attempts) == (Outcome.DONE, 1)
    assert storm.failures > 0


def test_a_worker_killed_below_torchrun_is_a_machines_fault(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "train.py"
    script.write_text(PRELUDE + "os.environ['LOCAL_RANK'] == '1' and os.kill(os.getpid(), 9); time.sleep(600)")
    run = make_run(FolderStorage(tmp_path / "storage"), command=["python", str(script)], processes=2, max_restarts=0)
    with start_supervisor(run, tmp_path / "scratch") as process:
        assert process.wait(PATIENCE_S) == 7
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code) == (Outcome.MACHINE_ERROR, -9)
