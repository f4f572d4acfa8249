"""A run may resume with another number of processes in the middle of an epoch: no sample is lost or repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from process_harness import in_processes
from trainer_harness import ALONE, open_attempt, small_job

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.storage import FolderStorage
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.trainer import Trainer

STOP = 2
"""Steps of the first attempt; an epoch has three."""
Keys = list[tuple[str, ...]]


def job() -> Any:
    return small_job(rounds=1, epochs_per_round=2, batch_size=8, image_size=32)


def watched(trainer: Trainer, *, stop: int | None) -> Keys:
    """A list that collects the keys of the trainer's batches. At batch ``stop`` the trainer is asked to stop."""
    seen: Keys = []
    batches = trainer.training_batches

    def watching(start: int) -> Iterator[Batch]:
        for batch in batches(start):
            seen.append(batch.keys)
            if len(seen) == stop:
                trainer.channel._scratch.request_stop(StopReason.SPOT)
            yield batch

    trainer.training_batches = watching
    return seen


def live(group: ProcessGroup, folder: Path, attempt: int, *, stop: int | None = None) -> Keys:
    trainer = open_attempt(job(), folder, storage=FolderStorage(folder), attempt=attempt, data=None, group=group)
    seen = watched(trainer, stop=stop)
    assert trainer.fit() == (stop is None)
    return seen[: trainer.position.step]


@dataclass(frozen=True)
class Lives:
    """Two processes begin one run and resume another one."""

    begun: Path
    continued: Path

    def __call__(self, group: ProcessGroup) -> tuple[Keys, Keys]:
        return live(group, self.begun, 1, stop=STOP), live(group, self.continued, 2)


def together(shares: list[Keys]) -> Keys:
    """The global batches: process r of W has every W-th sample from r on."""
    return [
        tuple(key for turn in zip_longest(*parts) for key in turn if key is not None)
        for parts in zip(*shares, strict=True)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return tmp_path_factory.mktemp("begun"), tmp_path_factory.mktemp("continued"), tmp_path_factory.mktemp("join")


@pytest.mark.slow
def test_from_two_processes_to_one_and_from_one_to_two(folders: tuple[Path, Path, Path]) -> None:
    begun, continued, join = folders
    torch.set_num_threads(1)
    alone_first = live(ALONE, continued, 1, stop=STOP)
    both = in_processes(2, join, Lives(begun, continued))
    alone_last = live(ALONE, begun, 2)

    straight = [batch.keys for batch in open_attempt(
        job(), join, storage=FolderStorage(join), attempt=1, data=None, group=ALONE
    ).training_batches(0)]  # fmt: skip
    assert together([first for first, _ in both]) + alone_last == straight
    assert alone_first + together([last for _, last in both]) == straight
    for folder in (begun, continued):
        (record,) = RunRecord(FolderStorage(folder), "test").rounds()
        assert (record.images, record.attempt) == (48, 2)
        assert all(loss is not None for loss in record.train_losses.values())
