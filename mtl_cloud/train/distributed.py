"""Data-parallel training in several processes, which ``torchrun`` starts: collectives and batch normalisation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ProcessGroup", "SyncBatchNorm", "join_group", "set_norm"]

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank and its collective operations. With one process every operation is the identity."""

    rank: int
    world: int
    device: torch.device
    local_rank: int = 0
    """Rank among the processes of this machine."""

    @property
    def leads(self) -> bool:
        """Whether this is the leading process, the only one that writes to the run record."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the processes, as a new tensor without gradient."""
        total = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in at least one process; the same in every process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, ordered by rank. Values are pickled."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Destroy the process group, if there is one."""
        if self.world > 1:
            dist.destroy_process_group()


def join_group(*, cuda: bool) -> ProcessGroup:
    """Join the group that ``torchrun``'s environment variables describe; without them, a group of one process."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return ProcessGroup(rank, world, device, local_rank)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the whole group, on any device: ``torch.nn.SyncBatchNorm`` does not support the CPU.

    In training, mean and variance are those of the global batch. The running variance uses Bessel's correction over
    it, as one process with the whole batch would (Ioffe & Szegedy 2015, algorithm 1).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the base class names it so
        if not self.training:
            return super().forward(input)
        mean, variance, count = self._moments(input.to(torch.promote_types(input.dtype, torch.float32)))
        self._track(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (input * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, biased variance and element count of each channel, over all processes; differentiable."""
        own = x.new_full((1,), x.numel() / x.shape[1])
        sums = _sum(torch.cat([own, x.sum((0, 2, 3))]))
        count, mean = sums[:1], sums[1:] / sums[:1]
        squares = _sum(((x - mean[:, None, None]) ** 2).sum((0, 2, 3)))
        return mean, squares / count, count

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _Sum(torch.autograd.Function):
    """Differentiable sum over all processes; its gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004  # autograd passes it
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


def set_norm(network: nn.Module, norm: str, group: ProcessGroup) -> nn.Module:
    """Apply ``training.norm``: ``local``, ``sync`` or ``frozen``; ``auto`` means ``sync`` with several processes."""
    if norm in {"auto", "sync"} and group.world > 1:
        if group.device.type == "cuda":
            synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return synced
        for module in list(network.modules()):
            for name, child in module.named_children():
                if type(child) is nn.BatchNorm2d:
                    setattr(module, name, _synchronised(child))
    return network


def _synchronised(norm: nn.BatchNorm2d) -> SyncBatchNorm:
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.load_state_dict(norm.state_dict())
    return twin
