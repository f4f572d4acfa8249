"""A save costs the loop one copy; the thread commits the state at that time, or reports an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from trainer_harness import small_job
from waiting import PATIENCE_S, wait_for

from mtl_cloud.errors import RunTakenOverError, StorageError
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.storage import Data, MemoryStorage
from mtl_cloud.train.checkpoint.async_saver import AsyncSaver
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer, read_checkpoint
from mtl_cloud.train.checkpoint.snapshot import HostBuffers, take_snapshot
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.trainer import Trainer


class GatedStorage(MemoryStorage):
    """Writes of parts wait for ``gate``; each of ``failures`` is raised by one write."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.failures: list[StorageError] = []

    def write(self, key: str, data: Data) -> None:
        if "part-" in key:
            assert self.gate.wait(PATIENCE_S)
            if self.failures:
                raise self.failures.pop()
        super().write(key, data)


@pytest.fixture
def run() -> RunRecord:
    run = RunRecord(GatedStorage(), "voc-3fa1c9")
    claim(run, 1)
    return run


def gated(run: RunRecord) -> GatedStorage:
    assert isinstance(run.storage, GatedStorage)
    return run.storage


def claim(run: RunRecord, number: int) -> None:
    run.claim(AttemptRecord(number=number, started_at="15:00", host="h", pid=number, backend="local"))


def saver_of(run: RunRecord) -> AsyncSaver:
    return AsyncSaver(Checkpointer(run, 1, keep=9, part_bytes=1000))


def saved_weights(run: RunRecord) -> dict[int, float]:
    """Step -> the common value of all its weights."""
    found = {}
    for checkpoint in run.checkpoints():
        (weight,) = read_checkpoint(run, checkpoint).state["w"].unique().tolist()
        found[checkpoint.step] = weight
    return found


def test_changes_by_training_during_an_upload_are_not_in_the_checkpoint(run: RunRecord) -> None:
    weight, saver = torch.zeros(5000), saver_of(run)
    for step in (1, 2):
        weight.fill_(step)
        saver.save({"w": weight}, step=step, round=0, reason="time")
    weight.fill_(3)
    assert run.checkpoints() == []
    gated(run).gate.set()
    saver.save({"w": weight}, step=3, round=0, reason="time")
    weight.fill_(4)
    saver.drain()
    assert saved_weights(run) == {1: 1, 2: 2, 3: 3}


def test_a_third_save_waits_so_that_there_are_at_most_two_copies(run: RunRecord) -> None:
    saver, copies = saver_of(run), set()
    snapshot = saver._checkpointer.snapshot

    def counted(state: Any, buffers: HostBuffers) -> Any:
        copies.add(id(buffers))
        return snapshot(state, buffers)

    saver._checkpointer.snapshot = counted  # type: ignore[method-assign]
    for step in (1, 2):
        saver.save({"w": torch.ones(9)}, step=step, round=0, reason="round")
        assert saver.is_busy
    first = saver._running[0][0]
    third = threading.Thread(target=lambda: saver.save({"w": torch.ones(9)}, step=3, round=0, reason="stop"))
    third.start()
    wait_for(lambda: first._condition._waiters)  # type: ignore[attr-defined]
    assert len(copies) == 2
    gated(run).gate.set()
    third.join(PATIENCE_S)
    saver.drain()
    assert (sorted(saved_weights(run)), len(copies), saver.is_busy) == ([1, 2, 3], 2, False)


def test_the_memory_of_a_snapshot_is_reused_for_the_next() -> None:
    a, buffers = torch.ones(100), HostBuffers()
    state = {"a": a, "b": [torch.ones(7, dtype=torch.int64)]}
    first = take_snapshot(state, buffers=buffers, part_bytes=64)
    addresses = {name: tensor.data_ptr() for name, tensor in first.tensors.items()}
    a += 1
    second = take_snapshot(state, buffers=buffers, part_bytes=64)
    assert {name: tensor.data_ptr() for name, tensor in second.tensors.items()} == addresses
    take_snapshot({"a": torch.ones(3)}, buffers=buffers)
    assert [tensor.shape for buffer in buffers.buffers for tensor in buffer.tensors.values()] == [(3,)]


def test_a_failure_is_raised_by_the_next_save_whose_own_state_is_committed(
    run: RunRecord, caplog: pytest.LogCaptureFixture
) -> None:
    gated(run).gate.set()
    saver = failed_saver(run)
    assert "a checkpoint could not be saved: the bucket is on fire" in caplog.text
    with pytest.raises(StorageError, match="on fire"):
        saver.save({"w": torch.ones(9)}, step=3, round=0, reason="stop")
    saver.drain()
    assert list(saved_weights(run)) == [3]


def failed_saver(run: RunRecord) -> AsyncSaver:
    """A saver whose save of step 2 has failed."""
    saver = saver_of(run)
    gated(run).failures = [StorageError("the bucket is on fire")]
    saver.save({"w": torch.ones(9)}, step=2, round=0, reason="time")
    saver._thread.submit(lambda: None).result(PATIENCE_S)  # runs after the save's callbacks
    return saver


def test_a_failure_of_the_last_save_is_raised_at_the_end(run: RunRecord) -> None:
    gated(run).gate.set()
    saver = failed_saver(run)
    with pytest.raises(StorageError, match="on fire"):
        saver.drain()
    saver.drain()  # it is raised once


def test_an_attempt_that_is_replaced_during_a_save_gets_an_error(run: RunRecord) -> None:
    saver = saver_of(run)
    saver.save({"w": torch.ones(9)}, step=1, round=0, reason="time")
    claim(run, 2)
    gated(run).gate.set()
    with pytest.raises(RunTakenOverError):
        saver.drain()
    assert run.checkpoints() == []


def test_timed_saves_are_not_stacked_and_the_end_waits_for_all(make_trainer: Callable[..., Trainer]) -> None:
    job = small_job(rounds=1, epochs_per_round=1)
    job = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"every_minutes": 1e-9, "keep": 9})})
    storage = GatedStorage()
    trainer = make_trainer(job, storage=storage)
    storage.gate.clear()
    opening = threading.Timer(0, storage.gate.set)
    batches = trainer.validation_batches

    def opened() -> Iterator[Batch]:
        opening.start()
        return batches()

    trainer.validation_batches = opened
    assert trainer.fit()
    opening.join()
    kept = [(manifest.step, manifest.reason) for manifest in map(trainer.run.manifest, trainer.run.checkpoints())]
    assert kept == [(1, "time"), (3, "round")]  # step 2 was due while step 1 was still being written
