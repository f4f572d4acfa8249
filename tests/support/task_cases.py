"""Random batches with partial labels, and network outputs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtl_cloud.tasks import TASKS, Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.nets.anchors import STRIDES

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def random_batch(
    seed: int, *, images: int = 4, size: int = 64, multi_label: bool = False, prefix: str = "image"
) -> Batch:
    """A batch whose samples carry each label with probability 2/3, the first image always."""
    draw = torch.Generator().manual_seed(seed)
    has = {task: torch.rand(images, generator=draw) < 2 / 3 for task in TASKS}
    for present in has.values():
        present[0] = True
    count = len(CLASSES)
    labels = torch.randint(count, (images,), generator=draw)
    sets = torch.randint(-1, 2, (images, count), generator=draw).float()
    box_image = torch.randint(images, (3 * images,), generator=draw).sort().values
    box_image = box_image[has["detection"][box_image]]
    corners = torch.rand(len(box_image), 2, 2, generator=draw).sort(1).values * (size - 4)
    corners[:, 1] += 4
    return Batch(
        keys=tuple(f"{prefix}-{seed}-{i}" for i in range(images)),
        images=torch.zeros(images, 3, size, size, dtype=torch.uint8),
        has=has,
        labels=sets if multi_label else labels.where(has["classification"], 0),
        boxes=corners.flatten(1),
        box_image=box_image,
        box_class=torch.randint(count, box_image.shape, generator=draw),
        box_difficult=torch.rand(box_image.shape, generator=draw) < 0.2,
        masks=_masks(draw, images, size, has["segmentation"]),
    )


def _masks(draw: torch.Generator, images: int, size: int, has: Tensor) -> Tensor:
    masks = torch.randint(len(CLASSES), (images, size, size), generator=draw).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=draw) < 0.1] = 255
    masks[~has] = 255
    return masks


def random_outputs(seed: int, *, images: int = 4, size: int = 64, classes: int = len(CLASSES)) -> dict[Task, Any]:
    """Logits of all tasks, as leaf tensors that require gradients."""
    draw = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).requires_grad_()

    return {
        "classification": logits(images, classes),
        "detection": tuple(logits(images, 3, size // s, size // s, 5 + classes) for s in STRIDES),
        "segmentation": {"out": logits(images, classes, size, size), "aux": logits(images, classes, size, size)},
    }


def tensors(output: Any) -> list[Tensor]:
    """The tensors of one task's output."""
    if isinstance(output, Tensor):
        return [output]
    return list(output.values() if isinstance(output, Mapping) else output)


def pick(output: Any, images: Sequence[int]) -> Any:
    """One task's output for some of the images, in that order."""
    if isinstance(output, Tensor):
        return output[list(images)]
    if isinstance(output, Mapping):
        return {name: pick(value, images) for name, value in output.items()}
    return tuple(pick(value, images) for value in output)


def pick_batch(batch: Batch, images: Sequence[int]) -> Batch:
    """Some of the batch's images, in that order, each with its boxes in their own order."""
    chosen = list(images)
    rows = [m for i in chosen for m in (batch.box_image == i).nonzero().flatten().tolist()]
    place = {i: new for new, i in enumerate(chosen)}
    return replace(
        batch,
        keys=tuple(batch.keys[i] for i in chosen),
        has={task: present[chosen] for task, present in batch.has.items()},
        box_image=torch.tensor([place[int(batch.box_image[m])] for m in rows], dtype=torch.int64),
        **{name: getattr(batch, name)[chosen] for name in ("images", "labels", "masks")},
        **{name: getattr(batch, name)[rows] for name in ("boxes", "box_class", "box_difficult")},
    )
