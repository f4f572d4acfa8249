"""Builds the optimizer and computes the learning-rate schedule of a job."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import nn

from mtl_cloud.jobspec.job import OptimizerSpec, ScheduleSpec
from mtl_cloud.train.nets import decay_groups

__all__ = ["build_optimizer", "learning_rate", "set_learning_rate"]


def build_optimizer(network: nn.Module, extra: Iterable[nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Build the optimizer. Weight decay applies to the network's weights, not to biases, normalisation and ``extra``.

    ``extra``: parameters outside the network, such as learned loss weights. The optimizer is fused: it makes one pass
    over the parameters per step, and the loss scaler's check for infinities does not wait for the device.
    """
    decay, no_decay = decay_groups(network)
    groups = [
        {"params": decay, "weight_decay": spec.weight_decay},
        {"params": [*no_decay, *extra], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.momentum, 0.999), fused=True)
    optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=True)
    if spec.momentum:
        _init_momentum(optimizer)
    return optimizer


def _init_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start momentum buffers at zero, which does not change the result.

    Without buffers, fused SGD fails if some parameters get their first gradient later than others, as those of a task
    do whose labels come later.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(spec: ScheduleSpec, peak: float, *, step: int, steps: int) -> float:
    """Learning rate of ``step`` (0-based) of ``steps``. A pure function, so a resumed job needs no scheduler state."""
    if step < spec.warmup_steps:
        return peak * float(((step + 1) / spec.warmup_steps) ** spec.warmup_power)
    done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    if spec.name == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if spec.name == "poly":
        return peak * float((1 - done) ** spec.power)
    if spec.name == "step":
        return peak * float(spec.gamma ** bisect_right(sorted(spec.milestones), step / steps))
    return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
