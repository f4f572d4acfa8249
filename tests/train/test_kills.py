"""A run may be killed at any event, any number of times: it comes to the end of the run that never was."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mortality import Killed, Life, MortalStorage, mortal
from trainer_harness import ALONE, digest, facts_of, open_attempt, small_job

from mtl_cloud.records import AttemptRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.spec.job import JobSpec
from mtl_cloud.storage import MemoryStorage, Storage
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.checkpoint import Checkpointer
from mtl_cloud.train.loop import Trainer
from mtl_cloud.train.saver import Saver

ROUNDS = 2
Outcome = tuple[str, list[object]]


def tiny_job() -> JobSpec:
    """MTL-Net on six batches of four; every step is saved, unless a save is under way."""
    job = small_job(rounds=ROUNDS, epochs_per_round=1, max_steps_per_epoch=3, batch_size=4, image_size=32)
    return job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"every_minutes": 1e-9, "keep": 2})})


@pytest.fixture(scope="module")
def data() -> JobData:
    torch.set_num_threads(1)
    return open_data(tiny_job())


@pytest.fixture(scope="module")
def straight(data: JobData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, int]:
    """Outcome of the run without a break, and how many events it has."""
    life = Life()
    trainer = begin(MemoryStorage(), tmp_path_factory.mktemp("straight"), 1, data, life)
    assert trainer.fit()
    events = life.events
    return outcome(trainer), events


def begin(storage: Storage, folder: Path, attempt: int, data: JobData, life: Life) -> Trainer:
    trainer = open_attempt(
        tiny_job(), folder, storage=MortalStorage(storage, life), attempt=attempt, data=data, group=ALONE
    )
    return mortal(trainer, life)


def outcome(trainer: Trainer) -> Outcome:
    return digest(trainer.network), [facts_of(record) for record in trainer.run.rounds()]


def live_until_done(folder: Path, data: JobData, lives: list[Life]) -> Outcome:
    """One attempt after another, the last of them immortal."""
    storage = MemoryStorage()
    for life in lives:
        with suppress(Killed):
            begin(storage, folder, next_attempt(storage), data, life).fit()
    trainer = begin(storage, folder, next_attempt(storage), data, Life())
    assert trainer.fit()
    return outcome(trainer)


def next_attempt(storage: Storage) -> int:
    return (RunRecord(storage, "test").owner() or 0) + 1


@st.composite
def some_lives(draw: st.DrawFn, events: int) -> list[Life]:
    ends = draw(st.lists(st.tuples(st.integers(1, events), st.booleans()), min_size=4, max_size=6))
    return [Life(last, after=after) for last, after in ends]


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_random_kills_change_nothing(
    draw: st.DataObject, straight: tuple[Outcome, int], data: JobData, tmp_path: Path
) -> None:
    expected, events = straight
    lives = draw.draw(some_lives(events))
    assert live_until_done(tmp_path, data, lives) == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_every_single_event_changes_nothing(
    straight: tuple[Outcome, int], data: JobData, tmp_path: Path, *, after: bool
) -> None:
    expected, events = straight
    for last in range(1, events + 1):
        lives = [Life(last, after=after)]
        assert live_until_done(tmp_path, data, lives) == expected, f"killed at event {last}"


# --- saving alone: every request of thousands of lives ---

SAVES = (3, 5, 8)


def value_at(step: int) -> torch.Tensor:
    return torch.full((700,), float(step))


def save_some(storage: Storage, attempt: int) -> int:
    """Go on from what is there, save three states behind the scenes; the last step that was surely committed."""
    run = RunRecord(storage, "x-1")
    restored = Checkpointer(run, attempt, keep=1).load_latest()
    start = restored.manifest.step if restored else 0
    if restored:
        assert torch.equal(restored.state["w"], value_at(start))
    saver = Saver(Checkpointer(run, attempt, keep=1, part_bytes=1000))
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
