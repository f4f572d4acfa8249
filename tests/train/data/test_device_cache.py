"""The device cache gives the same batches as loader workers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_harness import write_cifar_batches
from trainer_harness import assert_same_batch

from mtl_cloud.datasets.base import Dataset, DatasetInfo, HintFor, Sample
from mtl_cloud.datasets.formats.cifar10 import open_cifar10
from mtl_cloud.jobspec.job import Fit, TrainingSpec
from mtl_cloud.tasks import TASKS, Task
from mtl_cloud.train.data import device_cache as cache_module
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.device_cache import DeviceCache
from mtl_cloud.train.data.loader import Collate, training_batches, validation_batches
from mtl_cloud.train.data.sampler import BatchSampler

CPU = torch.device("cpu")
SIZE = 64


@dataclass(frozen=True)
class ListDataset:
    """A dataset of the given samples."""

    info: DatasetInfo
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return self[index]

    def key(self, index: int) -> str:
        return self.samples[index].key

    def labels(self, index: int) -> frozenset[Task]:
        return frozenset(self.info.tasks)


@pytest.fixture
def cifar(tmp_path: Path) -> Dataset:
    write_cifar_batches(tmp_path / "cifar")
    return open_cifar10(str(tmp_path / "cifar"), "train")


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_those_of_the_loader_from_any_step_on_in_any_process(cifar: Dataset, fit: Fit, rank: int) -> None:
    training = TrainingSpec(batch_size=8, image_size=SIZE, loader_workers=0, fit=fit, cache_gib=0)
    sampler = BatchSampler(
        sizes=(len(cifar),), shards=(None,), batch_size=8, epochs=2, seed=5, sampling=training.sampling,
        mixing=training.mixing, max_steps_per_epoch=None, rank=rank, world=2,
    )  # fmt: skip
    collate = Collate(dict.fromkeys(TASKS, ("a", "b")), multi_label=False)
    device_cache = DeviceCache.of(cifar, CPU)
    assert device_cache is not None

    def both(make: Callable[..., Iterator[Batch]]) -> Iterator[tuple[Batch, Batch]]:
        return zip(make(device_cache=device_cache), make(device_cache=None), strict=True)

    pairs = [
        *both(partial(training_batches, cifar, training, collate, sampler, start=9, pin=False)),
        *both(partial(validation_batches, cifar, training, collate, rank=rank, world=2, pin=False)),
    ]
    assert len(pairs) == (2 * 12 - 9) + 4
    for ours, theirs in pairs:
        assert_same_batch(ours, theirs)


@pytest.mark.parametrize("why", ["large", "shrinks", "boxes", "sizes", "skipped"])
def test_datasets_that_are_large_or_of_another_kind_are_not_cached(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(f"{i}", np.zeros((8, 8, 3), dtype=np.uint8), classification=0) for i in range(3)]
    info = DatasetInfo("some", "train", {"detection" if why == "boxes" else "classification": ("a",)})
    if why == "sizes":
        samples[2] = replace(samples[2], image=np.zeros((8, 9, 3), dtype=np.uint8))
    if why == "skipped":
        samples[2] = replace(samples[2], replaces="bad")
    if why == "shrinks":
        samples[0] = replace(samples[0], stored_shape=(64, 64))
    if why == "large":
        monkeypatch.setattr(cache_module, "LIMIT_BYTES", 3 * 8 * 8 * 3 - 1)
    assert DeviceCache.of(ListDataset(info, samples), CPU) is None
