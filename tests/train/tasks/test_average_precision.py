"""VOC's average precision against published figures, a literal copy of the devkit's loop, and COCO's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.train.tasks.average_precision import ClassPrecision, ImageDetections, coco_metrics, voc_precision

Box = tuple[float, float, float, float]
Found = tuple[Box, float, int]
True_ = tuple[Box, int, bool]


def image(key: str, found: Sequence[Found], true: Sequence[True_]) -> ImageDetections:
    return ImageDetections(
        key,
        boxes=torch.tensor([box for box, _, _ in found]).view(-1, 4),
        scores=torch.tensor([score for _, score, _ in found]),
        classes=torch.tensor([label for *_, label in found], dtype=torch.int64),
        true_boxes=torch.tensor([box for box, _, _ in true]).view(-1, 4),
        true_classes=torch.tensor([label for _, label, _ in true], dtype=torch.int64),
        difficult=torch.tensor([difficult for *_, difficult in true], dtype=torch.bool),
    )


# --- published figures -------------------------------------------------------------------------------------------


def numbers(path: Path) -> list[list[float]]:
    return [[float(word) for word in line.split()[1:]] for line in path.read_text().splitlines()]


def corners(x: float, y: float, w: float, h: float) -> Box:
    """Corners of a box in the reference's convention, which includes both end pixels: x to x + w is w + 1 wide."""
    return (x, y, x + w + 1, y + h + 1)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("threshold", "every_point", "eleven_points"),
    [
        (0.1, 0.3371980676, 0.3333333333),
        (0.3, 0.2456866804, 0.2683982683),
        (0.5, 0.0222222222, 0.0303030303),
        (0.75, 0.0, 0.0),
    ],
)
def test_the_reference_case_gives_its_published_figures(
    real_data: Callable[[str], Path], threshold: float, every_point: float, eleven_points: float
) -> None:
    folder = real_data("reference") / "reference" / "voc_eval_small"
    images = [
        image(
            path.stem,
            [(corners(*box), score, 0) for score, *box in numbers(folder / "dets" / path.name)],
            [(corners(*box), 0, False) for box in numbers(path)],
        )
        for path in sorted((folder / "gts").glob("*.txt"))
    ]
    (result,) = voc_precision(images, classes=1, threshold=threshold)
    assert result.ap == pytest.approx(every_point, abs=1e-6)
    assert result.ap_11_point == pytest.approx(eleven_points, abs=1e-6)


# --- brute force -------------------------------------------------------------------------------------------------


def devkit(images: list[ImageDetections], label: int, threshold: float) -> ClassPrecision:
    """VOCevaldet.m line by line: one detection at a time, one object at a time."""
    ranked = [
        (float(i.scores[d]), i, i.boxes[d].tolist())
        for i in images
        for d in range(len(i.boxes))
        if i.classes[d] == label
    ]
    ranked.sort(key=lambda entry: -entry[0])
    objects = [(i, t) for i in images for t in range(len(i.true_boxes)) if i.true_classes[t] == label]
    positives = sum(not i.difficult[t] for i, t in objects)
    taken: set[tuple[str, int]] = set()
    outcomes = []
    for _, source, box in ranked:
        best, chosen = -1.0, -1
        for i, t in objects:
            if i is source and overlap(box, i.true_boxes[t].tolist()) > best:
                best, chosen = overlap(box, i.true_boxes[t].tolist()), t
        if best < threshold:
            outcomes.append(False)
        elif not source.difficult[chosen]:
            outcomes.append((source.key, chosen) not in taken)
            taken.add((source.key, chosen))
    return curve(outcomes, positives)


def curve(outcomes: list[bool], positives: int) -> ClassPrecision:
    if not positives:
        return ClassPrecision(None, None, None)
    hits = [sum(outcomes[: n + 1]) for n in range(len(outcomes))]
    points = [(hit, hit / (n + 1)) for n, hit in enumerate(hits)]

    def best(recall: float) -> float:
        return max((precision for hit, precision in points if hit / positives >= recall), default=0.0)

    return ClassPrecision(
        ap=sum(best((n + 1) / positives) for n in range(positives)) / positives,
        ap_11_point=sum(best(t) for t in np.linspace(0, 1, 11)) / 11,
        recall=max(hits, default=0) / positives,
    )


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


# Few places and sizes, so that boxes overlap, coincide and compete.
boxes = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)),
    *(st.integers(0, 3), st.integers(0, 3), st.sampled_from([2, 3, 4]), st.sampled_from([2, 3, 4])),
)
found_lists = st.lists(st.tuples(boxes, st.integers(1, 20).map(lambda n: n / 20), st.integers(0, 1)), max_size=5)
true_lists = st.lists(st.tuples(boxes, st.integers(0, 1), st.booleans()), max_size=4)
image_lists = st.lists(st.tuples(found_lists, true_lists), min_size=1, max_size=3).map(
    lambda drawn: [image(str(n), *lists) for n, lists in enumerate(drawn)]
)


@settings(max_examples=150, deadline=None)
@given(image_lists, st.sampled_from([0.3, 0.5, 0.75]))
def test_random_cases_agree_with_the_devkits_loop(images: list[ImageDetections], threshold: float) -> None:
    for label, result in enumerate(voc_precision(images, classes=2, threshold=threshold)):
        expected = devkit(images, label, threshold)
        for name in ("ap", "ap_11_point", "recall"):
            assert getattr(result, name) == pytest.approx(getattr(expected, name), abs=1e-9), name


# --- cases by hand -----------------------------------------------------------------------------------------------

HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def ap(found: Sequence[Found], true: Sequence[True_]) -> float | None:
    return voc_precision([image("only", found, true)], classes=1)[0].ap


def test_a_second_detection_of_an_object_is_a_false_positive() -> None:
    twice = [(HERE, 0.9, 0), (HERE, 0.8, 0), (THERE, 0.7, 0)]
    assert ap(twice, [(HERE, 0, False), (THERE, 0, False)]) == pytest.approx((1 + 2 / 3) / 2)


def test_a_duplicate_does_not_fall_back_on_an_object_that_it_overlaps_less() -> None:
    """Both detections overlap the first object most; COCO's matching would give the second one the other object."""
    neighbour = (0.0, 1.0, 10.0, 11.0)
    both = [(HERE, 0.9, 0), ((0.0, 0.2, 10.0, 10.2), 0.8, 0)]
    assert ap(both, [(HERE, 0, False), (neighbour, 0, False)]) == pytest.approx(1 / 2)


def test_difficult_objects_are_ignored_not_dropped() -> None:
    true = [(HERE, 0, True), (THERE, 0, False)]
    assert ap([(HERE, 0.9, 0), (HERE, 0.8, 0), (THERE, 0.7, 0)], true) == 1.0
    assert ap([(THERE, 0.7, 0)], true) == 1.0
    assert ap([(THERE, 0.7, 0)], [(THERE, 0, True)]) is None


def test_the_threshold_itself_is_a_hit() -> None:
    assert ap([((0.0, 0.0, 10.0, 5.0), 0.9, 0)], [(HERE, 0, False)]) == 1.0


def test_nothing_to_find_and_nothing_found() -> None:
    assert voc_precision([], classes=2) == [ClassPrecision(None, None, None)] * 2
    assert ap([], [(HERE, 0, False)]) == 0.0
    assert ap([(HERE, 0.9, 0)], []) is None


# --- COCO --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(image_lists)
def test_eleven_points_agree_with_torchmetrics_where_no_object_is_matched_twice(images: list[ImageDetections]) -> None:
    """COCO's matching differs only for competing boxes, so each image keeps one detection and one object per class."""
    from torchmetrics.detection import MeanAveragePrecision

    lone = [first_of_each_class(i) for i in images]
    metric = MeanAveragePrecision(
        iou_thresholds=[0.5], rec_thresholds=np.linspace(0, 1, 11).tolist(), backend="faster_coco_eval"
    )
    metric.update(
        [{"boxes": i.boxes, "scores": i.scores, "labels": i.classes} for i in lone],
        [{"boxes": i.true_boxes, "labels": i.true_classes} for i in lone],
    )
    theirs = float(metric.compute()["map"])
    ours = [c.ap_11_point for c in voc_precision(lone, classes=2) if c.ap_11_point is not None]
    assert theirs == pytest.approx(sum(ours) / len(ours) if ours else -1, abs=1e-6)


def first_of_each_class(i: ImageDetections) -> ImageDetections:
    d = [i.classes.tolist().index(label) for label in sorted(set(i.classes.tolist()))]
    t = [i.true_classes.tolist().index(label) for label in sorted(set(i.true_classes.tolist()))]
    nothing = torch.zeros(len(t), dtype=torch.bool)
    return ImageDetections(i.key, i.boxes[d], i.scores[d], i.classes[d], i.true_boxes[t], i.true_classes[t], nothing)


def test_coco_ignores_difficult_objects_too() -> None:
    true = [(HERE, 0, True), (THERE, 0, False)]
    expected = pytest.approx({"map": 1.0, "map50_coco": 1.0, "map75": 1.0})
    assert coco_metrics([image("a", [(HERE, 0.9, 0), (HERE, 0.8, 0), (THERE, 0.7, 0)], true)]) == expected
    assert coco_metrics([image("a", [(THERE, 0.7, 0)], true)]) == expected


def test_coco_grades_by_overlap() -> None:
    """An IoU of 0.82 passes seven of the ten thresholds 0.5, 0.55, ..., 0.95."""
    values = coco_metrics([image("a", [((0.0, 0.0, 10.0, 8.2), 0.9, 0)], [(HERE, 0, False)])])
    assert values == pytest.approx({"map": 0.7, "map50_coco": 1.0, "map75": 1.0}, abs=1e-6)


def test_coco_metrics_are_none_without_objects() -> None:
    nothing = {"map": None, "map50_coco": None, "map75": None}
    assert coco_metrics([image("a", [(HERE, 0.9, 0)], [])]) == nothing
    assert coco_metrics([]) == nothing
