"""Loss weightings against closed forms, and against torchjd where it is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest
import torch
from narrowing import grad_of
from torch import Tensor

from mtl_cloud.jobspec.job import LossWeightingSpec
from mtl_cloud.tasks import TASKS, Task
from mtl_cloud.train.optim.loss_weighting import LossWeighting, build_loss_weighting

METHODS = ("equal", "fixed", "uncertainty", "dwa", "rlw", "geometric", "famo")
EVERYWHERE = (1.0, 1.0, 1.0)
each_method = pytest.mark.parametrize("method", METHODS)

START, LATER = (2.3, 400.0, 3.0), (2.0, 100.0, 2.9)


def weighting_of(method: str, seed: int = 0) -> LossWeighting:
    return build_loss_weighting(LossWeightingSpec.model_validate({"name": method}), TASKS, seed=seed)


def leaves(values: Iterable[float]) -> list[Tensor]:
    return [torch.tensor(float(value), requires_grad=True) for value in values]


def by_task(values: Iterable[Tensor]) -> dict[Task, Tensor]:
    return dict(zip(TASKS, values, strict=True))


def step(
    weighting: LossWeighting, values: Sequence[float], present: Sequence[float] = EVERYWHERE
) -> tuple[float, list[float]]:
    """The combined loss of one step, and its gradient for each task's loss."""
    losses = leaves(values)
    combined = weighting.combine(by_task(losses), by_task(map(torch.tensor, present)))
    combined.backward()
    return combined.item(), [float(grad_of(loss)) for loss in losses]


def close(expected: Sequence[float] | float) -> object:
    return pytest.approx(expected, rel=1e-5)


# --- every method ----------------------------------------------------------------------------------------------------


@each_method
def test_weights_are_the_factors_of_the_gradients(method: str) -> None:
    weighting = weighting_of(method)
    for values in (START, LATER):
        _, gradients = step(weighting, values)
        assert list(weighting.weights().values()) == gradients
        assert all(gradient > 0 for gradient in gradients)


@each_method
def test_an_absent_task_gets_no_gradient_and_leaves_no_trace(method: str) -> None:
    """The value of an absent task's loss changes nothing."""
    outcomes = []
    for absent_loss in (0.0, 7.0):
        weighting = weighting_of(method)
        step(weighting, START)
        before = {name: entry[1].clone() for name, entry in weighting.state_dict().items() if entry.shape == (3,)}
        total, gradients = step(weighting, (2.0, absent_loss, 2.5), present=(1, 0, 1))
        after = {name: entry[1] for name, entry in weighting.state_dict().items() if entry.shape == (3,)}
        assert gradients[1] == 0
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        for parameter in weighting.parameters():
            assert parameter.grad is not None
        outcomes.append((total, gradients, step(weighting, LATER)))
    assert outcomes[0] == outcomes[1]


@each_method
def test_a_batch_without_any_label_makes_a_zero_loss(method: str) -> None:
    weighting = weighting_of(method)
    step(weighting, START)
    assert step(weighting, (0, 0, 0), present=(0, 0, 0)) == (0, [0, 0, 0])
    assert all(value > 0 for value in step(weighting, LATER)[1])


@each_method
def test_resuming_from_saved_state_equals_an_uninterrupted_run(method: str) -> None:
    def course(weighting: LossWeighting, steps: range) -> list[tuple[float, list[float]]]:
        seen = []
        for n in steps:
            seen.append(step(weighting, [value / (1 + n / 5) for value in START], present=(1, n % 3 != 1, 1)))
            if n % 2:
                weighting.end_epoch(dict(zip(TASKS, [value / (1 + n) for value in LATER], strict=True)))
        return seen

    straight, first, second = weighting_of(method), weighting_of(method), weighting_of(method, seed=99)
    whole = course(straight, range(9))
    head = course(first, range(4))
    second.load_state_dict(first.state_dict())
    assert head + course(second, range(4, 9)) == whole


@each_method
def test_two_processes_with_half_the_batch_each_equal_one(method: str) -> None:
    """With the global loss's value and its own half's gradient in each, gradients add up to those of one process."""
    alone, pair = weighting_of(method), (weighting_of(method), weighting_of(method))
    for halves in ([(1.0, 150.0, 0.0), (1.3, 250.0, 3.0)], [(0.5, 30.0, 1.4), (1.5, 70.0, 1.5)]):
        whole = [a + b for a, b in zip(*halves, strict=True)]
        _, expected = step(alone, whole)
        for weighting, half in zip(pair, halves, strict=True):
            shares = leaves(half)
            losses = [x + (total - x).detach() for x, total in zip(shares, whole, strict=True)]
            weighting.combine(by_task(losses), by_task(map(torch.tensor, EVERYWHERE))).backward()
            assert [float(grad_of(share)) for share in shares] == close(expected)
    for name, entry in alone.state_dict().items():
        for weighting in pair:
            torch.testing.assert_close(weighting.state_dict()[name], entry, equal_nan=True)
    for parameters in zip(alone.parameters(), *(weighting.parameters() for weighting in pair), strict=True):
        for parameter in parameters[1:]:
            torch.testing.assert_close(parameter.grad, parameters[0].grad)


@each_method
def test_combining_never_waits_for_the_device(method: str) -> None:
    """Tensors on the meta device have no values: reading one on the host fails."""
    weighting = weighting_of(method).to("meta")
    losses = by_task(torch.zeros((), device="meta", requires_grad=True) for _ in TASKS)
    present = by_task(torch.zeros((), device="meta") for _ in TASKS)
    for _ in range(2):
        weighting.combine(losses, present).backward()


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_equal_makes_every_task_start_at_one_and_then_fall_by_its_own_share() -> None:
    weighting = weighting_of("equal")
    assert step(weighting, START)[0] == close(3.0)
    for _ in range(200):
        step(weighting, START)
    total, gradients = step(weighting, [value / 2 for value in START])
    assert total == close(1.5)
    assert gradients == close([1 / value for value in START])


def test_equal_takes_the_moving_average_of_the_first_hundred_steps_and_keeps_it() -> None:
    weighting, losses = weighting_of("equal"), [100 / (1 + n) for n in range(150)]
    factors = [step(weighting, (loss, 1.0, 1.0))[1][0] for loss in losses]
    powers = [0.97 ** (99 - n) for n in range(100)]
    average = sum(p * loss for p, loss in zip(powers, losses[:100], strict=True)) / sum(powers)
    assert 1 / factors[-1] == pytest.approx(average, rel=1e-4)


def test_equal_weighs_a_task_alike_whatever_the_others_do() -> None:
    joint, alone = weighting_of("equal"), build_loss_weighting(LossWeightingSpec(), ("segmentation",))
    for n in range(5):
        loss = torch.tensor(3.0 / (1 + n))
        alone.combine({"segmentation": loss}, {"segmentation": torch.tensor(1.0)})
        step(joint, (1.0 + n, 400.0, loss.item()))
        assert alone.weights()["segmentation"] == joint.weights()["segmentation"]


def test_fixed_takes_the_jobs_weights_and_one_for_the_others() -> None:
    weighting = build_loss_weighting(LossWeightingSpec(name="fixed", weights={"detection": 0.25}), TASKS)
    assert step(weighting, (2.0, 8.0, 3.0)) == (7.0, [1.0, 0.25, 1.0])


def test_uncertainty_settles_where_the_variance_is_the_loss() -> None:
    """The minimum of L exp(-s) / 2 + s / 2 is s = log L; the factor there is 1 / (2 L)."""
    weighting = weighting_of("uncertainty")
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        step(weighting, (2.3, 9.0, 3.0))
        optimizer.step()
    assert step(weighting, (2.3, 9.0, 3.0))[1] == pytest.approx([1 / (2 * loss) for loss in (2.3, 9.0, 3.0)], rel=1e-2)


def test_dwa_is_the_softmax_of_the_last_two_epochs_ratio() -> None:
    weighting = build_loss_weighting(LossWeightingSpec(name="dwa", temperature=1.5), TASKS)
    epochs: list[Mapping[Task, float]] = [dict(zip(TASKS, values, strict=True)) for values in (START, LATER)]
    weighting.end_epoch(epochs[0])
    assert step(weighting, START)[1] == [1, 1, 1]
    weighting.end_epoch(epochs[1])
    ratios = torch.tensor(LATER) / torch.tensor(START)
    assert step(weighting, START)[1] == close((3 * (ratios / 1.5).softmax(0)).tolist())


def test_dwa_takes_a_tasks_last_two_epochs_with_a_sample() -> None:
    weighting = build_loss_weighting(LossWeightingSpec(name="dwa", temperature=1.0), TASKS[:2])
    epochs: list[dict[Task, float]] = [
        {"classification": 4.0, "detection": 8.0},
        {"classification": 2.0},
        {"classification": 1.0},
    ]
    for means in epochs:
        weighting.end_epoch(means)
    one = torch.tensor(1.0)
    weighting.combine(dict.fromkeys(TASKS[:2], one), dict.fromkeys(TASKS[:2], one))
    assert list(weighting.weights().values()) == close((2 * torch.tensor([0.5, 1.0]).softmax(0)).tolist())


def test_rlw_draws_anew_each_step_from_its_own_seed() -> None:
    weighting, draws = weighting_of("rlw", seed=5), torch.Generator().manual_seed(5)
    for _ in range(3):
        torch.rand(10)  # the process's generator is not used
        assert step(weighting, START)[1] == torch.randn(3, generator=draws).softmax(0).tolist()


def test_geometric_is_the_geometric_mean_of_the_present_losses() -> None:
    total, gradients = step(weighting_of("geometric"), START)
    losses = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    (losses.prod() ** (1 / 3)).backward()
    assert total == close(float(losses.detach().prod() ** (1 / 3)))
    assert gradients == close(grad_of(losses).tolist())
    assert step(weighting_of("geometric"), (2.0, 0.0, 8.0), present=(1, 0, 1)) == (close(4.0), close([1.0, 0.0, 0.25]))


def test_famo_is_the_papers_algorithm_on_the_falls_between_batches() -> None:
    """The reference updates the logits by autograd through the softmax and torch's Adam."""
    weighting = weighting_of("famo")
    logits = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=1e-3)
    course = [
        torch.tensor([value / (1 + n * rate) for value, rate in zip(START, (0.1, 2, 0.5), strict=True)])
        for n in range(30)
    ]
    for n, losses in enumerate(course):
        if n:
            adam.zero_grad()
            logits.softmax(0).backward(course[n - 1].log() - losses.log())
            adam.step()
        shares = logits.detach().softmax(0) / losses
        assert step(weighting, losses.tolist())[1] == close((shares / shares.sum()).tolist())
    weights = weighting.weights()
    assert weights["classification"] * course[-1][0] > weights["detection"] * course[-1][1]  # the slowest counts most


# --- torchjd ---------------------------------------------------------------------------------------------------------


def theirs(scalarizer: torch.nn.Module, values: Sequence[float]) -> tuple[float, list[float]]:
    losses = torch.tensor(values, requires_grad=True)
    combined = scalarizer(losses)
    combined.backward()
    return combined.item(), grad_of(losses).tolist()


def test_uncertainty_and_geometric_equal_torchjds() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization", reason="torchjd is not installed")
    for method, scalarizer in (("uncertainty", scalarization.UW(3)), ("geometric", scalarization.GeometricMean())):
        total, gradients = step(weighting_of(method), START)
        assert (total, gradients) == (close(theirs(scalarizer, START)[0]), close(theirs(scalarizer, START)[1]))


def test_dwa_equals_torchjds() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization", reason="torchjd is not installed")
    ours, scalarizer = weighting_of("dwa"), scalarization.DWA(temperature=2.0)
    for values in (START, LATER, (1.0, 50.0, 2.8)):
        assert step(ours, values)[1] == close(theirs(scalarizer, values)[1])
        ours.end_epoch(dict(zip(TASKS, values, strict=True)))
        scalarizer.step()


def test_famo_equals_torchjds_told_of_the_next_batchs_losses() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization", reason="torchjd is not installed")
    ours, scalarizer = weighting_of("famo"), scalarization.FAMO(3)
    for n in range(20):
        values = [value / (1 + n * rate) for value, rate in zip(START, (0.1, 2, 0.5), strict=True)]
        if n:
            scalarizer.update(torch.tensor(values))
        assert step(ours, values)[1] == close(theirs(scalarizer, values)[1])
