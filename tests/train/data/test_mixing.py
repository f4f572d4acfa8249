"""Jobs of several datasets that label different tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dataset_harness import write_cifar_batches
from torch import Tensor
from trainer_harness import Killed, digest, killed_at, small_job

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.nets.network import Network
from mtl_cloud.train.trainer import Trainer

TrainerMaker = Callable[..., Trainer]


@pytest.fixture
def joint_job(tmp_path: Path) -> Callable[..., JobSpec]:
    """``joint_job(schedule=…, ratio=…)``: 20 scenes with boxes and masks, and 30 tiny images with a class."""
    write_cifar_batches(tmp_path / "cifar")

    def job(*, sharing: dict[int, str] | None = None, **mixing: str) -> JobSpec:
        scenes = {"name": "embedded", "tasks": ["detection", "segmentation"], "max_train_samples": 20}
        classes = {"name": "cifar10", "uri": str(tmp_path / "cifar"), "max_train_samples": 30}
        datasets = [
            scenes | {"max_val_samples": 4},
            classes | {"max_val_samples": 4, "splits": {"train": "train", "val": "test"}},
        ]
        plain = small_job(mixing=mixing).model_dump()
        model = {"width": 0.0625, "sharing": sharing or {}}
        return JobSpec.model_validate(plain | {"dataset": datasets, "model": model})

    return job


@pytest.mark.parametrize("schedule", ["mixed", "round_robin"])
def test_a_joint_job_learns_every_task_from_the_samples_that_label_it(
    make_trainer: TrainerMaker, joint_job: Callable[..., JobSpec], schedule: str
) -> None:
    """Six steps of eight images an epoch, half of them scenes: each task's loss counts its own half."""
    trainer = make_trainer(joint_job(schedule=schedule, ratio="uniform"))
    seen: list[Tensor] = []
    add = trainer.meter.losses.add

    def watched(totals: Tensor, counts: Tensor) -> None:
        seen.append(counts)
        add(totals, counts)

    trainer.meter.losses.add = watched  # type: ignore[method-assign]
    assert trainer.fit()
    images = dict(zip(trainer.heads, torch.stack(seen).sum(0).tolist(), strict=True))
    assert images["classification"] == images["detection"] == 4 * 6 * 4
    last = trainer.run.rounds()[-1]
    assert all(loss is not None for loss in last.train_losses.values())
    assert last.metrics.keys() == {"classification", "detection", "segmentation"}


def test_in_round_robin_only_the_sub_networks_of_the_datasets_tasks_run_and_learn(
    make_trainer: TrainerMaker, joint_job: Callable[..., JobSpec]
) -> None:
    trainer = make_trainer(joint_job(schedule="round_robin", ratio="uniform"))
    network = trainer.network
    assert isinstance(network, Network)
    before = {task: digest(network.subnet(task)) for task in trainer.heads}
    batches = trainer._batches()
    trainer._step(*next(batches))
    after = {task: digest(network.subnet(task)) for task in trainer.heads}
    assert [task for task in after if after[task] != before[task]] == ["detection", "segmentation"]
    trainer._step(*next(batches))
    last = {task: digest(network.subnet(task)) for task in trainer.heads}
    assert [task for task in last if last[task] != after[task]] == ["classification"]


def test_where_stages_share_all_sub_networks_run(make_trainer: TrainerMaker, joint_job: Callable[..., JobSpec]) -> None:
    trainer = make_trainer(joint_job(sharing={2: "cross_stitch"}, schedule="round_robin", ratio="uniform"))
    scenes, images = [batch for batch, _ in zip(trainer.training_batches(0), range(2), strict=False)]
    trainer.replica.gradients(scenes, size=64, tasks=trainer.step_tasks(trainer.position.step))
    trainer.position.step = 1
    trainer.replica.gradients(images, size=64, tasks=trainer.step_tasks(trainer.position.step))
    reached = {name for name, p in trainer.network.named_parameters() if p.grad is not None}
    assert any(name.startswith("subnets.detection.") for name in reached)
    assert any(name.startswith("fusion.") for name in reached)


@pytest.mark.parametrize("step", [3, 8])
def test_a_killed_joint_run_resumes_to_the_same_parameters(
    make_trainer: TrainerMaker, joint_job: Callable[..., JobSpec], step: int
) -> None:
    job = joint_job(schedule="round_robin", ratio="sqrt")
    straight = make_trainer(job)
    assert straight.fit()
    storage = MemoryStorage()
    with pytest.raises(Killed):
        killed_at(make_trainer(job, storage=storage), step).fit()
    again = make_trainer(job, storage=storage, attempt=2)
    assert again.fit()
    assert digest(again.network) == digest(straight.network)
