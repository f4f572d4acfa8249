"""The training step, and the state that it updates: network, optimizer, loss weighting, loss scaler and EMA."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.multi_scale import resize
from mtl_cloud.train.data.transforms import apply_color
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.optim.backward import Backward
from mtl_cloud.train.optim.ema import MovingAverage
from mtl_cloud.train.optim.loss_weighting import TaskWeighting
from mtl_cloud.train.optim.optimizer import set_learning_rate
from mtl_cloud.train.tasks.base import LossTerm, TaskHead
from mtl_cloud.train.tasks.losses import forward, loss_terms, totals_and_counts

__all__ = ["Replica"]


@dataclass
class Replica:
    """One process's copy of the training state. A step does not wait for the device, except in gradient weightings."""

    training: TrainingSpec
    group: ProcessGroup
    network: nn.Module
    """The network without the data-parallel wrapper."""
    model: nn.Module
    """The module that a step calls: the network, or its data-parallel wrapper."""
    heads: dict[Task, TaskHead]
    weighting: TaskWeighting
    backward: Backward
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    ema: MovingAverage | None = None
    """Moving average of the network's weights."""

    @property
    def eval_network(self) -> nn.Module:
        """The network to validate: the moving average if there is one."""
        return self.network if self.ema is None else self.ema.network

    def train_mode(self) -> None:
        self.model.train()
        if self.training.norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # the only common base
                    module.eval()

    def step(self, batch: Batch, *, lr: float, size: int, tasks: Collection[Task] | None) -> Tensor:
        """Do one optimizer step on this process's share of a batch. Arguments and result are those of ``gradients``."""
        set_learning_rate(self.optimizer, lr)
        losses = self.gradients(batch, size=size, tasks=tasks)
        self._update()
        return losses

    def gradients(self, batch: Batch, *, size: int, tasks: Collection[Task] | None) -> Tensor:
        """Compute the gradients. Returns the loss totals and counts over all processes, [2, tasks].

        ``size``: pixels of the network's input. ``tasks``: the sub-networks to run; None for all.

        Each loss has the value of the global batch, so that stateful weightings agree between processes, and the
        gradient of this process's samples.
        """
        terms = self._losses(batch.to(self.group.device), size, tasks)
        totals, counts = reduced = self.group.sum(totals_and_counts(terms))
        # Not stacked: a stack's graph would connect each loss to the parameters of all tasks.
        losses = [
            (term.total + (total - term.total).detach()) / count.clamp(min=1)
            for term, total, count in zip(terms, totals, counts, strict=True)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(losses, counts > 0)
        return reduced

    def _losses(self, batch: Batch, size: int, tasks: Collection[Task] | None) -> Sequence[LossTerm]:
        images = batch.floats()
        if batch.color is not None:
            images = apply_color(images, batch.color)
        images, batch = resize(images, batch, size)
        if self.group.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        return loss_terms(self.heads, forward(self.model, images, self.autocast, tasks), batch)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.training.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "weighting": self.weighting.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the entries of ``state_dict``; other entries are ignored."""
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.weighting.load_state_dict(state["weighting"])
