"""A batch is unchanged by a pickle, as on its way from another process."""

from __future__ import annotations

import pickle
from dataclasses import replace

import torch
from task_cases import random_batch

from mtl_cloud.train.data.batch import Batch


def assert_equal(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        same = getattr(other, name)
        if name == "has":
            assert {task: present.tolist() for task, present in same.items()} == {
                task: present.tolist() for task, present in value.items()
            }
        elif isinstance(value, torch.Tensor):
            assert same.dtype == value.dtype
            assert torch.equal(same, value)
        else:
            assert same == value


def test_a_batch_is_the_same_after_a_pickle_and_may_be_written_to() -> None:
    batch = random_batch(0)
    again = pickle.loads(pickle.dumps(batch))
    assert_equal(batch, again)
    again.boxes.zero_()


def test_floats_are_the_pixels_whatever_their_memory_format() -> None:
    batch = random_batch(0)
    other = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(batch.floats(), batch.images / 255)
    assert torch.equal(other.floats(), batch.floats())
    assert other.floats().is_contiguous()
