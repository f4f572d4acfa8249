"""Base of all sub-networks: an encoder of five stages, and a head that reads the features of some stages.

Different networks share features stage by stage, so each network declares its stages: modules, output channels and
stride.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["STAGES", "Normalize", "Stage", "StagedNetwork", "scale_channels"]

STAGES = (1, 2, 3, 4, 5)


class Stage(NamedTuple):
    """One stage of an encoder."""

    modules: tuple[str, ...]
    """Paths of its modules in the network, applied in this order."""
    channels: int
    """Channels of its output."""
    stride: int
    """Pixels of the image per cell of its output."""


class StagedNetwork(nn.Module, ABC):
    """A sub-network. ``forward`` runs ``prepare``, the five stages and ``head``."""

    stages: tuple[Stage, ...]
    taps: ClassVar[tuple[int, ...]] = (5,)
    """Stages (1..5) whose features the head reads; 5 is always one of them."""
    head_prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of ``state_dict`` keys that keep random weights if pretrained ones are missing or differ in shape."""

    def prepare(self, images: Tensor) -> Tensor:
        """Map images [B, 3, S, S], float in 0..1, to the input of stage 1."""
        return images

    def forward_stage(self, stage: int, x: Tensor) -> Tensor:
        """Apply stage 1..5."""
        # Looked up at every call, because conversion to SyncBatchNorm replaces modules after construction.
        for path in self.stages[stage - 1].modules:
            x = self.get_submodule(path)(x)
        return x

    @abstractmethod
    def head(self, features: Mapping[int, Tensor], image_size: int) -> Any:
        """Map the features of ``taps`` to the task's output (``tasks.base.Outputs``)."""

    def forward(self, images: Tensor) -> Any:
        """Map images [B, 3, S, S], float in 0..1, to the task's output."""
        x, features = self.prepare(images), {}
        for stage in STAGES:
            x = self.forward_stage(stage, x)
            if stage in self.taps:
                features[stage] = x
        return self.head(features, images.shape[-1])

    def drop_stages(self, stages: Sequence[int]) -> None:
        """Remove the parameters of stages that another network computes. The other parameters keep their names."""
        for stage in stages:
            for path in self.stages[stage - 1].modules:
                self.set_submodule(path, nn.Identity())


class Normalize(nn.Module):
    """(x - mean) / std per colour, with mean and std from the metadata of a torchvision weight entry."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Any) -> None:
        super().__init__()
        transforms = weights.transforms()
        # Not persistent, so that the network's state_dict has only torchvision's keys.
        self.register_buffer("mean", torch.tensor(transforms.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transforms.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def scale_channels(channels: int, width: float) -> int:
    """``channels`` times ``width``. Except at width 1, the result is a multiple of 8 (tensor cores) and at least 8."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
