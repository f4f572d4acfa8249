"""A trainer in this process, for a small job and a run record of the test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl_cloud.datasets.base import Sample
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, RoundRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.storage import Storage
from mtl_cloud.train.build import JobData, build_trainer, open_data
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.buffers import BufferPool
from mtl_cloud.train.data.crops import Crops
from mtl_cloud.train.data.transforms import Canvas, Placement, place
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.trainer import Trainer

ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def small_job(**training: Any) -> JobSpec:
    """MTL-Net at 1/16 width on 48 embedded scenes: a step takes tens of milliseconds."""
    return JobSpec.model_validate(
        {
            "dataset": {"name": "embedded", "max_train_samples": 24, "max_val_samples": 8},
            "model": {"name": "mtl_net", "width": 0.0625},
            "training": {
                "rounds": 2,
                "epochs_per_round": 2,
                "batch_size": 8,
                "image_size": 64,
                "loader_workers": 0,
                "deterministic": True,
                **training,
            },
            "checkpoint": {"every_minutes": None},
        }
    )


def open_attempt(
    job: JobSpec, folder: Path, *, storage: Storage, attempt: int, data: JobData | None, group: ProcessGroup
) -> Trainer:
    """Attempt ``attempt`` of the run ``test`` in ``storage``, ready to fit."""
    if group.leads:
        claim_attempt(job, storage, attempt)
    run = RunRecord(storage, "test")
    scratch = folder / f"scratch-{attempt}"
    scratch.mkdir(exist_ok=True)
    return build_trainer(job, data or open_data(job), run, attempt=attempt, group=group, scratch=Scratch(scratch))


def claim_attempt(job: JobSpec, storage: Storage, attempt: int) -> None:
    """Create the run ``test`` if it does not exist, and claim the attempt."""
    run, now = RunRecord(storage, "test"), datetime(2026, 1, 1, tzinfo=UTC)
    if not run.exists():
        plan = plan_run(job, gather_facts(job), run_id="test", now=now)
        run.create(plan, spec_yaml=b"", spec_json=job_to_json(job))
    run.claim(AttemptRecord(number=attempt, started_at=now.isoformat(), host="here", pid=attempt, backend="local"))


def digest(network: nn.Module) -> str:
    """Digest of all bits of a network's parameters and buffers."""
    return state_digest(network.state_dict())


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in state.values())).hexdigest()


class Killed(Exception):  # noqa: N818  # no error: it stands for SIGKILL
    pass


def killed_at(trainer: Trainer, step: int) -> Trainer:
    """The same trainer; its process is killed when it requests the batch after ``step``."""
    batches = trainer.training_batches

    def until(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(start), start):
            if i == step:
                raise Killed
            yield batch

    trainer.training_batches = until
    return trainer


def facts_of(record: RoundRecord) -> object:
    """A round's record without times and attempt, which differ between equal runs."""
    return (
        record.round, record.step, record.images, record.train_losses, record.val_losses, record.metrics,
        record.per_class, record.confusion, record.weights, record.learning_rate, record.rewinds, record.best,
    )  # fmt: skip


def on_square(sample: Sample, placement: Placement, size: int) -> tuple[Canvas, torch.Tensor]:
    """A sample as it is placed, and the image that the CPU renders from it: [3, size, size]."""
    buffer = BufferPool(1).take()
    canvas = place(sample, placement, size, buffer.add)
    return canvas, Crops.of(buffer.pixels(), [canvas.image], size).resize(ALONE.device)[0]


def assert_same_batch(ours: Batch, theirs: Batch) -> None:
    """Compare bit for bit, on the CPU."""
    ours, theirs = ours.to(ALONE.device), theirs.to(ALONE.device)
    assert ours.images.stride() == theirs.images.stride()  # the memory format
    assert (ours.keys, ours.skipped) == (theirs.keys, theirs.skipped)
    assert all(torch.equal(ours.has[task], theirs.has[task]) for task in ours.has.keys() | theirs.has.keys())
    for name, value in vars(theirs).items():
        if isinstance(value, torch.Tensor):
            mine = getattr(ours, name)
            assert (mine.dtype, mine.shape) == (value.dtype, value.shape), name
            assert torch.equal(mine, value), name
