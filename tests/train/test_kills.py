"""A run that is killed at any events, any number of times, ends with the result of an uninterrupted run."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from mortality import Killed, Life, MortalStorage, mortal
from trainer_harness import ALONE, digest, facts_of, open_attempt, small_job

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.storage import MemoryStorage, Storage
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.checkpoint.async_saver import AsyncSaver
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer
from mtl_cloud.train.trainer import Trainer

ROUNDS = 2
Outcome = tuple[str, list[object]]


def tiny_job() -> JobSpec:
    """MTL-Net on six batches of four. Every step is saved unless the previous save is still running."""
    job = small_job(rounds=ROUNDS, epochs_per_round=1, max_steps_per_epoch=3, batch_size=4, image_size=32)
    return job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"every_minutes": 1e-9, "keep": 2})})


def diverging_job() -> JobSpec:
    """The tiny job with a diverging learning rate in round 2, a rewind, averaged weights and one best round."""
    job = tiny_job()
    training = {
        "optimizer": {"lr": 1e38},
        "schedule": {"warmup_steps": 6, "warmup_power": 137},
        "on_divergence": "rewind",
        "divergence": {"lr_factor": 1e-39},
        "ema": 0.9,
    }
    checkpoint = {"every_minutes": 1e-9, "keep": 1, "keep_best": {}}
    dump = job.model_dump()
    return JobSpec.model_validate(dump | {"training": dump["training"] | training, "checkpoint": checkpoint})


@dataclass(frozen=True)
class Baseline:
    """A job and its result without interruption."""

    job: JobSpec
    data: JobData
    outcome: Outcome
    events: int


@pytest.fixture(scope="module")
def baseline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    torch.set_num_threads(1)
    job, life = request.param(), Life()
    data = open_data(job)
    trainer = begin(job, data, tmp_path_factory.mktemp("straight"), MemoryStorage(), life)
    assert trainer.fit()
    events = life.events
    assert len(trainer.position.rewinds) == (request.param is diverging_job)
    return Baseline(job, data, outcome(trainer), events)


def begin(job: JobSpec, data: JobData, folder: Path, storage: Storage, life: Life) -> Trainer:
    attempt = (RunRecord(storage, "test").owner() or 0) + 1
    trainer = open_attempt(job, folder, storage=MortalStorage(storage, life), attempt=attempt, data=data, group=ALONE)
    return mortal(trainer, life)


def outcome(trainer: Trainer) -> Outcome:
    digests = digest(trainer.network) + digest(trainer.replica.eval_network)
    return digests, [facts_of(record) for record in trainer.run.rounds()]


def live_until_done(folder: Path, baseline: Baseline, lives: list[Life]) -> Outcome:
    """Run one attempt for each life, then a last one that is not killed."""
    storage = MemoryStorage()
    for life in lives:
        with suppress(Killed):
            begin(baseline.job, baseline.data, folder, storage, life).fit()
    trainer = begin(baseline.job, baseline.data, folder, storage, Life())
    assert trainer.fit()
    return outcome(trainer)


@st.composite
def some_lives(draw: st.DrawFn, events: int) -> list[Life]:
    ends = draw(st.lists(st.tuples(st.integers(1, events), st.booleans()), min_size=4, max_size=6))
    return [Life(last, after=after) for last, after in ends]


def kill_at_random(draw: st.DataObject, baseline: Baseline, folder: Path) -> None:
    lives = draw.draw(some_lives(baseline.events))
    assert live_until_done(folder, baseline, lives) == baseline.outcome


@pytest.mark.parametrize("baseline", [tiny_job], indirect=True)
@examples(12, reuse_fixtures=True, derandomize=True)
@given(draw=st.data())
def test_random_kills_change_nothing(draw: st.DataObject, baseline: Baseline, tmp_path: Path) -> None:
    kill_at_random(draw, baseline, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [diverging_job], indirect=True)
@examples(4, reuse_fixtures=True, derandomize=True)
@given(draw=st.data())
def test_random_kills_of_a_run_that_rewinds_change_nothing(
    draw: st.DataObject, baseline: Baseline, tmp_path: Path
) -> None:
    kill_at_random(draw, baseline, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("baseline", [tiny_job, diverging_job], indirect=True)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_every_single_event_changes_nothing(baseline: Baseline, tmp_path: Path, *, after: bool) -> None:
    for last in range(1, baseline.events + 1):
        lives = [Life(last, after=after)]
        assert live_until_done(tmp_path, baseline, lives) == baseline.outcome, f"killed at event {last}"


# --- saving alone: a kill at every request ---

SAVES = (3, 5, 8)


def value_at(step: int) -> torch.Tensor:
    return torch.full((700,), float(step))


def save_some(storage: Storage, attempt: int) -> int:
    """Restore and check the newest state, then save three states. Returns the last step, which is committed."""
    run = RunRecord(storage, "x-1")
    restored = Checkpointer(run, attempt, keep=1).load_latest()
    start = restored.manifest.step if restored else 0
    if restored:
        assert torch.equal(restored.state["w"], value_at(start))
    saver = AsyncSaver(Checkpointer(run, attempt, keep=1, part_bytes=1000))
    for step in SAVES:
        saver.save({"w": value_at(start + step)}, step=start + step, round=0, reason="time")
    saver.drain()
    return start + SAVES[-1]


def claim(storage: Storage, attempt: int) -> None:
    record = AttemptRecord(number=attempt, started_at="15:00", host="h", pid=1, backend="local")
    RunRecord(storage, "x-1").claim(record)


def committed_step(storage: Storage) -> int:
    return max((found.step for found in RunRecord(storage, "x-1").checkpoints()), default=0)


def test_a_save_killed_at_any_request_leaves_the_state_before_or_after_it() -> None:
    whole = Life()
    save_some(MortalStorage(MemoryStorage(), whole), 1)
    deaths = list(itertools.product(range(1, whole.events + 1), [False, True]))
    assert len(deaths) > 80
    for first, second in zip(deaths, reversed(deaths), strict=True):
        storage = MemoryStorage()
        reached = 0
        for attempt, (last, after) in enumerate((first, second), 1):
            life = Life(last, after=after)
            claim(storage, attempt)
            with suppress(Killed):
                save_some(MortalStorage(storage, life), attempt)
            assert committed_step(storage) >= reached
            reached = committed_step(storage)
        claim(storage, 3)
        assert save_some(storage, 3) == reached + SAVES[-1]
        assert RunRecord(storage, "x-1").started_checkpoints() == [(reached + SAVES[-1], 3)]
