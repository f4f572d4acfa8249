"""Two processes that share every batch train as one process does with the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_harness import Altered
from process_harness import in_processes
from torch import nn
from trainer_harness import ALONE, open_attempt, small_job

from mtl_cloud.datasets.base import HintFor, Sample
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import RoundRecord
from mtl_cloud.storage import FolderStorage
from mtl_cloud.tasks import Task
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.distributed import ProcessGroup


@dataclass(frozen=True)
class MasksOnEvenSamples(Altered):
    """A dataset without masks in odd samples: read in order, the second of two processes gets none."""

    def load(self, index: int, hint_for: HintFor) -> Sample:
        sample = super().load(index, hint_for)
        return replace(sample, segmentation=None) if index % 2 else sample

    def labels(self, index: int) -> frozenset[Task]:
        return super().labels(index) - ({"segmentation"} if index % 2 else set())


def _in_double(_module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].double()


@dataclass(frozen=True)
class FitIn:
    """Trains in a folder. Picklable, for spawned processes.

    There is no dropout, because each process draws its own masks. The fit is one step in double precision, because a
    fresh segmenter amplifies an input change of 1e-8 to 1e-3 in the loss of its second step, even in one process.
    """

    folder: Path

    def __call__(self, group: ProcessGroup) -> dict[str, torch.Tensor]:
        job = small_job(sampling="sequential", rounds=1, epochs_per_round=1, max_steps_per_epoch=1, deterministic=False)
        data = open_data(job)
        halved = JobData(MasksOnEvenSamples(data.train), data.val, data.classes)
        torch.set_default_dtype(torch.float64)
        storage = FolderStorage(self.folder)
        trainer = open_attempt(job, self.folder, storage=storage, attempt=1, data=halved, group=group)
        torch.set_default_dtype(torch.float32)
        trainer.replica.weighting.float()
        trainer.network.register_forward_pre_hook(_in_double)
        for module in trainer.network.modules():
            if isinstance(module, nn.LayerNorm):  # the fusion casts its input to float32
                module.register_forward_pre_hook(_in_double)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert trainer.fit()
        return {name: value.clone() for name, value in trainer.network.state_dict().items()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, torch.Tensor]], list[RoundRecord]]:
    """Network states in one process and in each of two; round records of one process and of two."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    torch.set_num_threads(1)
    states = [FitIn(alone)(ALONE), *in_processes(2, together, FitIn(together))]
    return states, [RunRecord(FolderStorage(folder), "test").rounds()[0] for folder in (alone, together)]


def test_parameters_and_statistics_are_those_of_one_process(outcome: Any) -> None:
    (one, first, second), _ = outcome
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def test_losses_and_metrics_are_those_of_one_process(outcome: Any) -> None:
    _, (one, two) = outcome
    assert two.images == one.images
    assert two.train_losses == pytest.approx(one.train_losses, rel=1e-6)
    assert two.val_losses == pytest.approx(one.val_losses, rel=1e-4)
    assert two.metrics["classification"] == pytest.approx(one.metrics["classification"])
