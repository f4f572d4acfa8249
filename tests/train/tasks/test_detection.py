"""Decoding of logits to boxes, non-maximum suppression, and the evaluator's metrics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from narrowing import present
from task_cases import CLASSES, random_batch, random_outputs
from torch import Tensor

from mtl_cloud.train.nets.anchors import ANCHOR_MASKS, ANCHORS, STRIDES
from mtl_cloud.train.tasks import DetectionHead
from mtl_cloud.train.tasks.detection import detect
from mtl_cloud.train.tasks.yolo_grid import decode, flatten, grid_of

SIZE = 64


def outputs_of(seed: int, images: int = 2) -> tuple[Tensor, ...]:
    return tuple(output.detach() for output in random_outputs(seed, images=images)["detection"])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(outputs: tuple[Tensor, ...], image: int) -> list[tuple[list[float], list[float]]]:
    """Box (left, top, right, bottom) and class scores of every prediction, computed one at a time."""
    found = []
    for output, stride, mask in zip(outputs, STRIDES, ANCHOR_MASKS, strict=True):
        for n, anchor in enumerate(mask):
            for row in range(SIZE // stride):
                for column in range(SIZE // stride):
                    x, y, w, h, objectness, *scores = output[image, n, row, column].tolist()
                    cx, cy = (column + sigmoid(x)) * stride, (row + sigmoid(y)) * stride
                    half_w, half_h = math.exp(w) * ANCHORS[anchor][0] / 2, math.exp(h) * ANCHORS[anchor][1] / 2
                    box = [cx - half_w, cy - half_h, cx + half_w, cy + half_h]
                    found.append((box, [sigmoid(objectness) * sigmoid(score) for score in scores]))
    return found


def overlap(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def suppressed_by_hand(found: list[tuple[list[float], list[float]]], confidence: float) -> list[tuple[float, int]]:
    """Score and class of the detections that darknet's ``do_nms_sort`` keeps, class by class."""
    left = []
    for label in range(len(CLASSES)):
        ranked = sorted(((scores[label], box) for box, scores in found if scores[label] > confidence), reverse=True)
        kept: list[tuple[float, list[float]]] = []
        for score, box in ranked:
            if all(overlap(box, other) <= 0.45 for _, other in kept):
                kept.append((score, box))
        left += [(score, label) for score, _ in kept]
    return sorted(left, reverse=True)


def test_decoding_is_the_papers_formula_for_every_prediction() -> None:
    outputs = outputs_of(0)
    boxes = decode(flatten(outputs), grid_of(outputs, ANCHORS))
    expected = torch.tensor([[box for box, _ in by_hand(outputs, image)] for image in range(2)])
    torch.testing.assert_close(boxes, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("confidence", [0.25, 0.4])
def test_suppression_is_darknets_per_class(confidence: float) -> None:
    outputs = outputs_of(1)
    for image, (boxes, scores, classes) in enumerate(detect(outputs, ANCHORS, confidence=confidence)):
        expected = suppressed_by_hand(by_hand(outputs, image), confidence)[:100]
        assert classes.tolist() == [label for _, label in expected]
        assert scores.tolist() == pytest.approx([score for score, _ in expected], abs=1e-6)
        assert boxes.min() >= 0
        assert boxes.max() <= SIZE


def test_an_untrained_network_leaves_a_hundred_boxes_an_image_at_most() -> None:
    boxes, scores, _ = detect(outputs_of(2), ANCHORS, confidence=0.005)[0]
    assert len(boxes) == 100
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def outputs_with(box: tuple[float, float, float, float], label: int, logit: float = 9.0) -> tuple[Tensor, ...]:
    """Outputs that predict only ``box``, with the second anchor (16 x 30)."""
    outputs = tuple(torch.full((1, 3, SIZE // s, SIZE // s, 5 + len(CLASSES)), -20.0) for s in STRIDES)
    x, y = (box[0] + box[2]) / 2 / 8, (box[1] + box[3]) / 2 / 8
    entry = outputs[2][0, 1, int(y), int(x)]
    entry[:2] = torch.logit(torch.tensor([x - int(x), y - int(y)]))
    entry[2:4] = torch.tensor([(box[2] - box[0]) / 16, (box[3] - box[1]) / 30]).log()
    entry[4], entry[5 + label] = logit, logit
    return outputs


def test_a_perfect_network_scores_one_and_predicts_the_box() -> None:
    box = (10.0, 12.0, 25.0, 45.0)
    batch = replace(
        random_batch(0, images=1),
        boxes=torch.tensor([box]),
        box_image=torch.tensor([0]),
        box_class=torch.tensor([3]),
        box_difficult=torch.tensor([False]),
    )
    head = DetectionHead(CLASSES)
    evaluator = head.evaluator()
    evaluator.update(outputs_with(box, 3), batch)
    metrics = evaluator.compute()
    assert metrics.values == pytest.approx(dict.fromkeys(metrics.values, 1.0), abs=1e-6)
    assert metrics.per_class["ap50_voc"] == {name: 1.0 if name == CLASSES[3] else None for name in CLASSES}
    ((name, score, *predicted),) = json.loads(json.dumps(head.predict(outputs_with(box, 3))))[0]["boxes"]
    assert name == CLASSES[3]
    assert score > 0.99
    assert predicted == pytest.approx(box, abs=1e-3)


def test_equal_scores_rank_the_same_in_whatever_order_images_come() -> None:
    """A hit and a false positive have the same score, so average precision depends on their order."""
    box, elsewhere = (10.0, 12.0, 25.0, 45.0), (30.0, 12.0, 45.0, 45.0)
    lone: dict[str, Any] = {
        "box_image": torch.tensor([0]),
        "box_class": torch.tensor([3]),
        "box_difficult": torch.tensor([False]),
    }
    hit, miss = (
        replace(random_batch(0, images=1, prefix=prefix), boxes=torch.tensor([where]), **lone)
        for prefix, where in (("hit", box), ("miss", elsewhere))
    )
    outcomes = []
    for order in ((hit, miss), (miss, hit)):
        evaluator = DetectionHead(CLASSES).evaluator()
        for batch in order:
            evaluator.update(outputs_with(box, 3), batch)
        outcomes.append(evaluator.compute())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].values["map50_voc"] == 0.5


@pytest.mark.parametrize("box_loss", ["darknet", "giou", "ciou"])
def test_logits_that_descend_the_loss_find_every_object(box_loss: Literal["darknet", "giou", "ciou"]) -> None:
    """Logits optimised with the loss get a perfect score: loss, decoding, NMS and evaluation agree on boxes."""
    batch, head = random_batch(2, images=6), DetectionHead(CLASSES, box_loss=box_loss)
    outputs = tuple(output.mul(0.1).requires_grad_() for output in outputs_of(3, images=6))
    optimizer = torch.optim.Adam(outputs, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(outputs, batch).total.backward()
        optimizer.step()
    evaluator = head.evaluator()
    evaluator.update(outputs, batch)
    values = evaluator.compute().values
    assert values["map50_voc"] == values["map50_voc07"] == values["recall50"] == 1.0
    assert present(values["map"]) > 0.9


def test_predictions_shown_are_those_over_a_quarter() -> None:
    box = (10.0, 12.0, 25.0, 45.0)
    # Objectness and class probability of 0.5 each give a score of exactly a quarter.
    assert DetectionHead(CLASSES).predict(outputs_with(box, 3, logit=0.0)) == [{"boxes": []}]
    assert len(DetectionHead(CLASSES).predict(outputs_with(box, 3, logit=0.1))[0]["boxes"]) == 1


def test_a_grid_first_built_for_validation_serves_training() -> None:
    """The cached grid must not be created in inference mode, because such tensors cannot be used in a backward pass."""
    outputs = tuple(torch.zeros(1, 3, 96 // s, 96 // s, 5 + len(CLASSES)) for s in STRIDES)
    with torch.inference_mode():
        detect(outputs, ANCHORS, confidence=0.5)
    assert not grid_of(outputs, ANCHORS).stride.is_inference()
    trained = tuple(output.requires_grad_() for output in outputs)
    DetectionHead(CLASSES, box_loss="giou").loss(trained, random_batch(0, images=1, size=96)).total.backward()
    assert trained[0].grad is not None
