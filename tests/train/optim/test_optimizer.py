"""A job's optimizer against torch's unfused one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_cloud.jobspec.job import OptimizerSpec
from mtl_cloud.train.optim.optimizer import build_optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def gradients(step: int, net: nn.Module) -> list[Tensor | None]:
    """Random gradients; the last layer has none in the first two steps."""
    torch.manual_seed(step)
    found: list[Tensor | None] = [torch.randn_like(p) for p in net.parameters()]
    return found if step >= 2 else [*found[:-2], None, None]


def after_five_steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    for step in range(5):
        for parameter, gradient in zip(net.parameters(), gradients(step, net), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return list(net.parameters())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False)),
        ("adamw", lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), foreach=False)),
    ],
)
def test_steps_are_those_of_torchs_plain_optimizer_also_where_a_gradient_comes_late(name: Any, plain: Any) -> None:
    ours, theirs = network(), network()
    spec = OptimizerSpec(name=name, lr=0.1, momentum=0.9, weight_decay=0.01)
    weights, others = ([p for p in theirs.parameters() if (p.dim() > 1) is decayed] for decayed in (True, False))
    reference = plain([{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    found = after_five_steps(ours, build_optimizer(ours, [], spec))
    for one, other in zip(found, after_five_steps(theirs, reference), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loaded_state_continues_bit_for_bit(name: Any) -> None:
    spec = OptimizerSpec(name=name, lr=0.1)
    straight, resumed = network(), network()
    first = build_optimizer(straight, [], spec)
    after_five_steps(straight, first)
    resumed.load_state_dict(straight.state_dict())
    second = build_optimizer(resumed, [], spec)
    second.load_state_dict(deepcopy(first.state_dict()))
    for one, other in zip(after_five_steps(straight, first), after_five_steps(resumed, second), strict=True):
        assert torch.equal(one, other)
