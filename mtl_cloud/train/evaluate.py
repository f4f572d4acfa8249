"""One pass over the validation split: losses, metrics of every task, and a few images to look at."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mtl_cloud.records import RoundSamples
from mtl_cloud.tasks import Task
from mtl_cloud.train.batch import Batch
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.meters import LossMeter
from mtl_cloud.train.tasks.base import Evaluator, LossTerm, Outputs, TaskHead, TaskMetrics

__all__ = ["Validation", "draw_samples", "forward", "loss_terms", "sums", "validate"]

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Validation:
    """The outcome over all processes; only tasks with a labelled sample appear in ``metrics``."""

    losses: dict[Task, float | None]
    metrics: dict[Task, TaskMetrics]
    skipped: frozenset[str]
    """Keys of the damaged samples that were passed over."""


def forward(network: nn.Module, images: Tensor, autocast: Autocast, tasks: Collection[Task] | None = None) -> Outputs:
    """The network's outputs for ``tasks`` (default all) in float32, whatever precision it computed in.

    ``images`` are 0..1.
    """
    with autocast():
        outputs = network(images, tasks)
    return {task: _as_float(output) for task, output in outputs.items()}


def _as_float(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, Mapping):
        return {key: _as_float(value) for key, value in output.items()}
    return tuple(_as_float(value) for value in output)


def loss_terms(heads: Mapping[Task, TaskHead], outputs: Outputs, batch: Batch) -> list[LossTerm]:
    """In the heads' order; a task without an output counts nothing."""
    nothing = torch.zeros((), device=batch.images.device)
    return [
        head.loss(outputs[task], batch) if task in outputs else LossTerm(nothing, nothing)
        for task, head in heads.items()
    ]


def sums(terms: Sequence[LossTerm]) -> Tensor:
    """[2, tasks]: totals and counts, without gradient."""
    return torch.stack([torch.stack([t.total.detach() for t in terms]), torch.stack([t.count for t in terms])])


def validate(
    network: nn.Module,
    heads: Mapping[Task, TaskHead],
    batches: Iterable[Batch],
    *,
    group: ProcessGroup,
    autocast: Autocast,
    interrupted: Callable[[], bool],
) -> Validation | None:
    """Evaluate ``network`` (left in evaluation mode); None when ``interrupted`` became true in any process."""
    network.eval()
    evaluators: dict[Task, Evaluator] = {task: head.evaluator() for task, head in heads.items()}
    meter = LossMeter(tuple(heads), group.device)
    stopped, skipped = False, set[str]()
    with torch.inference_mode():
        for host_batch in batches:
            stopped = stopped or interrupted()
            if stopped:
                break
            skipped.update(host_batch.skipped)
            batch = host_batch.to(group.device)
            outputs = forward(network, batch.floats(), autocast)
            meter.add(*sums(loss_terms(heads, outputs, batch)))
            for task, evaluator in evaluators.items():
                evaluator.update(outputs[task], batch)
    return None if group.any(stopped) else _reduce(evaluators, meter, skipped, group)


def _reduce(evaluators: dict[Task, Evaluator], meter: LossMeter, skipped: set[str], group: ProcessGroup) -> Validation:
    meter.totals, meter.counts = group.sum(meter.totals), group.sum(meter.counts)
    first, *others = group.gather(evaluators)
    for other in others:
        for task, evaluator in first.items():
            evaluator.merge(other[task])
    losses = meter.means()
    metrics = {task: e.compute() for task, e in first.items() if losses[task] is not None}
    return Validation(losses, metrics, frozenset().union(*group.gather(skipped)))


def draw_samples(
    network: nn.Module,
    heads: Mapping[Task, TaskHead],
    batch: Batch,
    *,
    device: torch.device,
    autocast: Autocast,
    round_number: int,
) -> RoundSamples:
    """The images of ``batch`` with truth and prediction side by side, as the network sees them."""
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
    """A prediction without the rows of scores and boxes that are not finite: JSON has no word for those."""
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
