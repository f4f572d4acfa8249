"""Collectives and synchronised batch normalisation in several processes give the results of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from process_harness import in_processes
from torch import nn

from mtl_cloud.train.distributed import ProcessGroup, SyncBatchNorm, join_group, set_norm

ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def _sums(group: ProcessGroup) -> Any:
    own = torch.tensor([1.0, float(group.rank)])
    return group.sum(own), group.any(group.rank == 1), group.gather({"rank": group.rank}), own


def test_sums_and_gathered_values_are_the_same_everywhere(tmp_path: Path) -> None:
    for total, some, gathered, own in in_processes(2, tmp_path, _sums):
        assert total.tolist() == [2.0, 1.0]
        assert some is True
        assert gathered == [{"rank": 0}, {"rank": 1}]
        assert own[0] == 1.0  # the input is not changed


def test_alone_every_operation_is_the_identity() -> None:
    assert ALONE.sum(torch.tensor([3.0])).tolist() == [3.0]
    assert ALONE.any(flag=True)
    assert not ALONE.any(flag=False)
    assert ALONE.gather(5) == [5]


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert join_group(cuda=False) == ALONE


def _norm_step(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * torch.linspace(0, 1, y.numel()).view_as(y)).pow(2).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def _make_norm() -> nn.Sequential:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(5, momentum=0.01)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return nn.Sequential(norm)


def _batch() -> torch.Tensor:
    return torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float() * 3 + 2


def _sync_norm(group: ProcessGroup) -> Any:
    norm = set_norm(_make_norm(), "auto", group)
    assert isinstance(norm[0], SyncBatchNorm)  # type: ignore[index]
    x = _batch()[group.rank :: group.world].clone().requires_grad_()
    y = norm(x)
    weights = torch.linspace(0, 1, 6 * 5 * 16).view(6, 5, 4, 4)[group.rank :: group.world]
    (y * weights).pow(2).sum().backward()
    return y.detach(), x.grad, {k: v.clone() for k, v in norm.state_dict().items()}, [p.grad for p in norm.parameters()]


def test_synchronised_batch_statistics_equal_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics of two processes against torch's BatchNorm2d in one."""
    reference = _make_norm()
    y, grad = _norm_step(reference, _batch())
    shares = in_processes(2, tmp_path, _sync_norm)
    for rank, (own_y, own_grad, state, _) in enumerate(shares):
        torch.testing.assert_close(own_y, y[rank::2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own_grad, grad[rank::2], rtol=1e-4, atol=1e-4)
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
    for i, parameter in enumerate(reference.parameters()):
        torch.testing.assert_close(shares[0][3][i] + shares[1][3][i], parameter.grad, rtol=1e-4, atol=1e-3)
