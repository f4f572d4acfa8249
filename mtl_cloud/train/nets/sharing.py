"""Feature sharing after a stage, between the encoders of several tasks, which may have different architectures.

=============  ======================================================================================================
kind           new features of receiver i; B(x_j) are sender j's features, bridged to the receiver's shape
=============  ======================================================================================================
none           x_i
hard           B(x_trunk): one encoder computes the stage for all tasks; the others do not have this stage
cross_stitch   a_i * x_i + sum over j of b_ij * B(x_j), per-channel coefficients (Misra et al. 2016), start at a=1, b=0
gate           x_i + sum over j of sigmoid(g_ij) * B(x_j), one gate per pair, starts nearly closed
=============  ======================================================================================================

At the start, neither ``cross_stitch`` nor ``gate`` changes features: joint training starts from the single networks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations, takewhile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import SharingKind
from mtl_cloud.tasks import TASKS, Task
from mtl_cloud.train.nets.staged import STAGES, Stage

__all__ = ["Bridge", "CrossStitch", "Gate", "Hard", "Sharing", "hard_stages", "soft_sharing", "trunk_of"]

CLOSED = -2.0
"""Initial gate logit (0.12 after the sigmoid): closed enough to have little effect, open enough to pass gradient."""


def hard_stages(sharing: Mapping[int, SharingKind]) -> tuple[int, ...]:
    """The stages of the trunk: the leading stages of kind ``hard``.

    Raises ``TrainingError`` if a later stage is hard: an encoder that has left the trunk cannot rejoin it.
    """
    leading = tuple(takewhile(lambda stage: sharing.get(stage) == "hard", STAGES))
    late = [stage for stage in STAGES if sharing.get(stage) == "hard" and stage not in leading]
    if late:
        raise TrainingError(
            f"model.sharing: stage {late[0]} is `hard`, but stage {len(leading) + 1} before it is not",
            hint="a trunk starts at stage 1: make all stages up to the last hard one `hard`",
        )
    return leading


def trunk_of(tasks: Sequence[Task]) -> Task:
    """The task whose encoder is the trunk: segmentation, else detection.

    The segmenter's dilated ResNet-50 is the most expensive encoder, so sharing it saves most, and it has the finest
    features, which can be pooled for the others.
    """
    return max(tasks, key=TASKS.index)


class Bridge(nn.Module):
    """Maps a sender's features to a receiver's shape: a 1x1 convolution, and pooling or repetition between strides."""

    def __init__(self, sender: Stage, receiver: Stage) -> None:
        super().__init__()
        self.pool = max(1, receiver.stride // sender.stride)
        self.repeat = max(1, sender.stride // receiver.stride)
        self.conv = nn.Conv2d(sender.channels, receiver.channels, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        x = self.conv(x)
        return F.interpolate(x, scale_factor=float(self.repeat), mode="nearest") if self.repeat > 1 else x


class Sharing(nn.Module):
    """The exchange after one stage. ``forward`` takes and returns the features of each task."""

    bridges: nn.ModuleDict

    def __init__(self, stages: Mapping[Task, Stage], pairs: Iterable[tuple[Task, Task]]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.bridges = nn.ModuleDict({_key(i, j): Bridge(stages[j], stages[i]) for i, j in self.pairs})

    @abstractmethod
    def forward(self, features: Mapping[Task, Tensor]) -> dict[Task, Tensor]: ...

    @abstractmethod
    def coefficient(self, receiver: Task, sender: Task) -> float:
        """Weight of the bridged features; 0 adds none."""

    def report(self) -> dict[Task, dict[Task, float]]:
        """Map receiver -> sender -> coefficient."""
        table: dict[Task, dict[Task, float]] = {receiver: {} for receiver, _ in self.pairs}
        for receiver, sender in self.pairs:
            table[receiver][sender] = self.coefficient(receiver, sender)
        return table


def _key(receiver: Task, sender: Task) -> str:
    return f"{receiver}_from_{sender}"


class Hard(Sharing):
    """All tasks get the trunk's features; receivers get them through a bridge."""

    def __init__(self, trunk: Task, stages: Mapping[Task, Stage], receivers: tuple[Task, ...]) -> None:
        super().__init__(stages, ((receiver, trunk) for receiver in receivers))
        self.trunk = trunk

    def forward(self, features: Mapping[Task, Tensor]) -> dict[Task, Tensor]:
        trunk = features[self.trunk]
        return {self.trunk: trunk} | {i: self.bridges[_key(i, j)](trunk) for i, j in self.pairs}

    def coefficient(self, receiver: Task, sender: Task) -> float:  # noqa: ARG002 (of the interface)
        return 1.0


class _Soft(Sharing):
    def __init__(self, stages: Mapping[Task, Stage]) -> None:
        super().__init__(stages, permutations(stages, 2))


class CrossStitch(_Soft):
    """One coefficient per channel of the receiver. ``report`` has mean magnitudes, a task's own under its own name."""

    def __init__(self, stages: Mapping[Task, Stage]) -> None:
        super().__init__(stages)
        self.own = nn.ParameterDict({i: torch.ones(stages[i].channels, 1, 1) for i in stages})
        self.other = nn.ParameterDict({_key(i, j): torch.zeros(stages[i].channels, 1, 1) for i, j in self.pairs})

    def forward(self, features: Mapping[Task, Tensor]) -> dict[Task, Tensor]:
        # Coefficients are cast to the features' type; under autocast the product would otherwise be float32.
        mixed = {i: x * self.own[i].to(x.dtype) for i, x in features.items()}
        for i, j in self.pairs:
            bridged = self.bridges[_key(i, j)](features[j])
            mixed[i] = mixed[i] + bridged * self.other[_key(i, j)].to(bridged.dtype)
        return mixed

    def coefficient(self, receiver: Task, sender: Task) -> float:
        return float(self.other[_key(receiver, sender)].detach().abs().mean())

    def report(self) -> dict[Task, dict[Task, float]]:
        table = super().report()
        for task, row in table.items():
            row[task] = float(self.own[task].detach().abs().mean())
        return table


class Gate(_Soft):
    """One gate per pair. The bridges start at zero, so at the start nothing passes, however open the gates are.

    A gate with a logit of minus infinity stays closed, and its sender has no effect.
    """

    def __init__(self, stages: Mapping[Task, Stage]) -> None:
        super().__init__(stages)
        self.logits = nn.ParameterDict({_key(i, j): torch.tensor(CLOSED) for i, j in self.pairs})
        for module in self.bridges.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)

    def forward(self, features: Mapping[Task, Tensor]) -> dict[Task, Tensor]:
        mixed = dict(features)
        for i, j in self.pairs:
            bridged = self.bridges[_key(i, j)](features[j])
            mixed[i] = mixed[i] + bridged * self.logits[_key(i, j)].sigmoid().to(bridged.dtype)
        return mixed

    def coefficient(self, receiver: Task, sender: Task) -> float:
        return float(self.logits[_key(receiver, sender)].detach().sigmoid())


def soft_sharing(kind: SharingKind, stages: Mapping[Task, Stage]) -> Sharing:
    """Build ``cross_stitch`` or ``gate`` sharing between all pairs of tasks."""
    return CrossStitch(stages) if kind == "cross_stitch" else Gate(stages)
