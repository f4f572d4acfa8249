"""Divergence detection depends only on the sequence of losses, and adding a step does not wait for the device."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_cloud.jobspec.job import DivergenceSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.divergence import DivergenceError, DivergenceMonitor, require_finite

TASKS: tuple[Task, ...] = ("classification", "detection")


def monitor(*, every_steps: int = 1) -> DivergenceMonitor:
    return DivergenceMonitor(TASKS, DivergenceSpec(), every_steps=every_steps)


def sums(classification: float, detection: float, counts: tuple[float, float] = (4, 8)) -> Tensor:
    return torch.tensor([[classification * counts[0], detection * counts[1]], counts], dtype=torch.float64)


def verdict(losses: list[Tensor], *, every_steps: int = 1) -> str | None:
    """The error message for the losses of steps 1, 2, ..., or None."""
    monitored = monitor(every_steps=every_steps)
    try:
        for step, values in enumerate(losses, 1):
            monitored.add(step, values)
        monitored.check()
    except DivergenceError as error:
        return str(error)
    return None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named_with_its_task_and_step(bad: float) -> None:
    assert verdict([sums(1, 1), sums(1, bad)]) == f"the detection loss is {bad} at step 2"
    both = verdict([sums(bad, bad)])
    assert both == f"the classification loss is {bad} and the detection loss is {bad} at step 1"


def test_a_loss_over_ten_times_its_median_for_twenty_steps_has_diverged() -> None:
    calm = [sums(2, 1)] * 60
    assert verdict([*calm, *[sums(21, 1)] * 19, *calm, *[sums(21, 1)] * 19]) is None
    assert verdict([*calm, *[sums(21, 1)] * 20]) == (
        "the classification loss is 21, for 20 steps over 10 times its median of 2, at step 80"
    )


@pytest.mark.parametrize(
    "losses",
    [
        [sums(5, 1), *[sums(0.01, 1)] * 100, *[sums(4.9, 1)] * 100],  # still below the untrained loss
        [sums(1, 1), *[sums(50, 1)] * 100],  # too few steps for a median
        [*[sums(1, 1)] * 60, *[sums(20, 1), sums(1, 1)] * 60],  # spikes
        [sums(1, 1, (0, 8)), sums(math.nan, 1, (0, 8))],  # a task without a sample
        [*[sums(1, 1)] * 60, *[sums(1000, 1, (0, 8))] * 60],
    ],
)
def test_what_is_no_divergence(losses: list[Tensor]) -> None:
    assert verdict(losses) is None


LOSSES = st.lists(
    st.sampled_from([sums(1, 1), sums(1, 30, (4, 8)), sums(40, 1), sums(1, 1, (4, 0)), sums(1, math.nan)]).flatmap(
        lambda values: st.integers(1, 40).map(lambda times: [values] * times)
    ),
    max_size=8,
).map(lambda runs: [values for run in runs for values in run])


@given(LOSSES, st.integers(2, 70), st.integers(0, 300))
def test_the_verdict_does_not_depend_on_when_losses_are_checked_or_where_the_run_was_killed(
    losses: list[Tensor], every_steps: int, cut: int
) -> None:
    expected = verdict(losses)
    assert verdict(losses, every_steps=every_steps) == expected
    assert verdict_of_two_attempts(losses, cut) == expected


def verdict_of_two_attempts(losses: list[Tensor], cut: int) -> str | None:
    first, second = monitor(every_steps=400), monitor()
    try:
        for step, values in enumerate(losses, 1):
            (first if step <= cut else second).add(step, values)
            if step == cut:
                first.check()  # as before each save
                second.load_state_dict(first.state_dict())
        first.check()
    except DivergenceError as error:
        return str(error)
    return None


def test_a_step_does_not_read_the_device() -> None:
    """Tensors on the meta device have no values: reading one fails."""
    monitored = monitor(every_steps=50)
    for step in range(1, 50):
        monitored.add(step, torch.empty(2, 2, device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        monitored.check()


def test_a_parameter_that_is_not_finite_is_named() -> None:
    network = nn.Linear(3, 2)
    require_finite(network, 7)
    with torch.no_grad():
        network.bias[0] = math.inf
    with pytest.raises(DivergenceError, match=r"1 of 2 parameters is not finite after step 7, first bias"):
        require_finite(network, 7)
