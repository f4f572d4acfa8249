"""The best round's checkpoint is kept, by the job's metric, and the record names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present
from trainer_harness import small_job

from mtl_cloud.jobspec.job import BestSpec, JobSpec
from mtl_cloud.runs.record import CheckpointId
from mtl_cloud.runs.schema import BestRound, RoundRecord
from mtl_cloud.tasks import METRICS
from mtl_cloud.train.checkpoint.retention import Retention, best_of
from mtl_cloud.train.trainer import Trainer

TrainerMaker = Callable[..., Trainer]


def job(**checkpoint: Any) -> JobSpec:
    """A job of four rounds of one step."""
    base = small_job(rounds=4, epochs_per_round=1, max_steps_per_epoch=1, batch_size=4, image_size=32)
    return JobSpec.model_validate(base.model_dump() | {"checkpoint": {"every_minutes": None, "keep": 1, **checkpoint}})


def record_of(number: int, *, step: int = 0, loss: float | None = None, **metrics: dict[str, float | None]) -> Any:
    losses = {"detection": loss}
    return RoundRecord(
        round=number, attempt=1, step=step, epoch=number, ended_at="", seconds=1.0, validation_s=1.0, images=1,
        images_per_s=1.0, data_wait=0.0, train_losses=losses, val_losses=losses, metrics=metrics,
    )  # fmt: skip


def test_only_the_newest_and_the_best_stay_and_the_record_names_the_best(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(job(keep_best={"metric": "segmentation/loss"}))
    assert trainer.fit()
    losses = [present(record.val_losses["segmentation"]) for record in trainer.run.rounds()]
    best = [1 + losses.index(min(losses[:n])) for n in range(1, 5)]
    assert [record.best_round for record in trainer.run.rounds()] == best
    assert trainer.run.checkpoints() == [CheckpointId(step, 1) for step in sorted({best[-1], 4})]


def test_every_rounds_checkpoint_is_kept_if_the_job_requests_it(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(job(keep_rounds=True))
    assert trainer.fit()
    assert [found.step for found in trainer.run.checkpoints()] == [1, 2, 3, 4]
    assert [record.best_round for record in trainer.run.rounds()] == [None] * 4


def test_the_checkpoint_at_the_start_of_the_round_is_kept_for_a_rewind() -> None:
    spec = job()
    training = spec.training.model_copy(update={"on_divergence": "rewind"})
    retention = Retention(spec.model_copy(update={"training": training}), steps_per_round=7)
    assert retention.pinned(3) == {21}


@pytest.mark.parametrize(
    ("spec", "best"),
    [
        ({}, 2),  # the mean of the headline metrics, without unknown ones
        ({"metric": "detection/map50_voc"}, 1),  # the earlier of two equal ones
        ({"metric": "detection/map50_voc", "mode": "min"}, 2),
        ({"metric": "detection/loss"}, 3),
        ({"metric": "detection/loss", "mode": "max"}, 1),
        ({"metric": "segmentation/miou"}, None),
    ],
)
def test_the_best_is_the_earliest_of_the_best_known_values(spec: dict[str, Any], best: int | None) -> None:
    rounds = [
        record_of(1, loss=9.0, detection={"map50_voc": 0.5}, classification={"top1": 0.1}),
        record_of(2, loss=None, detection={"map50_voc": 0.4}, classification={"top1": 0.9}),
        record_of(3, loss=3.0, detection={"map50_voc": 0.5}, segmentation={"miou": None}),
        record_of(4, loss=float("inf"), detection={"map50_voc": None}, classification={"top1": None}),
    ]
    found = best_of(rounds, BestSpec(**spec))
    assert (found.round if found else None) == best


HEADLINES = ("classification/top1", "detection/map50_voc", "segmentation/miou")
VALUES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75])  # few, so that many are equal
TABLES = st.lists(st.dictionaries(st.sampled_from([*HEADLINES, "detection/loss"]), VALUES), min_size=1, max_size=6)


def best_by_trial(rows: list[dict[str, float | None]], metric: str | None, *, less: bool) -> BestRound | None:
    """The best round, by a loop over the rounds."""
    best: BestRound | None = None
    for number, row in enumerate(rows, 1):
        named = [row.get(name) for name in ([metric] if metric else HEADLINES)]
        known = [value for value in named if value is not None]
        if not known:
            continue
        value = sum(known) / len(known)
        if best is None or (value < present(best.value) if less else value > present(best.value)):
            best = BestRound(number, metric, value)
    return best


@settings(deadline=None)
@given(
    rows=TABLES,
    metric=st.sampled_from([None, "detection/map50_voc", "detection/loss", "classification/top5"]),
    mode=st.sampled_from([None, "max", "min"]),
    restart=st.integers(0, 6),
)
def test_every_round_names_the_best_so_far_also_of_previous_attempts(
    rows: list[dict[str, float | None]], metric: str | None, mode: str | None, restart: int
) -> None:
    less = mode == "min" or (mode is None and metric == "detection/loss")
    spec = job(keep_best={"metric": metric, "mode": mode})
    retention = Retention(spec, steps_per_round=1)
    done: list[RoundRecord] = []
    for number, row in enumerate(rows, 1):
        if number == restart:
            retention = Retention(spec, steps_per_round=1)
            retention.observe(*done)
        metrics = {name.split("/")[0]: {name.split("/")[1]: row[name]} for name in HEADLINES if name in row}
        done.append(retention.with_best(record_of(number, step=number, loss=row.get("detection/loss"), **metrics)))
        best = best_by_trial(rows[:number], metric, less=less)
        assert done[-1].best == best
        assert retention.pinned(number) == ({best.round} if best else set())


def test_the_metrics_to_choose_from_are_those_that_are_recorded(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(job().model_copy(update={"training": job().training.model_copy(update={"rounds": 1})}))
    assert trainer.fit()
    recorded = trainer.run.rounds()[0].metrics
    assert recorded["detection"].keys() == set(METRICS["detection"])
    assert recorded["segmentation"].keys() == set(METRICS["segmentation"])
    assert {name for name in recorded["classification"] if name != "n" and not name.startswith("top1_")} < set(
        METRICS["classification"]
    )
