"""A batch of samples with partial labels: each image has only the labels that its dataset provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_cloud.tasks import Task
from mtl_cloud.train.data.crops import Crops

__all__ = ["Batch"]

_SMALL_BYTES = 1 << 16


@dataclass(frozen=True)
class Batch:
    """B images of S x S pixels and M boxes in total. All tensors are on one device.

    A sample without a task's label has ``has[task]`` False and a neutral filler value as its label; losses and
    metrics count only samples whose ``has`` is True.
    """

    keys: tuple[str, ...]
    images: Tensor
    """[B, 3, S, S] uint8, RGB, in any memory format; [B, 3, 0, 0] while ``crops`` is set."""
    has: Mapping[Task, Tensor]
    """task -> [B] bool: whether the sample has that label. Only the job's tasks appear."""
    labels: Tensor
    """[B] int64 class index (0 where absent); or [B, classes] float32: 1 present, 0 absent, -1 unknown."""
    boxes: Tensor
    """[M, 4] float32 left, top, right, bottom, in pixels of the batch's images."""
    box_image: Tensor
    """[M] int64: index of the image in the batch."""
    box_class: Tensor
    """[M] int64."""
    box_difficult: Tensor
    """[M] bool: VOC's flag."""
    masks: Tensor
    """[B, S, S] uint8 class index, 255 where unknown or absent; [B, 0, 0] where segmentation is not a task."""
    color: Tensor | None = None
    """[B, 3] float32 factors of brightness, contrast and saturation to apply on the device; None in validation."""
    crops: Crops | None = None
    """The images before they are resized, from the loader; ``to`` replaces them by ``images``."""
    skipped: tuple[str, ...] = ()
    """Keys of damaged samples that others replace (``on_bad_sample: skip``)."""

    def __len__(self) -> int:
        return len(self.images)

    def floats(self) -> Tensor:
        """[B, 3, S, S] float32 images in 0..1: channels-last on a GPU, contiguous on the CPU."""
        images = self.images if self.images.is_cuda else self.images.contiguous()
        return images.float() / 255

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, its crops resized to images; copies from pinned memory do not block."""
        batch = self if self.crops is None else replace(self, images=self.crops.resize(device), crops=None)
        return batch._map(lambda tensor: tensor.to(device, non_blocking=True))  # noqa: SLF001  # its own class

    def pin_memory(self) -> Batch:
        """A copy in pinned memory. Called by the DataLoader in its pinning thread."""
        return self._map(Tensor.pin_memory)

    def copy(self) -> Batch:
        """A copy in this process's private memory."""
        return self._map(Tensor.clone)

    def __getstate__(self) -> dict[str, Any]:
        """Sends small tensors to another process by value: torch would open a file and a connection for each."""
        return {name: _mapped(value, Tensor, _by_value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: _mapped(value, np.ndarray, torch.from_numpy) for name, value in state.items()})

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: _mapped(value, Tensor, move) for name, value in vars(self).items()})


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``value`` with ``change`` applied to every object of type ``kind`` in it."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, Crops):
        return Crops(*(_mapped(item, kind, change) for item in value))
    return value


def _by_value(tensor: Tensor) -> Any:
    small = tensor.nbytes < _SMALL_BYTES and tensor.is_contiguous()  # NumPy does not keep any other layout
    return tensor.numpy() if small else tensor
