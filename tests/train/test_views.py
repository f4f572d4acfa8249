"""What training and validation see of a sample: the same, however far its image was shrunk while it was decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from mtl_cloud.datasets.base import Dataset, Sample, Shrink
from mtl_cloud.datasets.voc import open_voc
from mtl_cloud.spec.job import AugmentSpec
from mtl_cloud.train.data import TrainingView, ValidationView
from mtl_cloud.train.order import Draw
from mtl_cloud.train.transforms import Canvas

pytestmark = pytest.mark.real_data


@dataclass(frozen=True)
class Whole:
    """Decodes every image in full."""

    dataset: Dataset

    def load(self, index: int, shrink: Shrink) -> Sample:  # the point
        return self.dataset[index]


@pytest.fixture(scope="module")
def voc(real_data: Callable[[str], Path]) -> Dataset:
    return open_voc(str(real_data("voc2012_subset") / "VOCdevkit"), "train")


@pytest.mark.parametrize("size", [96, 224])
def test_training_sees_the_same_boxes_and_masks_and_nearly_the_same_pixels(voc: Dataset, size: int) -> None:
    view = TrainingView(voc, size, AugmentSpec(), seed=3)
    whole = replace(view, dataset=Whole(voc))
    shrunk, differences = 0, []
    for index in range(40):
        (sample, ours, color), (_, theirs, other) = view[Draw(1, index)], whole[Draw(1, index)]
        shrunk += sample.image.shape[:2] != sample.shape
        assert ours.boxes is not None
        assert theirs.boxes is not None
        assert np.array_equal(ours.boxes.xyxy, theirs.boxes.xyxy)
        assert (ours.mask is None) == (theirs.mask is None)
        assert ours.mask is None or torch.equal(ours.mask, theirs.mask)
        assert np.array_equal(color, other)
        differences.append(_levels(ours, theirs))
    assert shrunk >= 10
    assert fmean(differences) < 3


def test_validation_sees_nearly_the_same_pixels_and_never_enlarges_a_shrunk_image(voc: Dataset) -> None:
    view, whole = ValidationView(voc, 224), ValidationView(Whole(voc), 224)
    differences = []
    for index in range(20):
        (sample, ours, _), (_, theirs, _) = view[index], whole[index]
        assert max(sample.image.shape) >= 224
        differences.append(_levels(ours, theirs))
    assert fmean(differences) < 3


def _levels(one: Canvas, other: Canvas) -> float:
    """Mean difference of their pixels, of 255."""
    return (one.image.float() - other.image.float()).abs().mean().item()
