"""A run of a small joint network that takes a second with real supervisors and trainers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer_harness import facts_of, small_job, state_digest

from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import FolderStorage
from mtl_cloud.train.checkpoint.checkpointer import read_checkpoint

__all__ = ["end_state", "make_small_run"]


def make_small_run(
    folder: Path,
    *,
    rounds: int = 4,
    epochs_per_round: int = 1,
    every_minutes: float | None = 1e-9,
    loader_workers: int = 0,
    **limits: Any,
) -> RunRecord:
    """Rounds of three small batches; every step is saved unless a save is in progress. ``limits`` are plan fields."""
    job = small_job(
        rounds=rounds,
        epochs_per_round=epochs_per_round,
        max_steps_per_epoch=3,
        batch_size=4,
        image_size=32,
        loader_workers=loader_workers,
    )
    job = job.model_copy(
        update={
            "checkpoint": job.checkpoint.model_copy(update={"every_minutes": every_minutes}),
            "compute": job.compute.model_copy(update={"max_restarts": 1000}),
            "storage": str(folder),
        }
    )
    run = RunRecord(FolderStorage(folder), "test")
    plan = plan_run(job, gather_facts(job), run_id="test", now=datetime(2026, 1, 1, tzinfo=UTC))
    run.create(replace(plan, **limits), spec_yaml=b"", spec_json=job_to_json(job))
    return run


def end_state(run: RunRecord) -> tuple[str, list[object]]:
    """The network of the newest checkpoint, and the rounds without their times."""
    newest = run.checkpoints()[-1]
    state = read_checkpoint(run, newest).state
    return state_digest(state["network"]), [facts_of(record) for record in run.rounds()]
