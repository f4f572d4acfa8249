"""The one reader and writer of a run: what is written once, who may write it, and what a reader finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.errors import AlreadyExistsError, NotFoundError, RecordError, RunTakenOverError
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import (
    AttemptRecord,
    CancelRecord,
    CheckpointManifest,
    ExitRecord,
    Heartbeat,
    PlanRecord,
    ResultRecord,
    RoundRecord,
    RoundSamples,
    StartRecord,
)
from mtl_cloud.storage import MemoryStorage

PLAN = PlanRecord(
    run_id="voc-3fa1c9",
    name="voc",
    created_at="2026-11-23T15:00:00+00:00",
    backend="local",
    storage="memory://",
    command=["train"],
    env={},
    processes=1,
    rounds=3,
)
RESULT = ResultRecord(ended_at="now", outcome="done", message="", attempts=1, rounds=3, seconds=60)
EXIT = ExitRecord(ended_at="now", outcome="interrupted", exit_code=None, message="spot", seconds=60)
MANIFEST = CheckpointManifest(step=10, attempt=1, round=0, created_at="now", reason="time", parts=[], meta={}).sealed()


def an_attempt(number: int, **changes: Any) -> AttemptRecord:
    fields: dict[str, Any] = {
        "number": number,
        "started_at": "15:00",
        "host": f"host-{number}",
        "pid": 1,
        "backend": "local",
    }
    return AttemptRecord(**(fields | changes))


def a_round(number: int, *, attempt: int = 1, seconds: float = 1) -> RoundRecord:
    return RoundRecord(
        round=number,
        attempt=attempt,
        step=10 * number,
        epoch=number,
        ended_at="now",
        seconds=seconds,
        validation_s=1,
        images=100,
        images_per_s=100,
        data_wait=0.1,
        train_losses={},
        val_losses={},
        metrics={},
    )


@pytest.fixture
def run() -> RunRecord:
    run = RunRecord(MemoryStorage(), "voc-3fa1c9")
    run.create(PLAN, spec_yaml=b"name: voc\n", spec_json=b"{}")
    return run


@pytest.fixture
def taken_over(run: RunRecord) -> RunRecord:
    run.claim(an_attempt(1))
    run.claim(an_attempt(2))
    return run


# --- the run ---


def test_a_run_is_read_back_by_another_reader(run: RunRecord) -> None:
    reader = RunRecord(run.storage, run.run_id)
    assert (reader.plan(), reader.spec_yaml(), reader.spec_json()) == (PLAN, b"name: voc\n", b"{}")


def test_the_supervisor_s_limit_is_that_of_the_job_as_it_was_moved() -> None:
    run = RunRecord(MemoryStorage(), "voc-3fa1c9")
    run.create(PLAN, spec_yaml=b"", spec_json=b'{"name": "voc", "compute": {"max_restarts": 3, "backend": "local"}}')
    assert run.max_restarts() == 3
    run.move(PLAN, spec_json=b'{"compute": {"max_restarts": 5}}')
    assert run.max_restarts() == 5


@pytest.mark.parametrize(
    ("spec_json", "message"),
    [
        (b"{}", r"spec\.json: the field 'compute' of a job is missing"),
        (b'{"compute": {"max_restarts": "3"}}', r"spec\.json: the field 'compute\.max_restarts' of a job cannot be"),
        (b"[]", r"spec\.json: a JSON object is expected"),
    ],
)
def test_a_job_without_that_limit_is_refused_by_name(spec_json: bytes, message: str) -> None:
    run = RunRecord(MemoryStorage(), "voc-3fa1c9")
    run.create(PLAN, spec_yaml=b"", spec_json=spec_json)
    with pytest.raises(RecordError, match=message):
        run.max_restarts()


def test_a_run_exists_once(run: RunRecord) -> None:
    with pytest.raises(AlreadyExistsError, match=r"voc-3fa1c9/plan\.json"):
        run.create(PLAN, spec_yaml=b"name: voc\n", spec_json=b"{}")


def test_another_job_does_not_touch_an_existing_run(run: RunRecord) -> None:
    with pytest.raises(AlreadyExistsError):
        run.create(replace(PLAN, rounds=9), spec_yaml=b"name: other\n", spec_json=b"{1}")
    assert (run.plan(), run.spec_yaml()) == (PLAN, b"name: voc\n")


def test_the_plan_comes_last_and_an_interrupted_making_can_be_taken_up_again() -> None:
    class Failing(MemoryStorage):
        left = 2

        def create(self, key: str, data: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError(key)
            super().create(key, data)

    storage = Failing()
    run = RunRecord(storage, "voc-3fa1c9")
    with pytest.raises(ConnectionError, match=r"plan\.json"):
        run.create(PLAN, spec_yaml=b"y", spec_json=b"j")
    assert not run.exists()
    storage.left = 9
    run.create(PLAN, spec_yaml=b"y", spec_json=b"j")
    assert run.exists()


def test_a_run_that_does_not_exist_has_no_plan_and_nothing_else() -> None:
    run = RunRecord(MemoryStorage(), "none-000000")
    with pytest.raises(NotFoundError):
        run.plan()
    assert (run.owner(), run.attempts(), run.rounds(), run.checkpoints(), run.result()) == (None, [], [], [], None)
    assert (run.cancel_request(), run.heartbeat(1), run.exit(1), run.start(1), run.samples(1)) == (None,) * 5


def test_a_damaged_file_is_named_with_its_storage(run: RunRecord) -> None:
    run.storage.write(run.paths.plan, b"{")
    with pytest.raises(RecordError, match=r"^memory:///runs/voc-3fa1c9/plan\.json: not JSON"):
        run.plan()


def test_the_first_wish_to_cancel_stands(run: RunRecord) -> None:
    run.request_cancel(CancelRecord(at="15:00", by="ada"))
    run.request_cancel(CancelRecord(at="15:01", by="bob"))
    assert run.cancel_request() == CancelRecord(at="15:00", by="ada")


def test_a_record_is_shown_by_its_storage_and_its_run(run: RunRecord) -> None:
    assert repr(run) == "RunRecord('memory://', 'voc-3fa1c9')"


# --- attempts and the fence ---


def test_the_highest_claim_owns_the_run(run: RunRecord) -> None:
    owners = []
    for number in (1, 2, 3):
        run.claim(an_attempt(number))
        owners.append(run.owner())
    assert owners == [1, 2, 3]
    assert run.attempts() == [an_attempt(1), an_attempt(2), an_attempt(3)]
    run.require_owner(3)


def test_a_claim_out_of_turn_is_a_mistake(run: RunRecord) -> None:
    with pytest.raises(ValueError, match="attempt 2 claimed before attempt 1"):
        run.claim(an_attempt(2))


def test_one_of_many_claimants_gets_the_number(run: RunRecord) -> None:
    barrier, refused = Barrier(8), []

    def claim(pid: int) -> None:
        barrier.wait()
        try:
            run.claim(an_attempt(1, pid=pid))
        except AlreadyExistsError:
            refused.append(pid)

    threads = [Thread(target=claim, args=(pid,)) for pid in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.attempts()[0].pid, *refused} == set(range(8))
    assert len(refused) == 7


def test_a_claim_whose_reply_was_lost_is_known_by_its_nonce_only(run: RunRecord) -> None:
    run.claim(an_attempt(1, nonce="c0ffee"))
    run.claim(an_attempt(1, nonce="c0ffee"))
    run.claim(an_attempt(2))
    with pytest.raises(AlreadyExistsError):
        run.claim(an_attempt(2))


FENCED: dict[str, Callable[[RunRecord, int], object]] = {
    "round": lambda run, attempt: run.write_round(a_round(1, attempt=attempt)),
    "samples": lambda run, attempt: run.write_samples(RoundSamples(round=1, classes={}, samples=[]), attempt=attempt),
    "result": lambda run, attempt: run.write_result(RESULT, attempt=attempt),
    "checkpoint": lambda run, attempt: run.commit_checkpoint(replace(MANIFEST, attempt=attempt).sealed()),
}


@pytest.mark.parametrize("what", FENCED)
def test_a_replaced_attempt_commits_nothing_and_is_told_by_whom(taken_over: RunRecord, what: str) -> None:
    before = taken_over.storage.list("")
    with pytest.raises(RunTakenOverError, match=r"attempt 1 was replaced by attempt 2, .* 15:00 on host-2"):
        FENCED[what](taken_over, 1)
    assert taken_over.storage.list("") == before
    FENCED[what](taken_over, 2)
    assert taken_over.storage.list("") != before


def test_a_replaced_attempt_may_still_say_how_it_ended(taken_over: RunRecord) -> None:
    taken_over.write_exit(1, EXIT)
    taken_over.append_log(1, 1, b"last words\n")
    assert (taken_over.exit(1), taken_over.read_log(1), taken_over.exit(2)) == (EXIT, b"last words\n", None)


class Pausing(MemoryStorage):
    """Runs `between` once, just before the named key is created: the worst instant for a takeover."""

    def __init__(self, key: str, between: Callable[[], None]) -> None:
        super().__init__()
        self.key, self.between = key, between

    def create(self, key: str, data: bytes) -> None:
        if key == self.key:
            self.key = ""
            self.between()
        super().create(key, data)


def test_of_two_that_end_a_run_at_the_same_instant_one_does() -> None:
    run: RunRecord
    storage = Pausing("runs/x-1/result.json", lambda: _end_as(2))

    def _end_as(number: int) -> None:
        run.claim(an_attempt(number))
        run.write_result(replace(RESULT, attempts=number), attempt=number)

    run = RunRecord(storage, "x-1")
    run.claim(an_attempt(1))
    with pytest.raises(AlreadyExistsError, match=r"result\.json"):
        run.write_result(RESULT, attempt=1)
    assert run.result() == replace(RESULT, attempts=2)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(["claim", "round", "round", "result", "exit"]))
def test_repeating_a_write_changes_nothing(order: list[str]) -> None:
    run = RunRecord(MemoryStorage(), "x-1")
    run.claim(an_attempt(1, nonce="n"))
    writes: dict[str, Callable[[], object]] = {
        "claim": lambda: run.claim(an_attempt(1, nonce="n")),
        "round": lambda: run.write_round(a_round(1)),
        "result": lambda: run.write_result(RESULT, attempt=1),
        "exit": lambda: run.write_exit(1, EXIT),
    }
    for name in order:
        writes[name]()
    before = {key: run.storage.read(key) for key, _ in run.storage.list("")}
    for name in order:
        writes[name]()
    assert {key: run.storage.read(key) for key, _ in run.storage.list("")} == before


def test_the_first_statement_of_a_start_stands(run: RunRecord) -> None:
    first = StartRecord(checkpoint_step=10, checkpoint_attempt=1)
    assert run.write_start(2, first) == first
    assert run.write_start(2, StartRecord(checkpoint_step=None, checkpoint_attempt=None)) == first


def test_the_newest_heartbeat_replaces_the_others(run: RunRecord) -> None:
    for second in range(3):
        run.write_heartbeat(1, Heartbeat(at=f"15:00:0{second}", phase="training"))
    assert run.heartbeat(1) == Heartbeat(at="15:00:02", phase="training")


# --- logs and rounds ---


def test_a_log_is_its_segments_in_order_beyond_a_million(run: RunRecord) -> None:
    for number in (10, 2, 1, 999_999, 1_000_000):
        run.append_log(1, number, f"{number}\n".encode())
    run.append_log(2, 1, b"other\n")
    run.storage.write(f"{run.paths.log(1)}trace.bin", b"no segment")
    assert run.log_segments(1) == [1, 2, 10, 999_999, 1_000_000]
    assert run.log_segments(1, after=2) == [10, 999_999, 1_000_000]
    assert run.read_log(1) == b"1\n2\n10\n999999\n1000000\n"


def test_a_log_segment_is_written_once(run: RunRecord) -> None:
    run.append_log(1, 1, b"a")
    run.append_log(1, 1, b"a")
    with pytest.raises(AlreadyExistsError):
        run.append_log(1, 1, b"b")


def test_a_round_that_is_trained_again_stays_as_it_was_first_told(run: RunRecord) -> None:
    run.claim(an_attempt(1))
    assert run.write_round(a_round(1, seconds=60))
    run.claim(an_attempt(2))
    assert not run.write_round(a_round(1, attempt=2, seconds=61))
    assert run.write_round(a_round(2, attempt=2))
    assert [(r.round, r.attempt, r.seconds) for r in run.rounds()] == [(1, 1, 60), (2, 2, 1)]


def test_only_rounds_after_a_known_one_are_read(run: RunRecord) -> None:
    for number in (1, 2, 9999, 10_000):
        run.write_round(a_round(number))
    assert [r.round for r in run.rounds(after=1)] == [2, 9999, 10_000]
    assert run.rounds(after=10_000) == []


# --- checkpoints ---


def test_a_checkpoint_exists_from_its_manifest_to_its_deletion(run: RunRecord) -> None:
    part = run.paths.checkpoint(10, 1) + "part-0001.safetensors"
    run.storage.write(part, b"tensors")
    assert (run.checkpoints(), run.started_checkpoints()) == ([], [CheckpointId(10, 1)])
    run.commit_checkpoint(MANIFEST)
    assert run.checkpoints() == [CheckpointId(10, 1)]
    assert run.manifest(CheckpointId(10, 1)) == MANIFEST
    run.delete_checkpoint(CheckpointId(10, 1))
    assert run.storage.list(run.paths.checkpoints) == []


def test_a_deletion_that_is_interrupted_leaves_no_checkpoint(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    run.storage.write(run.paths.checkpoint(10, 1) + "a-part", b"1")
    run.commit_checkpoint(MANIFEST)
    deleted: list[str] = []
    monkeypatch.setattr(run.storage, "delete", deleted.append)
    run.delete_checkpoint(CheckpointId(10, 1))
    assert deleted[0] == run.paths.manifest(10, 1)


def test_a_manifest_under_the_name_of_another_is_refused(run: RunRecord) -> None:
    run.storage.write(run.paths.manifest(20, 1), MANIFEST.encode())
    with pytest.raises(RecordError, match="damaged"):
        run.manifest(CheckpointId(20, 1))


def test_checkpoints_are_ordered_by_step_beyond_the_padding(run: RunRecord) -> None:
    steps = [1, 99, 100, 10**10 - 1, 10**11]
    for step, attempt in itertools.product(steps, (2, 1)):
        run.storage.write(run.paths.manifest(step, attempt), b"")
    assert run.checkpoints() == [CheckpointId(step, attempt) for step in steps for attempt in (1, 2)]
