"""Validation images with truth and prediction, for the report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mtl_cloud.runs.schema import RoundSamples
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks.base import TaskHead
from mtl_cloud.train.tasks.losses import Autocast, forward

__all__ = ["render_samples"]


def render_samples(
    network: nn.Module,
    heads: Mapping[Task, TaskHead],
    batch: Batch,
    *,
    device: torch.device,
    autocast: Autocast,
    round_number: int,
) -> RoundSamples:
    """Predict on ``batch``. Returns its images as the network sees them, with ground truth and prediction."""
    network.eval()
    with torch.inference_mode():
        outputs = forward(network, batch.to(device).floats(), autocast)
        predictions = {task: head.predict(outputs[task]) for task, head in heads.items()}
    classes = {task: list(head.classes) for task, head in heads.items()}
    samples = [
        {
            "key": key,
            "image": _png(batch.images[i].permute(1, 2, 0)),
            "truth": _truth(batch, i, classes),
            "prediction": {name: _finite(value) for found in predictions.values() for name, value in found[i].items()},
        }
        for i, key in enumerate(batch.keys)
    ]
    return RoundSamples(
        round=round_number, classes={str(task): names for task, names in classes.items()}, samples=samples
    )


def _finite(entries: Any) -> Any:
    """Drop the rows of a prediction with scores or boxes that are not finite: JSON cannot hold them."""
    if not isinstance(entries, list):
        return entries
    return [row for row in entries if all(math.isfinite(value) for value in row if isinstance(value, float))]


def _truth(batch: Batch, i: int, classes: Mapping[Task, Sequence[str]]) -> dict[str, Any]:
    truth: dict[str, Any] = {}
    has = {task for task, present in batch.has.items() if present[i]}
    if "classification" in has:
        label = batch.labels[i]
        present = [int(label)] if label.ndim == 0 else (label == 1).nonzero().flatten().tolist()
        truth["classes"] = [[classes["classification"][c], 1.0] for c in present]
    if "detection" in has:
        mine = (batch.box_image == i).nonzero().flatten().tolist()
        names = classes["detection"]
        truth["boxes"] = [[names[int(batch.box_class[m])], 1.0, *batch.boxes[m].tolist()] for m in mine]
    if "segmentation" in has:
        truth["mask"] = _png(batch.masks[i])
    return truth


def _png(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
