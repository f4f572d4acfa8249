"""Workers write their batches into the same memory again and again, and who holds several cannot tell."""

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
from mtl_cloud.train.data.buffers import Rooms
from mtl_cloud.train.data.loader import Collate, training_batches, validation_batches
from mtl_cloud.train.data.sampler import BatchOrder


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


@given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6), max_size=5))
def test_a_room_grows_and_keeps_what_is_in_it(batches: list[list[tuple[int, int]]]) -> None:
    """Also where parts are not contiguous, and when a larger batch was there before."""
    rooms, rng = Rooms(1), np.random.default_rng(0)
    held = []
    for shapes in batches:
        room = rooms.take()
        parts = [rng.integers(0, 256, (height, width + 3, 3), dtype=np.uint8)[:, 1:-2] for height, width in shapes]
        starts = [room.add(part) for part in parts]
        held.append((room.pixels(), starts, parts))
    for pixels, starts, parts in held:
        assert len(pixels) == sum(part.size for part in parts) // 3
        for start, part in zip(starts, parts, strict=True):
            assert np.array_equal(pixels[start:].numpy()[: part.size // 3].reshape(part.shape), part)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=20))
def test_a_process_takes_a_room_again_when_nothing_is_left_of_its_batch_and_never_before(
    steps: list[tuple[bool, int]],
) -> None:
    """Of batches a few pixels are held, which are a view of a view, or the mask, or nothing; and one may ask twice."""
    rooms = Rooms(3)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (hold_mask, drop) in enumerate(steps):
        room = rooms.take()
        room.add(np.full((4, 5, 3), number, dtype=np.uint8))
        pixels, mask = room.pixels(), room.masks((2, 3)).fill_(number)
        assert room.pixels().data_ptr() == pixels.data_ptr()
        part = mask if hold_mask else pixels.view(-1)[7:19].view(4, 3)
        held.append((part, part.clone()))
        del room, pixels, mask, part
        del held[: drop - 3]
        for ours, as_it_was in held:
            assert torch.equal(ours, as_it_was)


@pytest.mark.parametrize("held", [0, 1, 2])
def test_as_many_rooms_are_made_as_batches_are_held_when_the_next_is_made_and_one_more(held: int) -> None:
    rooms, addresses = Rooms(5), []
    batches: list[torch.Tensor] = []
    for _ in range(12):
        room = rooms.take()
        room.add(np.zeros((40, 50, 3), dtype=np.uint8))
        batches.append(room.pixels())
        addresses.append(batches[-1].data_ptr())
        del batches[: len(batches) - held]
    assert len(set(addresses)) == held + 1
