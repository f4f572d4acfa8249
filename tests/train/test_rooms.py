"""Workers write their batches into the same memory again and again, and who holds several cannot tell."""

from __future__ import annotations

import pytest
from trainer_harness import assert_same_batch

from mtl_cloud.datasets import open_dataset
from mtl_cloud.spec.job import DatasetSpec, TrainingSpec
from mtl_cloud.train.batch import Batch
from mtl_cloud.train.data import Collate, training_batches, validation_batches
from mtl_cloud.train.order import BatchOrder


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_of_workers_are_those_of_this_process_however_many_are_held(split: str) -> None:
    """So many that each of two workers takes every room three times; the last one of the validation is smaller."""
    data = open_dataset(DatasetSpec(name="embedded"), split)
    collate = Collate(data.info.classes, data.info.multi_label)

    def batches(workers: int) -> list[Batch]:
        training = TrainingSpec(batch_size=6, eval_batch_size=7, image_size=96, loader_workers=workers)
        order = BatchOrder((33,), training.batch_size, epochs=6, seed=0, sampling="random")
        if split == "train":
            return list(training_batches(data, training, collate, order, start=0, pin=False))
        return list(validation_batches(data, training, collate, rank=0, world=1, pin=False))

    ours, theirs = batches(2), batches(0)
    assert len(ours) >= 30
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_batch(mine, other)
