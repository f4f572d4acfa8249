"""Clustering of box sizes, compared with brute force, another k-means, and darknet's anchors on real boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtl_cloud.datasets import open_dataset
from mtl_cloud.datasets.anchors import ANCHORS, Sizes, box_sizes, cluster_sizes, mean_best_iou
from mtl_cloud.datasets.base import Boxes, DatasetInfo, HintFor, Sample
from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.job import DatasetSpec
from mtl_cloud.tasks import Task

SIZES = arrays(np.float64, st.tuples(st.integers(12, 40), st.just(2)), elements=st.floats(1, 400), unique=True)


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """By the definition, one pair at a time."""
    shared = min(a[0], b[0]) * min(a[1], b[1])
    return shared / (a[0] * a[1] + b[0] * b[1] - shared)


def partitions(n: int, k: int) -> Iterator[list[int]]:
    """All partitions of n items into at most k groups, as the group of each item."""

    def grow(labels: list[int]) -> Iterator[list[int]]:
        if len(labels) == n:
            yield labels
            return
        for label in range(min(k, max(labels, default=-1) + 2)):
            yield from grow([*labels, label])

    return grow([])


class Scenes:
    """A dataset of blank images with the given boxes."""

    info = DatasetInfo("scenes", "train", {"detection": ("thing",)})

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return self.samples[index]

    def key(self, index: int) -> str:
        return self.samples[index].key

    def labels(self, index: int) -> frozenset[Task]:
        return frozenset() if self.samples[index].detection is None else frozenset({"detection"})


def scene(height: int, width: int, *boxes: tuple[float, ...], difficult: tuple[int, ...] = ()) -> Sample:
    found = Boxes(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=np.zeros(len(boxes), dtype=np.int64),
        difficult=np.isin(np.arange(len(boxes)), difficult),
    )
    return Sample("scene", np.zeros((height, width, 3), dtype=np.uint8), detection=found)


def test_box_sizes_are_those_on_the_letterboxed_image_without_difficult_ones() -> None:
    wide = scene(50, 200, (10, 10, 50, 30), (0, 0, 200, 50), difficult=(1,))
    tall = scene(100, 40, (0, 0, 40, 100))
    unlabelled = Sample("unlabelled", np.zeros((8, 8, 3), dtype=np.uint8))
    sizes = box_sizes(Scenes(wide, tall, unlabelled, scene(10, 10)), 100)
    assert sizes.tolist() == [[20, 10], [40, 100]]


@given(SIZES)
def test_mean_best_iou_by_the_definition(sizes: Sizes) -> None:
    expected = np.mean([max(iou(tuple(size), anchor) for anchor in ANCHORS) for size in sizes])
    assert mean_best_iou(sizes, np.array(ANCHORS, dtype=float)) == pytest.approx(expected)


@given(SIZES, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_no_round_lowers_the_mean_best_iou(sizes: Sizes, seed: int) -> None:
    found = cluster_sizes(sizes, seed=seed)
    assert all(later >= earlier - 1e-12 for earlier, later in zip(found.history, found.history[1:], strict=False))
    assert found.mean_iou == pytest.approx(mean_best_iou(sizes, found.anchors))


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_anchors_are_sorted_by_area_and_the_seed_decides_them(sizes: Sizes) -> None:
    one, other = (cluster_sizes(sizes, seed=3).anchors for _ in range(2))
    assert one.tolist() == other.tolist()
    assert (np.diff(one.prod(axis=1)) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_of_few_boxes_are_as_good_as_the_best_of_all_partitions(seed: int) -> None:
    sizes = np.random.default_rng(seed).uniform(5, 300, (8, 2))
    best = 0.0
    for labels in partitions(len(sizes), 2):
        groups = [sizes[np.array(labels) == label] for label in set(labels)]
        for centre in (np.mean, np.median):
            best = max(best, mean_best_iou(sizes, np.array([centre(group, axis=0) for group in groups])))
    assert cluster_sizes(sizes, 2).mean_iou >= best - 0.01


def test_as_many_different_boxes_as_anchors_are_the_anchors() -> None:
    sizes = np.array([[10.0 * n, 7.0 * n] for n in range(1, 10)] * 3)
    found = cluster_sizes(sizes)
    assert found.mean_iou == 1
    assert found.anchors.tolist() == sizes[:9].tolist()


def test_well_apart_groups_are_found() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[2.0**n, 1.5 * 2.0**n] for n in range(1, 10)])
    sizes = (centres[:, None] * rng.uniform(0.95, 1.05, (9, 50, 2))).reshape(-1, 2)
    found = cluster_sizes(sizes).anchors
    np.testing.assert_allclose(found, centres, rtol=0.05)


def test_too_few_different_boxes_are_an_error_with_a_count() -> None:
    with pytest.raises(DatasetError, match="9 anchors cannot be made of 2 different box sizes"):
        cluster_sizes(np.array([[1.0, 2.0], [3.0, 4.0]] * 20))


@pytest.mark.parametrize("image_size", [96, 416])
def test_on_real_boxes_they_fit_better_than_darknets(voc_photographs: Path, image_size: int) -> None:
    spec = DatasetSpec(name="voc", uri=str(voc_photographs / "VOCdevkit"))
    train, val = (box_sizes(open_dataset(spec, split), image_size) for split in ("train", "val"))
    anchors = cluster_sizes(train).anchors
    darknet = np.array(ANCHORS, dtype=float)
    assert mean_best_iou(train, anchors) > mean_best_iou(train, darknet) + 0.05
    assert mean_best_iou(val, anchors) > mean_best_iou(val, darknet) + 0.03
