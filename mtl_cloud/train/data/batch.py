"""A batch of samples with partial labels: every image, and beside it only the labels that its dataset has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.crops import Cuts

__all__ = ["Batch"]

_SMALL_BYTES = 1 << 16


@dataclass(frozen=True)
class Batch:
    """B images of S x S pixels, M boxes in all. Tensors lie on one device.

    A sample without a task's label has ``has[task]`` False and a neutral filler in the label's place; losses and
    metrics count only samples whose ``has`` is True.
    """

    keys: tuple[str, ...]
    images: Tensor
    """[B, 3, S, S] uint8, RGB, in any memory format; [B, 3, 0, 0] while there are ``cuts``."""
    has: Mapping[Task, Tensor]
    """task -> [B] bool: does the sample carry that label? Only the job's tasks appear."""
    labels: Tensor
    """[B] int64 class index (0 where absent); or [B, classes] float32: 1 present, 0 absent, -1 unknown."""
    boxes: Tensor
    """[M, 4] float32 left, top, right, bottom, in pixels of the batch's images."""
    box_image: Tensor
    """[M] int64: which image of the batch."""
    box_class: Tensor
    """[M] int64."""
    box_difficult: Tensor
    """[M] bool: VOC's flag."""
    masks: Tensor
    """[B, S, S] uint8 class index, 255 where unknown or absent; [B, 0, 0] where segmentation is not a task."""
    color: Tensor | None = None
    """[B, 3] float32 factors of brightness, contrast and saturation to apply on the device; None in validation."""
    cuts: Cuts | None = None
    """What a loader has of the images: ``to`` makes these of it."""
    skipped: tuple[str, ...] = ()
    """Keys of damaged samples that others stand in for (``on_bad_sample: skip``)."""

    def __len__(self) -> int:
        return len(self.images)

    def floats(self) -> Tensor:
        """[B, 3, S, S] the images in 0..1, in the memory format that networks have on their device."""
        images = self.images if self.images.is_cuda else self.images.contiguous()
        return images.float() / 255

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, with its images; copies from pinned memory do not block."""
        batch = self if self.cuts is None else replace(self, images=self.cuts.squares(device), cuts=None)
        return batch._map(lambda tensor: tensor.to(device, non_blocking=True))  # noqa: SLF001  # its own class

    def pin_memory(self) -> Batch:
        """A copy in pinned memory. Called by the DataLoader in its pinning thread."""
        return self._map(Tensor.pin_memory)

    def copy(self) -> Batch:
        """A copy in this process's own memory."""
        return self._map(Tensor.clone)

    def __getstate__(self) -> dict[str, Any]:
        """Small tensors go to another process by value: torch would open a file and a connection for each of them."""
        return {name: _mapped(value, Tensor, _by_value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: _mapped(value, np.ndarray, torch.from_numpy) for name, value in state.items()})

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: _mapped(value, Tensor, move) for name, value in vars(self).items()})


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``value`` with ``change`` made to what is of ``kind`` in it."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, Cuts):
        return Cuts(*(_mapped(item, kind, change) for item in value))
    return value


def _by_value(tensor: Tensor) -> Any:
    small = tensor.nbytes < _SMALL_BYTES and tensor.is_contiguous()  # NumPy forgets any other layout
    return tensor.numpy() if small else tensor
