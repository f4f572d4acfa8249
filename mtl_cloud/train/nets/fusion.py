"""Fusion: fully connected layers that combine the outputs of all sub-networks to correct the class logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import FusionSpec
from mtl_cloud.tasks import Task

__all__ = ["JointFusion"]


class JointFusion(nn.Module):
    """z -> LayerNorm -> FC -> ReLU -> dropout -> FC -> [B, classes], which is added to the classifier's logits.

    z holds each encoder's last features, averaged over the image, the highest score of each detector class, and the
    fraction of the image of each segmentation class. The last layer starts at zero, so at the start the sum equals the
    classifier's logits. With ``detach`` the sub-networks receive no gradient from these layers.
    """

    def __init__(self, channels: Sequence[int], summaries: Sequence[int], classes: int, spec: FusionSpec) -> None:
        super().__init__()
        inputs = sum(channels) + sum(summaries)
        self.detach = spec.detach
        last = nn.Linear(spec.hidden, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.Linear(inputs, spec.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(spec.dropout),
            last,
        )

    def forward(self, features: Sequence[Tensor], outputs: Mapping[Task, Any]) -> Tensor:
        """``features``: the last features of each encoder, [B, C, h, w]; ``outputs``: as the network returns them."""
        parts = [x.mean(dim=(2, 3)) for x in features]
        if "detection" in outputs:
            parts.append(best_scores(outputs["detection"]))
        if "segmentation" in outputs:
            parts.append(class_areas(outputs["segmentation"]["out"]))
        z = torch.cat([part.float() for part in parts], dim=1)
        return self.layers(z.detach() if self.detach else z)  # type: ignore[no-any-return]  # nn.Module is untyped


def best_scores(heads: Sequence[Tensor]) -> Tensor:
    """Highest objectness x class probability over all cells and anchors, [B, classes]."""
    scores = [(head[..., 4:5].sigmoid() * head[..., 5:].sigmoid()).flatten(1, 3).amax(dim=1) for head in heads]
    return torch.stack(scores).amax(dim=0)


def class_areas(logits: Tensor) -> Tensor:
    """Fraction of the image of each class, by probability, [B, classes].

    Uses every eighth pixel: the logits were computed at stride 8 and interpolated between.
    """
    return logits[..., ::8, ::8].softmax(dim=1).mean(dim=(2, 3))
