"""A run trains, records its rounds, and resumes exactly where it was killed or stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from dataset_harness import Altered
from torch import Tensor
from trainer_harness import ALONE, Killed, digest, facts_of, killed_at, open_attempt, small_job

from mtl_cloud.datasets.base import HintFor, Sample
from mtl_cloud.datasets.wrappers import SkippingDataset
from mtl_cloud.errors import DatasetError, TrainingError
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.tasks import Task
from mtl_cloud.train.build import JobData, network_classes, open_data
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.trainer import Trainer, _finite

TrainerMaker = Callable[..., Trainer]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[object]]:
    """Parameters and rounds of the small job without interruption."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight")
    trainer = open_attempt(small_job(), folder, storage=MemoryStorage(), attempt=1, data=None, group=ALONE)
    assert trainer.fit()
    return digest(trainer.network), [facts_of(record) for record in trainer.run.rounds()]


def test_a_run_records_every_round_with_the_metrics_of_all_tasks(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(small_job())
    assert trainer.fit()
    rounds = trainer.run.rounds()
    assert [(r.round, r.step, r.epoch, r.images) for r in rounds] == [(1, 6, 2, 48), (2, 12, 4, 48)]
    for record in rounds:
        assert {"top1", "recall_macro"} <= record.metrics["classification"].keys()
        assert {"map50_voc", "map50_voc07", "map"} <= record.metrics["detection"].keys()
        assert {"miou", "pixel_accuracy"} <= record.metrics["segmentation"].keys()
        assert all(loss is not None and math.isfinite(loss) for loss in record.train_losses.values())
        assert record.images_per_s > 0
        assert 0 <= record.data_wait <= 1
    samples = trainer.run.samples(2)
    assert samples is not None
    assert all({"classes", "boxes", "mask"} <= s["truth"].keys() & s["prediction"].keys() for s in samples.samples)


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_the_images_of_a_rounds_record_are_as_validation_sees_them(make_trainer: TrainerMaker, fit: str) -> None:
    trainer = make_trainer(small_job(fit=fit))
    drawn = trainer.sample_batch()
    found: dict[str, Tensor] = {}
    for batch in trainer.validation_batches():
        found.update(zip(batch.keys, batch.to(ALONE.device).images, strict=True))
    assert len(set(drawn.keys)) == len(drawn) > 1
    for key, image in zip(drawn.keys, drawn.images, strict=True):
        assert torch.equal(image, found[key])


@pytest.mark.parametrize("step", [0, 1, 5, 6, 7, 11])
def test_a_killed_run_resumes_to_the_same_parameters_bit_for_bit(
    make_trainer: TrainerMaker, straight: tuple[str, list[object]], step: int
) -> None:
    storage = MemoryStorage()
    with pytest.raises(Killed):
        killed_at(make_trainer(small_job(), storage=storage), step).fit()
    second = make_trainer(small_job(), storage=storage, attempt=2)
    assert second.fit()
    assert (digest(second.network), [facts_of(record) for record in second.run.rounds()]) == straight


@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_a_stop_is_honoured_at_the_next_step_and_loses_none(
    make_trainer: TrainerMaker, straight: tuple[str, list[object]], step: int, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    first = make_trainer(small_job(), storage=storage)
    after_step(first, step, lambda: first.channel._scratch.request_stop(StopReason.CANCEL))
    assert not first.fit()
    assert first.position.step == step
    second = make_trainer(small_job(), storage=storage, attempt=2)
    assert second.fit()
    assert (digest(second.network), [facts_of(record) for record in second.run.rounds()]) == straight


def after_step(trainer: Trainer, step: int, act: Callable[[], None]) -> None:
    """Call ``act`` just before the batch of ``step`` (1-based) is returned."""
    batches = trainer.training_batches

    def watched(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(start), start + 1):
            if i == step:
                act()
            yield batch

    trainer.training_batches = watched


def test_a_stop_in_validation_leaves_the_round_open_and_the_next_attempt_closes_it(
    make_trainer: TrainerMaker, straight: tuple[str, list[object]]
) -> None:
    storage = MemoryStorage()
    first = make_trainer(small_job(), storage=storage)
    validation = first.validation_batches

    def stop_in_validation() -> Iterator[Batch]:
        first.channel._scratch.request_stop(StopReason.DEADLINE)
        return validation()

    first.validation_batches = stop_in_validation
    assert not first.fit()
    assert first.run.rounds() == []
    second = make_trainer(small_job(), storage=storage, attempt=2)
    assert second.fit()
    assert (digest(second.network), [facts_of(record) for record in second.run.rounds()]) == straight


def test_a_finished_run_started_again_does_nothing(make_trainer: TrainerMaker) -> None:
    storage = MemoryStorage()
    first = make_trainer(small_job(), storage=storage)
    assert first.fit()
    assert make_trainer(small_job(), storage=storage, attempt=2).fit()
    assert len(first.run.rounds()) == 2


def test_loader_workers_do_not_change_the_outcome(
    make_trainer: TrainerMaker, straight: tuple[str, list[object]]
) -> None:
    trainer = make_trainer(small_job(loader_workers=2))
    assert trainer.fit()
    assert (digest(trainer.network), [facts_of(record) for record in trainer.run.rounds()]) == straight


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_task(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(small_job(optimizer={"lr": 1e12, "clip_norm": None}))
    with pytest.raises(
        TrainingError, match=r"the (classification|detection|segmentation) loss is (nan|inf) at step \d"
    ):
        trainer.fit()


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_trains_too(make_trainer: TrainerMaker, precision: str) -> None:
    trainer = make_trainer(small_job(precision=precision, rounds=1))
    assert trainer.fit()
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("labelled", "expected"),
    [
        ({"classification": ("cat", "dog")}, ("background", "cat", "dog")),
        ({"classification": ("cat",), "segmentation": ("background", "sky")}, ("background", "sky")),
    ],
)
def test_a_task_without_labels_borrows_its_classes(
    labelled: dict[Task, tuple[str, ...]], expected: tuple[str, ...]
) -> None:
    wanted: tuple[Task, ...] = ("classification", "detection", "segmentation")
    assert network_classes(wanted, labelled)["segmentation"] == expected


def test_a_network_none_of_whose_tasks_is_labelled_is_refused() -> None:
    with pytest.raises(DatasetError, match="learns detection, and the data labels classification"):
        network_classes(("detection",), {"classification": ("cat",)})


@dataclass(frozen=True)
class Damaged(Altered):
    """A dataset with one sample that cannot be read."""

    bad: int

    def load(self, index: int, hint_for: HintFor) -> Sample:
        if index == self.bad:
            raise DatasetError(f"{self.key(index)} is damaged")
        return super().load(index, hint_for)


def test_damaged_samples_of_both_splits_are_counted_once_each(make_trainer: TrainerMaker) -> None:
    data = open_data(small_job())
    train, val = (SkippingDataset(Damaged(split, bad=3)) for split in (data.train, data.val))
    trainer = make_trainer(small_job(), data=JobData(train, val, data.classes))
    assert trainer.fit()
    assert [record.bad_samples for record in trainer.run.rounds()] == [2, 2]


def test_what_json_cannot_hold_is_recorded_as_unknown() -> None:
    assert _finite({"classification": math.inf, "detection": math.nan, "segmentation": None}) == {
        "classification": None,
        "detection": None,
        "segmentation": None,
    }
    assert _finite({"top1": 0.5}) == {"top1": 0.5}
