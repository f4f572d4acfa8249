"""What all sub-networks have in common: an encoder of five stages, and a head that reads some of the stages' features.

Sharing between unlike networks works stage by stage, so each network says what a stage of its encoder is: which of its
modules, how many channels come out, at which stride.
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
    """Paths of its modules in the network, applied one after another."""
    channels: int
    """Of its output."""
    stride: int
    """Pixels of the input to one cell of its output."""


class StagedNetwork(nn.Module, ABC):
    """A sub-network: ``prepare``, then the five stages, then ``head``. ``forward`` is exactly that."""

    stages: tuple[Stage, ...]
    taps: ClassVar[tuple[int, ...]] = (5,)
    """Stages (1..5) whose features the head reads: the last and perhaps others."""
    new_head: ClassVar[tuple[str, ...]] = ()
    """Prefixes of ``state_dict`` keys that start anew when pretrained weights lack them or have other shapes."""

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] float in 0..1 -> the input of stage 1."""
        return images

    def forward_stage(self, stage: int, x: Tensor) -> Tensor:
        """Apply stage 1..5."""
        # Looked up at every call: a conversion to SyncBatchNorm replaces modules after construction.
        for path in self.stages[stage - 1].modules:
            x = self.get_submodule(path)(x)
        return x

    @abstractmethod
    def head(self, features: Mapping[int, Tensor], image_size: int) -> Any:
        """The task's output (``tasks.base.Outputs``) from the features of ``taps``."""

    def forward(self, images: Tensor) -> Any:
        """[B, 3, S, S] float in 0..1 -> the task's output."""
        x, features = self.prepare(images), {}
        for stage in STAGES:
            x = self.forward_stage(stage, x)
            if stage in self.taps:
                features[stage] = x
        return self.head(features, images.shape[-1])

    def drop_stages(self, stages: Sequence[int]) -> None:
        """Give up the parameters of stages that another network computes; the other parameters keep their names."""
        for stage in stages:
            for path in self.stages[stage - 1].modules:
                self.set_submodule(path, nn.Identity())


class Normalize(nn.Module):
    """(x - mean) / std per colour, with the figures that a torchvision weight entry states in its own metadata."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Any) -> None:
        super().__init__()
        transforms = weights.transforms()
        # Not persistent: the network's state_dict has torchvision's keys and no others.
        self.register_buffer("mean", torch.tensor(transforms.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transforms.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def scale_channels(channels: int, width: float) -> int:
    """``channels`` times ``width``; other than at width 1 a multiple of 8 (tensor cores), and at least 8."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
