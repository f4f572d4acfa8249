"""Segmentation against counts of single pixels."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from task_cases import CLASSES, random_batch, random_outputs

from mtl_cloud.train.tasks import SegmentationHead

HEAD = SegmentationHead(CLASSES)


def test_the_loss_sums_over_labelled_pixels_and_adds_half_the_auxiliary() -> None:
    batch, output = random_batch(0, size=32), random_outputs(1, size=32)["segmentation"]
    term = HEAD.loss(output, batch)
    expected, pixels = 0.0, 0
    log_p = {name: logits.detach().double().log_softmax(1) for name, logits in output.items()}
    for i, y, x in np.ndindex(*batch.masks.shape):
        if batch.has["segmentation"][i] and (label := int(batch.masks[i, y, x])) != 255:
            pixels += 1
            expected -= float(log_p["out"][i, label, y, x] + 0.5 * log_p["aux"][i, label, y, x])
    assert term.total.item() == pytest.approx(expected, rel=1e-6)
    assert term.count == pixels


def test_metrics_are_those_of_counting_pixels_class_by_class() -> None:
    batch, output = random_batch(2, size=32), random_outputs(3, size=32)["segmentation"]
    evaluator = HEAD.evaluator()
    evaluator.update(output, batch)
    metrics = evaluator.compute()
    counted = (batch.masks != 255) & batch.has["segmentation"][:, None, None]
    truth, guess = batch.masks[counted].numpy(), output["out"].argmax(1)[counted].numpy()
    both = [((truth == c) & (guess == c)).sum() for c in range(len(CLASSES))]
    either = [((truth == c) | (guess == c)).sum() for c in range(len(CLASSES))]
    iou = [b / e for b, e in zip(both, either, strict=True)]
    recall = [b / (truth == c).sum() for c, b in enumerate(both)]
    assert list(metrics.per_class["iou"].values()) == pytest.approx(iou)
    assert metrics.values == pytest.approx(
        {
            "miou": np.mean(iou),
            "pixel_accuracy": (truth == guess).mean(),
            "mean_class_accuracy": np.mean(recall),
            "recall_macro": np.mean(recall),
        }
    )


def test_a_class_in_neither_truth_nor_prediction_has_no_iou_and_a_false_positive_has_zero() -> None:
    batch = random_batch(0, images=1, size=32)
    batch.masks.zero_()
    logits = torch.zeros(1, len(CLASSES), 32, 32)
    logits[:, 1, :, :16] = 1
    evaluator = HEAD.evaluator()
    evaluator.update({"out": logits}, batch)
    metrics = evaluator.compute()
    assert list(metrics.per_class["iou"].values()) == [0.5, 0.0, *[None] * 5]
    assert metrics.values["miou"] == 0.25


def test_predicted_masks_are_png_of_class_indices() -> None:
    output = random_outputs(4, images=2, size=32)["segmentation"]
    for prediction, expected in zip(HEAD.predict(output), output["out"].argmax(1), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(prediction["mask"])))
        assert np.array_equal(np.array(image), expected.numpy())
