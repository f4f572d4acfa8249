"""A trainer for benchmarks, with a run record in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.build import JobData, build_trainer
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.trainer import Trainer

__all__ = ["first_attempt"]


def first_attempt(job: JobSpec, data: JobData, folder: Path) -> Trainer:
    """The trainer of a run's first attempt, on the CPU; its scratch folder is in ``folder``."""
    now = datetime.now(UTC)
    run = RunRecord(MemoryStorage(), "benchmark")
    run.create(plan_run(job, gather_facts(job), run_id="benchmark", now=now), spec_yaml=b"", spec_json=job_to_json(job))
    run.claim(AttemptRecord(number=1, started_at=now.isoformat(), host="here", pid=1, backend="local"))
    group = ProcessGroup(0, 1, torch.device("cpu"))
    return build_trainer(job, data, run, attempt=1, group=group, scratch=Scratch(folder))
