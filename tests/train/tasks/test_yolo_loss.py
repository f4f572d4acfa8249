"""YOLOv3's loss against a slow per-box reference of darknet's deltas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import grad_of
from task_cases import CLASSES, random_batch, random_outputs
from torch import Tensor

from mtl_cloud.tasks import TASKS
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.nets.anchors import ANCHOR_MASKS, ANCHORS, STRIDES
from mtl_cloud.train.tasks import DetectionHead

SIZE = 64
Box = tuple[float, float, float, float]


# --- the reference: rules of darknet's src/yolo_layer.c, one box and one prediction at a time --------------------


def overlap(a: Box, b: Box) -> float:
    """IoU of two boxes (centre x, centre y, width, height)."""

    def shared(x: float, w: float, other_x: float, other_w: float) -> float:
        return min(x + w / 2, other_x + other_w / 2) - max(x - w / 2, other_x - other_w / 2)

    w, h = shared(a[0], a[2], b[0], b[2]), shared(a[1], a[3], b[1], b[3])
    if w < 0 or h < 0:
        return 0.0
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def truths_of(batch: Batch, image: int) -> list[tuple[Box, int]]:
    """Boxes relative to the image, and classes; without difficult boxes and those with a side under 0.001."""
    found = []
    for m in range(len(batch.boxes)):
        x1, y1, x2, y2 = (v / SIZE for v in batch.boxes[m].tolist())
        usable = not batch.box_difficult[m] and x2 - x1 >= 0.001 and y2 - y1 >= 0.001
        if batch.box_image[m] == image and usable:
            found.append((((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), int(batch.box_class[m])))
    return found


def darknet_deltas(outputs: tuple[Tensor, ...], batch: Batch, threshold: float) -> list[np.ndarray[Any, Any]]:
    """Darknet's deltas for the three scales: the negative gradient at the logits."""
    logits = [output.detach().double().numpy() for output in outputs]
    deltas = [np.zeros_like(scale) for scale in logits]
    for image in range(len(batch)):
        if batch.has["detection"][image]:
            truths = truths_of(batch, image)
            for scale in range(3):
                teach_background(logits[scale][image], deltas[scale][image], truths, scale, threshold)
            taught: set[tuple[int, ...]] = set()
            for truth, label in truths:
                teach_object([x[image] for x in logits], [d[image] for d in deltas], truth, label, taught)
    return deltas


def teach_background(logits: Any, delta: Any, truths: list[tuple[Box, int]], scale: int, threshold: float) -> None:
    cells = SIZE // STRIDES[scale]
    for n, j, i in np.ndindex(3, cells, cells):
        x, y, w, h, objectness = logits[n, j, i, :5]
        width, height = ANCHORS[ANCHOR_MASKS[scale][n]]
        box = ((i + logistic(x)) / cells, (j + logistic(y)) / cells)
        sides = (math.exp(w) * width / SIZE, math.exp(h) * height / SIZE)
        if all(overlap(box + sides, truth) <= threshold for truth, _ in truths):
            delta[n, j, i, 4] = 0 - logistic(objectness)


def teach_object(logits: list[Any], deltas: list[Any], truth: Box, label: int, taught: set[tuple[int, ...]]) -> None:
    x, y, w, h = truth
    fits = [overlap((0, 0, w, h), (0, 0, aw / SIZE, ah / SIZE)) for aw, ah in ANCHORS]
    best = fits.index(max(fits))
    scale = next(k for k in range(3) if best in ANCHOR_MASKS[k])
    cells, n = SIZE // STRIDES[scale], ANCHOR_MASKS[scale].index(best)
    i, j = min(int(x * cells), cells - 1), min(int(y * cells), cells - 1)
    out, delta = logits[scale][n, j, i], deltas[scale][n, j, i]
    weight = 2 - w * h
    delta[0] = weight * (x * cells - i - logistic(out[0]))
    delta[1] = weight * (y * cells - j - logistic(out[1]))
    delta[2] = weight * (math.log(w * SIZE / ANCHORS[best][0]) - out[2])
    delta[3] = weight * (math.log(h * SIZE / ANCHORS[best][1]) - out[3])
    delta[4] = 1 - logistic(out[4])
    if (scale, n, j, i) not in taught:
        for c in range(len(out) - 5):
            delta[5 + c] = 0 - logistic(out[5 + c])
    delta[5 + label] = 1 - logistic(out[5 + label])
    taught.add((scale, n, j, i))


# --- random cases ------------------------------------------------------------------------------------------------

coordinate = st.floats(0, SIZE, width=32)
side = st.sampled_from([1e-4, 0.05, 0.07, 3.0, 10.0, 20.0, 33.0, 64.0]) | st.floats(0.5, SIZE, width=32)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Two images. Centres are drawn from a few places, so that objects have the same cell and anchor."""
    places = draw(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=3))
    sides = draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    centre, extent = st.sampled_from(places), st.sampled_from(sides)
    objects = draw(st.lists(st.tuples(centre, extent, st.integers(0, 1), st.integers(0, 2)), max_size=8))
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for (x, y), (w, h), _, _ in objects]
    return replace(
        random_batch(0, images=2),
        has={task: torch.tensor([True, draw(st.booleans())]) for task in TASKS},
        boxes=torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        box_image=torch.tensor([image for *_, image, _ in objects], dtype=torch.int64),
        box_class=torch.tensor([label for *_, label in objects], dtype=torch.int64),
        box_difficult=torch.tensor([draw(st.integers(0, 5)) == 0 for _ in objects], dtype=torch.bool),
    )


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.7]))
def test_the_gradient_at_the_logits_is_minus_darknets_delta(batch: Batch, seed: int, threshold: float) -> None:
    outputs = random_outputs(seed, images=2, classes=3)["detection"]
    outputs = tuple(output.detach().double().requires_grad_() for output in outputs)
    DetectionHead(CLASSES[:3], ignore_threshold=threshold).loss(outputs, batch).total.backward()
    for output, delta in zip(outputs, darknet_deltas(outputs, batch, threshold), strict=True):
        np.testing.assert_allclose(output.grad.numpy(), -delta, rtol=1e-6, atol=1e-6)


def test_the_random_cases_reach_what_they_are_to_reach() -> None:
    """The reference produces collisions and ignored predictions, so the comparison covers them."""
    box = (20.0, 20.0, 36.0, 50.0)
    batch = replace(
        random_batch(0, images=1),
        boxes=torch.tensor([box, box]),
        box_image=torch.tensor([0, 0]),
        box_class=torch.tensor([0, 2]),
        box_difficult=torch.tensor([False, False]),
    )
    outputs = tuple(torch.zeros_like(o) for o in random_outputs(0, images=1, classes=3)["detection"])
    deltas = np.concatenate([d.reshape(-1, 8) for d in darknet_deltas(outputs, batch, 0.5)])
    (taught,) = deltas[deltas[:, 4] > 0]
    assert taught[5:].tolist() == [0.5, -0.5, 0.5]
    assert 0 < (deltas[:, 4] == 0).sum() < 20


def test_single_precision_agrees_too() -> None:
    batch, outputs = random_batch(5), random_outputs(6)["detection"]
    DetectionHead(CLASSES).loss(outputs, batch).total.backward()
    for output, delta in zip(outputs, darknet_deltas(outputs, batch, 0.5), strict=True):
        np.testing.assert_allclose(output.grad.numpy(), -delta, rtol=1e-5, atol=1e-6)


# --- by hand -----------------------------------------------------------------------------------------------------

SQUARES = ((4, 4), (8, 8), (16, 8), (16, 16), (32, 32), (40, 40), (48, 48), (56, 56), (64, 64))


def one_object(box: Box, *, difficult: bool = False) -> Batch:
    return replace(
        random_batch(0, images=1),
        boxes=torch.tensor([box]),
        box_image=torch.tensor([0]),
        box_class=torch.tensor([1]),
        box_difficult=torch.tensor([difficult]),
    )


def zero_outputs() -> tuple[Tensor, ...]:
    return tuple(torch.zeros(1, 3, SIZE // s, SIZE // s, 8, requires_grad=True) for s in STRIDES)


@pytest.mark.parametrize(("threshold", "gradient"), [(0.5, 0.5), (0.4999, 0.0)])
def test_a_prediction_is_ignored_strictly_over_the_threshold(threshold: float, gradient: float) -> None:
    """The 16 x 16 prediction of stride 16's first cell covers the 16 x 8 object with an IoU of exactly one half."""
    outputs = zero_outputs()
    head = DetectionHead(CLASSES[:3], SQUARES, ignore_threshold=threshold)
    head.loss(outputs, one_object((0, 0, 16, 8))).total.backward()
    assert grad_of(outputs[1])[0, 0, 0, 0, 4] == gradient


def test_an_object_teaches_the_cell_of_its_centre_and_the_anchor_of_its_shape() -> None:
    outputs = zero_outputs()
    DetectionHead(CLASSES[:3], SQUARES).loss(outputs, one_object((18, 34, 34, 42))).total.backward()
    found = [tuple(row) for output in outputs for row in grad_of(output)[..., 5].nonzero().tolist()]
    assert found == [(0, 2, 4, 3)]
    scale = 2 - 16 * 8 / SIZE**2
    taught = grad_of(outputs[2])[0, 2, 4, 3]
    # Centre (26, 38): a quarter into column 3, three quarters into row 4; the shape is the anchor's own.
    torch.testing.assert_close(taught, torch.tensor([scale * 0.25, scale * -0.25, 0, 0, -0.5, 0.5, -0.5, 0.5]))


def test_an_object_centred_on_the_far_edge_teaches_the_last_cell() -> None:
    outputs = zero_outputs()
    DetectionHead(CLASSES[:3], SQUARES).loss(outputs, one_object((60, 60, 68, 68))).total.backward()
    found = [tuple(row) for output in outputs for row in grad_of(output)[..., 5].nonzero().tolist()]
    assert found == [(0, 1, 7, 7)]


def test_a_difficult_box_is_not_matched_and_ignores_no_prediction() -> None:
    with_box, without = zero_outputs(), zero_outputs()
    head = DetectionHead(CLASSES[:3], ignore_threshold=0.3)
    head.loss(with_box, one_object((10, 10, 40, 50), difficult=True)).total.backward()
    nothing = replace(one_object((10, 10, 40, 50), difficult=True), has={t: torch.tensor([True]) for t in TASKS})
    empty = {name: getattr(nothing, name)[:0] for name in ("boxes", "box_image", "box_class", "box_difficult")}
    head.loss(without, replace(nothing, **empty)).total.backward()
    assert all(torch.equal(grad_of(a), grad_of(b)) for a, b in zip(with_box, without, strict=True))


@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
def test_descending_an_iou_loss_brings_the_box_to_the_truth(box_loss: Any) -> None:
    head, truth = DetectionHead(CLASSES[:3], SQUARES, box_loss=box_loss), one_object((17.0, 33.0, 36.0, 41.0))
    outputs = zero_outputs()
    optimizer = torch.optim.Adam(outputs, lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(outputs, truth).total.backward()
        optimizer.step()
    found = head.predict(tuple(output.detach() for output in outputs))[0]["boxes"]
    assert found[0][0] == CLASSES[1]
    np.testing.assert_allclose(found[0][2:], [17, 33, 36, 41], atol=0.5)


@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
def test_iou_losses_add_one_minus_giou_scaled_by_relative_area(box_loss: Any) -> None:
    """GIoU and CIoU equal IoU for two boxes with one centre and one shape, the smaller within the larger."""
    anchors = tuple(anchor if anchor == (16, 8) else (2000, 2000) for anchor in SQUARES)
    outputs, truth = zero_outputs(), one_object((16, 34, 24, 38))  # the prediction: 12, 32, 28, 40
    loss = DetectionHead(CLASSES[:3], anchors, box_loss=box_loss).loss(outputs, truth).total
    objectness_and_classes = (sum(output[..., 4].numel() for output in outputs) + 3) * math.log(2)
    scale, iou = 2 - 8 * 4 / SIZE**2, (8 * 4) / (16 * 8)
    assert loss.item() == pytest.approx(objectness_and_classes + scale * (1 - iou), rel=1e-6)


@pytest.mark.parametrize("box_loss", ["darknet", "giou", "ciou"])
def test_wild_logits_keep_loss_and_gradient_finite(box_loss: Any) -> None:
    outputs = tuple((o.detach() * 60).requires_grad_() for o in random_outputs(3)["detection"])
    term = DetectionHead(CLASSES, box_loss=box_loss).loss(outputs, random_batch(3))
    term.total.backward()
    assert term.total.isfinite()
    assert all(output.grad.isfinite().all() for output in outputs)
