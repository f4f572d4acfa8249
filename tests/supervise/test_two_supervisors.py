"""Two supervisors of one run, whose requests to the storage take turns in any order: one of them ends the run.

The supervisors, the fence and the checkpoints are real; a trainer's process is a function that makes its requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from interleaving import act_in_turns
from narrowing import result_of
from run_harness import PLAN, FakeClock

from mtl_cloud.errors import AlreadyExistsError, MtlCloudError, RunTakenOverError
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome, PlanRecord, RoundRecord
from mtl_cloud.storage import MemoryStorage, Storage
from mtl_cloud.supervise import supervisor
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import AttemptEnd, Decision
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer

ROUNDS = 3
End = Decision | MtlCloudError
AROUND = SupervisorContext(scratch=Path("unused"), environ={}, clock=FakeClock())


class Chronicle(MemoryStorage):
    """Remembers the order in which objects came to be."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        self.created.append(key)


class Trained:
    """In the place of an attempt with its processes: a trainer's requests. Each step is a round, saved and told of."""

    def __init__(self, run: RunRecord, plan: PlanRecord, number: int, context: SupervisorContext) -> None:
        self._run, self._number = run, number

    def run_to_end(self) -> AttemptEnd:
        try:
            self._train()
        except RunTakenOverError as error:
            return AttemptEnd(Outcome.INTERRUPTED, None, str(error))
        return AttemptEnd(Outcome.DONE, 0, "all rounds are done")

    def _train(self) -> None:
        checkpointer = Checkpointer(self._run, self._number, keep=1)
        restored = checkpointer.load_latest()
        trained_by = list(restored.state["trained_by"]) if restored else []
        if trained_by:  # its round may still be open: the state is saved before the round is told of
            self._run.write_round(round_record(len(trained_by), self._number))
        for step in range(len(trained_by) + 1, ROUNDS + 1):
            trained_by.append(self._number)
            state = {"w": torch.full((3,), float(step)), "trained_by": trained_by}
            checkpointer.save(state, step=step, round=step, reason="round")
            self._run.write_round(round_record(step, self._number))


def round_record(number: int, attempt: int) -> RoundRecord:
    numbers: dict[str, Any] = dict.fromkeys(("seconds", "validation_s", "images_per_s", "data_wait"), 1.0)
    facts: dict[str, Any] = {"train_losses": {}, "val_losses": {}, "metrics": {}, "images": 1, "ended_at": "15:00"}
    return RoundRecord(round=number, attempt=attempt, step=number, epoch=number, **numbers, **facts)


def supervised(storage: Storage) -> End:
    try:
        return supervisor.supervise(RunRecord(storage, PLAN.run_id), None, AROUND)
    except MtlCloudError as error:
        return error


def says_why(end: End) -> bool:
    """The loser knows who has the run."""
    if isinstance(end, AlreadyExistsError):
        return "was claimed by process" in str(end) or "has ended the run" in str(end)
    message = end.message if isinstance(end, Decision) else str(end)
    return "was replaced by attempt" in message


@st.composite
def orders(draw: st.DrawFn) -> list[int]:
    """Stretches of one actor's requests; a supervisor makes some 60."""
    stretches = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 30)), max_size=12))
    return [actor for actor, length in stretches for _ in range(length)]


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "Attempt", Trained)
    monkeypatch.setattr(supervisor, "device_name", lambda: "cpu")


@examples(150, reuse_fixtures=True)
@given(order=orders())
def test_one_of_two_supervisors_ends_the_run_and_the_other_says_who_has_it(order: Sequence[int]) -> None:
    storage = Chronicle()
    run = RunRecord(storage, PLAN.run_id)
    spec = {"name": PLAN.name, "compute": {"backend": "local", "max_restarts": 3}}
    run.create(replace(PLAN, storage=storage.url), spec_yaml=b"", spec_json=json.dumps(spec).encode())
    ends = act_in_turns(storage, order, [supervised, supervised])
    done = [end for end in ends if isinstance(end, Decision) and end.outcome == Outcome.DONE]
    assert done
    assert all(says_why(end) for end in ends if end not in done), ends
    result, owner = run.result(), run.owner()
    assert result is not None
    assert owner is not None
    assert result.outcome == Outcome.DONE
    assert [record.round for record in run.rounds()] == [1, 2, 3]
    check_chain(run, owner)
    for attempt in range(1, owner):
        replaced = storage.created.index(run.paths.attempt(attempt + 1))
        late = [key for key in storage.created[replaced:] if committed_by(run, key) == attempt]
        assert len(late) <= 1, late  # the one whose owner had been asked for already


def committed_by(run: RunRecord, key: str) -> int | None:
    """The attempt that committed a round, a checkpoint or the result; None for all else."""
    if key == run.paths.result:
        return result_of(run).attempts
    if key.startswith(run.paths.rounds):
        return next(record.attempt for record in run.rounds() if run.paths.round(record.round) == key)
    found = run.paths.checkpoint_of(key)
    return found[1] if found and key.endswith("manifest.json") else None


def check_chain(run: RunRecord, owner: int) -> None:
    """What a further attempt would go on from is the whole of the training, each step on top of the one before it."""
    restored = Checkpointer(run, owner, keep=1).load_latest()
    assert restored is not None
    trained_by = restored.state["trained_by"]
    assert (len(trained_by), trained_by) == (ROUNDS, sorted(trained_by))
    start = run.start(trained_by[-1])
    assert start is not None
    assert trained_by.count(trained_by[-1]) == ROUNDS - (start.checkpoint_step or 0)
