"""Fixtures that build a trainer in this process, with a run record in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from trainer_harness import ALONE, open_attempt

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.storage import MemoryStorage, Storage
from mtl_cloud.train.build import JobData
from mtl_cloud.train.trainer import Trainer


@pytest.fixture(autouse=True)
def _kernels_of_this_test_only() -> Iterator[None]:
    """Undo the choice of deterministic kernels, which a trainer makes for the whole process."""
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """``make_trainer(job, storage=…, attempt=…, data=…)``. Uses one thread, so that sums have a fixed order."""
    torch.set_num_threads(1)

    def make(job: JobSpec, *, storage: Storage | None = None, attempt: int = 1, data: JobData | None = None) -> Trainer:
        return open_attempt(job, tmp_path, storage=storage or MemoryStorage(), attempt=attempt, data=data, group=ALONE)

    return make
