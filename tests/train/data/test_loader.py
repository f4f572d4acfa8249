"""The loader gives one sequence of batches, for any number of workers and processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mtl_cloud.datasets import open_dataset
from mtl_cloud.jobspec.job import DatasetSpec, TrainingSpec
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.loader import Collate, training_batches
from mtl_cloud.train.data.sampler import BatchSampler

SAMPLES, BATCH = 35, 8


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on fewer cores
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_steps_have_the_same_images_for_any_number_of_workers_and_processes(workers: int) -> None:
    """Their placements are the same too, and so is a resumed sequence with another number of processes."""
    straight = steps(workers=0, world=1)
    assert len(straight) == 2 * (SAMPLES // BATCH)
    assert all(step.total() == BATCH for step in straight)
    for world, start in ((1, 3), (2, 1), (4, 5)):
        assert steps(workers=workers, world=world, start=start) == straight[start:]


def steps(*, workers: int, world: int, start: int = 0) -> list[Counter[tuple[str, bytes]]]:
    """For each step of two epochs, the keys and pixels that all ``world`` processes get."""
    data = open_dataset(DatasetSpec(name="embedded"), "train")
    training = TrainingSpec(batch_size=BATCH, image_size=32, loader_workers=workers)
    collate = Collate(data.info.classes, data.info.multi_label)
    shares = []
    for rank in range(world):
        sampler = BatchSampler((SAMPLES,), BATCH, epochs=2, seed=5, sampling="random", rank=rank, world=world)
        batches = training_batches(data, training, collate, sampler, start=start, pin=False)
        shares.append([batch.to(torch.device("cpu")) for batch in batches])
    return [sum(map(images, parts), Counter()) for parts in zip(*shares, strict=True)]


def images(batch: Batch) -> Counter[tuple[str, bytes]]:
    return Counter((key, image.numpy().tobytes()) for key, image in zip(batch.keys, batch.images, strict=True))
