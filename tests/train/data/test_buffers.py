"""Workers reuse their batch buffers; batches that are still held never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_harness import assert_same_batch

from mtl_cloud.datasets import open_dataset
from mtl_cloud.jobspec.job import DatasetSpec, TrainingSpec
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.buffers import BufferPool
from mtl_cloud.train.data.loader import Collate, training_batches, validation_batches
from mtl_cloud.train.data.sampler import BatchSampler


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_of_workers_are_those_of_this_process_however_many_are_held(split: str) -> None:
    """There are enough batches for each of two workers to reuse every buffer; the last validation batch is smaller."""
    data = open_dataset(DatasetSpec(name="embedded"), split)
    collate = Collate(data.info.classes, data.info.multi_label)

    def batches(workers: int) -> list[Batch]:
        training = TrainingSpec(batch_size=6, eval_batch_size=7, image_size=96, loader_workers=workers)
        sampler = BatchSampler((33,), training.batch_size, epochs=6, seed=0, sampling="random")
        if split == "train":
            return list(training_batches(data, training, collate, sampler, start=0, pin=False))
        return list(validation_batches(data, training, collate, rank=0, world=1, pin=False))

    ours, theirs = batches(2), batches(0)
    assert len(ours) >= 30
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_batch(mine, other)


@given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6), max_size=5))
def test_a_buffer_grows_and_keeps_what_is_in_it(batches: list[list[tuple[int, int]]]) -> None:
    """Also for crops that are not contiguous, and after a larger batch."""
    pool, rng = BufferPool(1), np.random.default_rng(0)
    held = []
    for shapes in batches:
        buffer = pool.take()
        parts = [rng.integers(0, 256, (height, width + 3, 3), dtype=np.uint8)[:, 1:-2] for height, width in shapes]
        starts = [buffer.add(part) for part in parts]
        held.append((buffer.pixels(), starts, parts))
    for pixels, starts, parts in held:
        assert len(pixels) == sum(part.size for part in parts) // 3
        for start, part in zip(starts, parts, strict=True):
            assert np.array_equal(pixels[start:].numpy()[: part.size // 3].reshape(part.shape), part)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=20))
def test_a_process_reuses_a_buffer_once_no_tensor_of_its_batch_is_left_and_never_before(
    steps: list[tuple[bool, int]],
) -> None:
    """Some pixels (a view of a view), the mask, or nothing of a batch are held; ``pixels`` may be called twice."""
    pool = BufferPool(3)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (hold_mask, drop) in enumerate(steps):
        buffer = pool.take()
        buffer.add(np.full((4, 5, 3), number, dtype=np.uint8))
        pixels, mask = buffer.pixels(), buffer.masks((2, 3)).fill_(number)
        assert buffer.pixels().data_ptr() == pixels.data_ptr()
        part = mask if hold_mask else pixels.view(-1)[7:19].view(4, 3)
        held.append((part, part.clone()))
        del buffer, pixels, mask, part
        del held[: drop - 3]
        for ours, as_it_was in held:
            assert torch.equal(ours, as_it_was)


@pytest.mark.parametrize("held", [0, 1, 2])
def test_there_is_one_buffer_more_than_batches_held(held: int) -> None:
    pool, addresses = BufferPool(5), []
    batches: list[torch.Tensor] = []
    for _ in range(12):
        buffer = pool.take()
        buffer.add(np.zeros((40, 50, 3), dtype=np.uint8))
        batches.append(buffer.pixels())
        addresses.append(batches[-1].data_ptr())
        del batches[: len(batches) - held]
    assert len(set(addresses)) == held + 1
