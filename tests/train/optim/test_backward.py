"""Gradients of joint steps: combined on shared parameters, each task's own elsewhere, over several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from narrowing import grad_of
from process_harness import in_processes
from torch import Tensor, nn
from torchjd import aggregation
from trainer_harness import ALONE, Killed, claim_attempt, digest, killed_at, open_attempt, small_job

from mtl_cloud.jobspec.job import GRADIENT_METHODS, JobSpec, LossWeightingSpec
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.tasks import TASKS
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.optim.backward import TaskwiseBackward
from mtl_cloud.train.optim.gradient_weighting import build_gradient_weighting
from mtl_cloud.train.trainer import Trainer

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
ALL = torch.tensor([True, True, True])


class Toy(nn.Module):
    """A trunk shared by all tasks, a branch shared by the first two, and one head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk, self.branch = nn.Linear(6, 5), nn.Linear(5, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 2) for _ in TASKS])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Each task's loss, summed over the batch; the losses differ in scale."""
        common = self.trunk(x).tanh()
        inputs = [self.branch(common).tanh(), self.branch(common).tanh(), common]
        outputs = [head(x) for head, x in zip(self.heads, inputs, strict=True)]
        return [scale * (y - scale).pow(2).sum() for scale, y in zip((1, 20, 0.3), outputs, strict=True)]


def images() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def descend(method: str, group: ProcessGroup, present: Tensor = ALL, scaler: torch.amp.GradScaler = NO_SCALER) -> Toy:
    """A toy network with the gradients of one step on this process's share of eight samples."""
    toy = Toy()
    weighting = build_gradient_weighting(LossWeightingSpec.model_validate({"name": method}), TASKS, seed=3)
    totals = toy(images()[group.rank :: group.world])
    losses = [(total + (group.sum(total) - total).detach()) / 8 for total in totals]
    TaskwiseBackward(weighting, list(toy.parameters()), scaler, group)(losses, present)
    return toy


def gradients_of(toy: Toy) -> dict[str, Tensor]:
    return {name: p.grad for name, p in toy.named_parameters() if p.grad is not None}


def test_shared_parameters_get_torchjds_aggregation_and_the_others_their_tasks_own_gradient() -> None:
    toy = Toy()
    losses = [total / 8 for total in toy(images())]
    shared = [*toy.trunk.parameters(), *toy.branch.parameters()]
    rows = [
        torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in losses
    ]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    expected = aggregation.UPGrad()(jacobian)
    stepped = descend("upgrad", ALONE)
    found = torch.cat([grad_of(p).flatten() for p in (*stepped.trunk.parameters(), *stepped.branch.parameters())])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sum(losses).backward()
    for head, reference in zip(stepped.heads, toy.heads, strict=True):
        torch.testing.assert_close(head.weight.grad, reference.weight.grad)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_an_absent_task_is_as_if_it_did_not_exist(method: str) -> None:
    """Without the second task only the first one reaches the branch, which gets its plain gradient."""
    stepped = gradients_of(descend(method, ALONE, torch.tensor([True, False, True])))
    assert not any(name.startswith("heads.1") for name in stepped)
    toy = Toy()
    (toy(images())[0] / 8).backward()
    torch.testing.assert_close(stepped["branch.weight"], toy.branch.weight.grad)


def test_one_task_alone_is_plain_descent_and_none_is_a_gradient_of_zero() -> None:
    toy = Toy()
    (toy(images())[2] / 8).backward()
    stepped = gradients_of(descend("nash", ALONE, torch.tensor([False, False, True])))
    torch.testing.assert_close(stepped, gradients_of(toy))
    nothing = gradients_of(descend("nash", ALONE, torch.tensor([False, False, False])))
    assert len(nothing) == len(list(toy.parameters()))
    assert not any(gradient.any() for gradient in nothing.values())


@pytest.mark.parametrize("method", ["nash", "upgrad", "gradnorm"])
def test_the_loss_scalers_scale_is_in_the_gradients_and_not_in_the_factors(method: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, plain = gradients_of(descend(method, ALONE, scaler=scaler)), gradients_of(descend(method, ALONE))
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name] / 1024, gradient, rtol=1e-4, atol=1e-6)


# --- in several processes --------------------------------------------------------------------------------------------


def joint_job(method: str, *, max_steps_per_epoch: int = 1) -> JobSpec:
    """MTL-Net with cross-stitch units, gates and fusion layers."""
    limits = {"max_steps_per_epoch": max_steps_per_epoch, "rounds": 1, "epochs_per_round": 2}
    job = small_job(loss_weighting={"name": method}, **limits)
    model = {"width": 0.0625, "sharing": {2: "cross_stitch", 3: "gate"}}
    return JobSpec.model_validate(job.model_dump() | {"model": model})


def turns_job() -> JobSpec:
    """A batch with class labels, then one with boxes and masks: each runs only the sub-networks of its labels."""
    embedded = {"name": "embedded", "max_train_samples": 16, "max_val_samples": 8}
    datasets = [embedded | {"tasks": tasks} for tasks in (["classification"], ["detection", "segmentation"])]
    job = small_job(mixing={"schedule": "round_robin"}, rounds=1, epochs_per_round=2)
    return JobSpec.model_validate(job.model_dump() | {"dataset": datasets})


def gradients_of_steps(job: JobSpec, group: ProcessGroup, scratch: Path, *, steps: int = 1) -> dict[str, Tensor]:
    """Gradients of MTL-Net's parameters for the last of ``steps`` global batches."""
    storage = MemoryStorage()
    scratch.mkdir()
    if not group.leads:
        claim_attempt(job, storage, 1)
    trainer = open_attempt(job, scratch, storage=storage, attempt=1, data=None, group=group)
    for module in trainer.network.modules():
        if isinstance(module, nn.Dropout):  # each process draws its own
            module.p = 0.0
    for step, batch in enumerate(islice(trainer.training_batches(0), steps)):
        trainer.position.step = step
        trainer.replica.gradients(batch, size=64, tasks=trainer.step_tasks(trainer.position.step))
    return {name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None}


def all_gradients(group: ProcessGroup, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Gradients of the toy by every method; of MTL-Net by a loss and a gradient method, and with datasets in turn."""
    toys = {f"toy {method}": gradients_of(descend(method, group)) for method in GRADIENT_METHODS}
    scratch = folder / f"{group.rank}-of-{group.world}"
    return toys | {
        "equal": gradients_of_steps(joint_job("equal"), group, scratch.with_suffix(".equal")),
        "nash": gradients_of_steps(joint_job("nash"), group, scratch.with_suffix(".nash")),
        "turns 1": gradients_of_steps(turns_job(), group, scratch.with_suffix(".first")),
        "turns 2": gradients_of_steps(turns_job(), group, scratch.with_suffix(".second"), steps=2),
    }


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Tensor]], ...]:
    """Gradients in one process, and in each of two."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shares")
    return all_gradients(ALONE, folder), *in_processes(2, folder, partial(all_gradients, folder=folder))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_two_processes_combine_the_gradients_of_the_whole_batch(shares: tuple[Any, ...], method: str) -> None:
    alone, first, second = (share[f"toy {method}"] for share in shares)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["equal", "nash", "turns 1", "turns 2"])
def test_a_joint_step_of_mtl_net_in_two_processes_equals_one(shares: tuple[Any, ...], case: str) -> None:
    """Equal up to rounding, which batch statistics of fifty layers on eight small images amplify to one hundredth."""
    alone, first, second = (share[case] for share in shares)
    assert first.keys() == alone.keys()
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    whole = max(float(gradient.norm()) for gradient in alone.values())
    for name, gradient in alone.items():
        assert (first[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-4 * whole, name


def test_datasets_in_turn_reach_their_own_sub_networks_only(shares: tuple[Any, ...]) -> None:
    for share in shares:
        assert {name.split(".")[1] for name in share["turns 1"]} == {"classification"}
        assert {name.split(".")[1] for name in share["turns 2"]} == {"detection", "segmentation"}


def test_where_nothing_is_shared_combining_gradients_is_adding_losses(make_trainer: Callable[..., Trainer]) -> None:
    """Without sharing and fusion, only one task reaches each parameter, which gets exactly the plain sum's gradient."""
    digests = set()
    for weighting in ({"name": "fixed"}, {"name": "upgrad"}, {"name": "pcgrad"}):
        job = small_job(loss_weighting=weighting, rounds=1, epochs_per_round=1)
        model = {"width": 0.0625, "fusion": {"enabled": False}}
        trainer = make_trainer(JobSpec.model_validate(job.model_dump() | {"model": model}))
        assert trainer.fit()
        digests.add(digest(trainer.network))
    assert len(digests) == 1


@pytest.mark.parametrize("method", ["pcgrad", "gradnorm"])
def test_a_killed_run_resumes_to_the_same_parameters(make_trainer: Callable[..., Trainer], method: str) -> None:
    """These two methods have state: a random generator, and learned weights."""
    job = joint_job(method, max_steps_per_epoch=3)
    straight = make_trainer(job)
    assert straight.fit()
    storage = MemoryStorage()
    with pytest.raises(Killed):
        killed_at(make_trainer(job, storage=storage), 4).fit()
    again = make_trainer(job, storage=storage, attempt=2)
    assert again.fit()
    assert digest(again.network) == digest(straight.network)
    assert again.replica.weighting.weights() == straight.replica.weighting.weights()
