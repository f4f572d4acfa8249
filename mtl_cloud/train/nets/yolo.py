"""YOLOv3: Darknet-53, a neck, and three heads, with the layers of darknet's ``cfg/yolov3.cfg``.

Modules are registered in the order of the cfg, which is the order of the numbers in a ``.weights`` file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_cloud.train.nets.anchors import ANCHOR_MASKS
from mtl_cloud.train.nets.staged import Stage, StagedNetwork, scale_channels

__all__ = ["ConvBlock", "YOLOv3"]

RESIDUAL_BLOCKS = (1, 2, 8, 8, 4)
"""Residual blocks in each of the five stages of Darknet-53."""


class YOLOv3(StagedNetwork):
    """The stages are Darknet-53's, each a strided convolution and its residual blocks: strides 2, 4, 8, 16, 32.

    Like darknet, it takes colours in 0..1 without normalisation.
    """

    taps: ClassVar[tuple[int, ...]] = (3, 4, 5)
    head_prefixes: ClassVar[tuple[str, ...]] = ("scales.0.logits.", "scales.1.logits.", "scales.2.logits.")

    def __init__(self, classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.entries = 5 + classes
        stem, *channels = (scale_channels(c, width) for c in (32, 64, 128, 256, 512, 1024))
        inputs = (stem, *channels[:-1])
        self.backbone = nn.Sequential(
            ConvBlock(3, stem, 3),
            *(_stage(*sizes) for sizes in zip(inputs, channels, RESIDUAL_BLOCKS, strict=True)),
        )
        _, c2, c3, c4, c5 = channels
        self.scales = nn.ModuleList(
            (
                _Scale(c5, c4, classes),
                _Scale(c4, c3, classes, coarser=c4),
                _Scale(c3, c2, classes, coarser=c3),
            )
        )
        first, *rest = (Stage((f"backbone.{i}",), c, 2**i) for i, c in enumerate(channels, start=1))
        self.stages = (first._replace(modules=("backbone.0", *first.modules)), *rest)
        self.apply(_initialize)

    def head(self, features: Mapping[int, Tensor], image_size: int) -> tuple[Tensor, ...]:  # noqa: ARG002 (interface)
        """Raw logits [B, 3, S/stride, S/stride, 5 + classes] for strides 32, 16, 8."""
        outputs, coarser = [], None
        for scale, stage in zip(self.scales, (5, 4, 3), strict=True):
            logits, coarser = scale(features[stage], coarser)
            outputs.append(logits)
        return tuple(outputs)


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, leaky ReLU of slope 0.1."""

    def __init__(self, channels: int, filters: int, size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, size, stride=stride, padding=size // 2, bias=False)
        # darknet's running statistics are 0.99 old + 0.01 new; its epsilon on GPUs is 1e-5.
        self.norm = nn.BatchNorm2d(filters, eps=1e-5, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.1, inplace=True)


class _Residual(nn.Module):
    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, bottleneck, 1)
        self.expand = ConvBlock(bottleneck, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.reduce(x))  # type: ignore[no-any-return]  # nn.Module's __call__ is untyped


def _stage(channels: int, filters: int, blocks: int) -> nn.Sequential:
    # The bottleneck has as many channels as the stage's input: half as many as its output.
    return nn.Sequential(
        ConvBlock(channels, filters, 3, stride=2),
        *(_Residual(filters, channels) for _ in range(blocks)),
    )


class _Scale(nn.Module):
    """The neck and the head of one of the three scales. ``coarser``: channels of the features of the coarser scale."""

    def __init__(self, channels: int, bottleneck: int, classes: int, *, coarser: int = 0) -> None:
        super().__init__()
        self.lateral = ConvBlock(coarser, coarser // 2, 1) if coarser else None
        wide = 2 * bottleneck
        self.neck = nn.Sequential(
            ConvBlock(channels + coarser // 2, bottleneck, 1),
            ConvBlock(bottleneck, wide, 3),
            ConvBlock(wide, bottleneck, 1),
            ConvBlock(bottleneck, wide, 3),
            ConvBlock(wide, bottleneck, 1),
        )
        self.conv = ConvBlock(bottleneck, wide, 3)
        self.entries = 5 + classes
        self.logits = nn.Conv2d(wide, len(ANCHOR_MASKS[0]) * self.entries, 1)

    def forward(self, x: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Raw logits, and the features for the next, finer scale."""
        if self.lateral is not None:
            x = torch.cat((F.interpolate(self.lateral(coarser), scale_factor=2.0, mode="nearest"), x), dim=1)
        features = self.neck(x)
        logits = self.logits(self.conv(features))
        return logits.unflatten(1, (-1, self.entries)).permute(0, 1, 3, 4, 2), features


def _initialize(module: nn.Module) -> None:
    """Initialise as darknet does: normal with variance 2 / fan-in, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
