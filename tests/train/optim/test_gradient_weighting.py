"""Gradient methods against torchjd's aggregators of the whole Jacobian, and against closed forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchjd import aggregation

from mtl_cloud.errors import MissingExtraError
from mtl_cloud.jobspec.job import GRADIENT_METHODS, LossWeightingSpec
from mtl_cloud.tasks import TASKS
from mtl_cloud.train.optim.gradient_weighting import GradientWeighting, build_gradient_weighting

AGGREGATORS: dict[str, Callable[[], Any]] = {
    "pcgrad": aggregation.PCGrad,
    "cagrad": lambda: aggregation.CAGrad(c=0.5),
    "mgda": aggregation.MGDA,
    "imtl_g": aggregation.IMTLG,
    "aligned": aggregation.AlignedMTL,
    "upgrad": aggregation.UPGrad,
}
each_method = pytest.mark.parametrize("method", GRADIENT_METHODS)
seeds = st.integers(0, 2**32 - 1)


def weighting_of(method: str, seed: int = 0) -> GradientWeighting:
    return build_gradient_weighting(LossWeightingSpec.model_validate({"name": method}), TASKS, seed=seed)


def jacobian_of(seed: int, tasks: int = 3) -> Tensor:
    """Gradients of different norms, some of them in conflict."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1.0, 30.0, 0.2], dtype=torch.float64)[:tasks, None]
    return sizes * torch.randn(tasks, 7, generator=generator, dtype=torch.float64)


def factors_of(weighting: GradientWeighting, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
    losses = torch.ones(len(jacobian), dtype=torch.float64) if losses is None else losses
    return weighting.factors(jacobian @ jacobian.T, losses, range(len(jacobian)))


@pytest.mark.parametrize("method", AGGREGATORS)
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_the_combined_gradient_is_torchjds_aggregation_of_the_whole_jacobian(method: str, seed: int) -> None:
    jacobian = jacobian_of(seed)
    torch.manual_seed(seed)
    expected = AGGREGATORS[method]()(jacobian)
    torch.testing.assert_close(factors_of(weighting_of(method, seed), jacobian) @ jacobian, expected)


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_nash_solves_the_bargaining_equation(seed: int) -> None:
    """G a is proportional to 1 / a, a is positive, and the combined gradient has norm 1."""
    jacobian = jacobian_of(seed)
    a = factors_of(weighting_of("nash"), jacobian)
    products = a * (jacobian @ jacobian.T @ a)
    assert (a > 0).all()
    torch.testing.assert_close(products, products.mean().expand(3), rtol=1e-6, atol=0)
    torch.testing.assert_close((a @ jacobian).norm().item(), 1.0)


def test_nash_among_orthogonal_gradients_makes_them_of_one_length() -> None:
    jacobian = torch.diag(torch.tensor([4.0, 0.5, 9.0], dtype=torch.float64))
    torch.testing.assert_close(
        factors_of(weighting_of("nash"), jacobian) @ jacobian, torch.full((3,), 3**-0.5).double()
    )


def test_pcgrad_leaves_agreeing_gradients_alone_and_projects_conflicting_ones() -> None:
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    assert factors_of(weighting_of("pcgrad"), agreeing).tolist() == [1, 1]
    conflicting = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    combined = factors_of(weighting_of("pcgrad"), conflicting) @ conflicting
    torch.testing.assert_close(combined, torch.tensor([0.5, 0.5]).double() + torch.tensor([0.0, 1.0]).double())


def test_mgda_finds_the_shortest_vector_between_two_gradients() -> None:
    jacobian = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        factors_of(weighting_of("mgda"), jacobian), torch.tensor([0.2, 0.8]).double(), atol=1e-3, rtol=0
    )


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_imtl_g_projects_alike_on_every_gradient(seed: int) -> None:
    jacobian = jacobian_of(seed)
    projections = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (
        factors_of(weighting_of("imtl_g"), jacobian) @ jacobian
    )
    torch.testing.assert_close(projections, projections.mean().expand(3), rtol=1e-5, atol=1e-9)


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_upgrad_conflicts_with_no_task(seed: int) -> None:
    jacobian = nn.functional.normalize(jacobian_of(seed))
    combined = factors_of(weighting_of("upgrad"), jacobian) @ jacobian
    assert (jacobian @ combined >= -1e-2 * jacobian.norm(dim=1) * combined.norm()).all()


def test_gradnorm_is_the_papers_rule_by_autograd_and_torchs_adam() -> None:
    weighting, first = weighting_of("gradnorm"), torch.tensor([2.0, 300.0, 3.0], dtype=torch.float64)
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.025, eps=1e-12)
    for n in range(20):
        jacobian, losses = jacobian_of(n), first / (1 + n * torch.tensor([0.1, 0.5, 0.01], dtype=torch.float64))
        torch.testing.assert_close(factors_of(weighting, jacobian, losses), w.detach())
        norms, rates = w * jacobian.norm(dim=1), losses / first
        targets = (norms.mean() * (rates / rates.mean()) ** 1.5).detach()
        adam.zero_grad()
        (norms - targets).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            w *= 3 / w.sum()
    slowest = weighting.weights()["segmentation"]
    assert slowest == max(weighting.weights().values())


# --- every method ----------------------------------------------------------------------------------------------------


@each_method
def test_a_task_alone_keeps_its_direction(method: str) -> None:
    weighting = weighting_of(method)
    assert weighting.factors(torch.tensor([[4.0]]).double(), torch.tensor([2.0]).double(), [1]).item() > 0
    weights = weighting.weights()
    assert (weights["classification"], weights["segmentation"]) == (1, 1)


@each_method
def test_a_task_without_gradient_leaves_finite_factors(method: str) -> None:
    jacobian = jacobian_of(1)
    jacobian[1] = 0
    combined = factors_of(weighting_of(method), jacobian) @ jacobian
    assert combined.isfinite().all()
    assert (jacobian @ combined)[[0, 2]].sum() >= 0


@each_method
def test_gradients_that_overflowed_leave_no_trace(method: str) -> None:
    weighting = weighting_of(method)
    factors_of(weighting, jacobian_of(0))
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    gramian = torch.full((3, 3), torch.inf, dtype=torch.float64)
    assert weighting.factors(gramian, torch.ones(3).double(), range(3)).tolist() == [1, 1, 1]
    torch.testing.assert_close(dict(weighting.state_dict()), before, rtol=0, atol=0, equal_nan=True)


@each_method
def test_resuming_from_saved_state_equals_an_uninterrupted_run(method: str) -> None:
    def course(weighting: GradientWeighting, steps: range) -> list[list[float]]:
        return [
            factors_of(weighting, jacobian_of(n), torch.tensor([2.0, 3.0, 4.0]).double() / (1 + n)).tolist()
            for n in steps
        ]

    straight, first, second = weighting_of(method), weighting_of(method), weighting_of(method, seed=99)
    whole = course(straight, range(9))
    head = course(first, range(4))
    second.load_state_dict(first.state_dict())
    torch.rand(3)  # the process's own generator plays no part
    assert head + course(second, range(4, 9)) == whole


@pytest.mark.parametrize(("method", "extra"), [("upgrad", "jd"), ("cagrad", "cagrad")])
def test_a_missing_torchjd_is_named_by_its_extra(method: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(MissingExtraError, match=f"loss_weighting.name: {method} needs the extra '{extra}'"):
        weighting_of(method)
