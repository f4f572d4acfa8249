"""Multi-scale training: the size of each step, and images resized together with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from task_cases import random_batch
from trainer_harness import Killed, digest, killed_at, small_job

from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.data.multi_scale import input_size, resize
from mtl_cloud.train.trainer import Trainer

TrainerMaker = Callable[..., Trainer]
DARKNET = TrainingSpec(multi_scale=(320, 608), image_size=416)


def sizes_of(training: TrainingSpec, steps: int, steps_per_epoch: int) -> list[int]:
    return [input_size(training, step=step, steps=steps, steps_per_epoch=steps_per_epoch) for step in range(steps)]


def test_every_ten_steps_one_of_darknets_ten_sizes_is_drawn_alike() -> None:
    blocks = np.array(sizes_of(DARKNET, 30_000, 10)[:-10]).reshape(-1, 10)
    assert (blocks == blocks[:, :1]).all()
    counts = Counter(blocks[:, 0].tolist())
    assert sorted(counts) == list(range(320, 609, 32))
    expected = len(blocks) / 10
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9  # scipy.stats.chi2.ppf(0.999, 9)


def test_the_last_epoch_and_a_job_without_the_option_are_at_image_size() -> None:
    assert sizes_of(DARKNET, 100, 25)[75:] == [416] * 25
    assert set(sizes_of(TrainingSpec(image_size=416), 100, 25)) == {416}


def test_another_seed_draws_other_sizes() -> None:
    other = DARKNET.model_copy(update={"seed": 1})
    assert sizes_of(DARKNET, 500, 1) != sizes_of(other, 500, 1)


@given(st.sampled_from([32, 64, 96, 128, 256]))
def test_boxes_keep_their_place_in_the_image(size: int) -> None:
    batch = random_batch(0)
    _, resized = resize(batch.images.float() / 255, batch, size)
    torch.testing.assert_close(resized.boxes / size, batch.boxes / batch.images.shape[-1])
    assert resized.masks.shape[-2:] == (size, size)
    assert resized.masks.dtype == torch.uint8


@pytest.mark.parametrize("size", [32, 128, 192])
def test_images_and_masks_are_resized_as_pillow_does(size: int) -> None:
    batch = random_batch(1)
    images, resized = resize(batch.images.float() / 255, batch, size)
    assert images.shape == (len(batch), 3, size, size)
    image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    assert np.abs(images[0].permute(1, 2, 0).numpy() * 255 - expected).max() <= 1.5
    mask = Image.fromarray(batch.masks[0].numpy()).resize((size, size), Image.Resampling.NEAREST)
    assert (resized.masks[0].numpy() == np.asarray(mask)).all()


def test_at_its_own_size_a_batch_is_left_alone() -> None:
    batch = random_batch(2)
    images = batch.images.float()
    same, untouched = resize(images, batch, images.shape[-1])
    assert same is images
    assert untouched is batch


def test_a_killed_multi_scale_run_resumes_to_the_same_parameters(make_trainer: TrainerMaker) -> None:
    """Thirteen steps of an epoch: the kill falls between two changes of the size."""
    job = small_job(multi_scale=[32, 96], batch_size=2, epochs_per_round=1)
    straight = make_trainer(job)
    seen: list[int] = []
    forward = straight.replica.model.forward

    def watched(images: torch.Tensor, tasks: Any = None) -> Any:
        seen.append(images.shape[-1])
        return forward(images, tasks)

    straight.replica.model.forward = watched
    assert straight.fit()
    assert len(set(seen)) > 1
    storage = MemoryStorage()
    with pytest.raises(Killed):
        killed_at(make_trainer(job, storage=storage), 11).fit()
    again = make_trainer(job, storage=storage, attempt=2)
    assert again.fit()
    assert digest(again.network) == digest(straight.network)
