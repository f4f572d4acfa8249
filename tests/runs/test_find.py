"""Naming runs briefly, finding them from anywhere, and telling how they stand."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mtl_cloud.errors import UsageError
from mtl_cloud.runs.find import find_run, known_storages, list_runs, new_run_id, remember_storage
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import (
    AttemptRecord,
    BestRound,
    CancelRecord,
    ExitRecord,
    Heartbeat,
    PlanRecord,
    ResultRecord,
    RoundRecord,
)
from mtl_cloud.runs.summary import RunSummary, summarize
from mtl_cloud.storage import FolderStorage, MemoryStorage, Storage

NOON = datetime.fromisoformat("2026-11-23T12:00:00+00:00")


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def submit(storage: Storage, run_id: str, *, at: datetime = NOON, price: float | None = None) -> RunRecord:
    plan = PlanRecord(
        run_id=run_id,
        name=run_id.rpartition("-")[0],
        created_at=at.isoformat(),
        backend="local",
        storage=storage.url,
        command=[],
        env={},
        processes=1,
        rounds=3,
        usd_per_hour=price,
    )
    run = RunRecord(storage, run_id)
    run.create(plan, spec_yaml=b"", spec_json=b"{}")
    return run


def begin(run: RunRecord, number: int, at: datetime) -> None:
    price = run.plan().usd_per_hour
    claim = AttemptRecord(
        number=number, started_at=at.isoformat(), host="h", pid=1, backend="local", usd_per_hour=price
    )
    run.claim(claim)


def beat(run: RunRecord, number: int, at: datetime, phase: str = "training") -> None:
    run.write_heartbeat(number, Heartbeat(at=at.isoformat(), phase=phase))


def end(run: RunRecord, number: int, outcome: str, seconds: float) -> None:
    run.write_exit(
        number, ExitRecord(ended_at=NOON.isoformat(), outcome=outcome, exit_code=1, message="", seconds=seconds)
    )


# --- names ---


def test_an_id_is_the_name_and_six_random_hex_digits() -> None:
    assert new_run_id("voc-joint", random_bytes=lambda n: bytes(range(n))) == "voc-joint-000102"
    assert len({new_run_id("a") for _ in range(100)}) > 90
    assert re.fullmatch("a-[0-9a-f]{6}", new_run_id("a"))


@pytest.fixture
def storages() -> list[Storage]:
    """Four runs in two storages: voc-3fa1c9, voc-3fb000, voc-big-77aa00 and cifar-3fa100, the last one the newest."""
    here, there = MemoryStorage("here"), MemoryStorage("there")
    for number, run_id in enumerate(("voc-3fa1c9", "voc-3fb000", "voc-big-77aa00")):
        submit(here, run_id, at=later(number))
    submit(there, "cifar-3fa100", at=later(9))
    return [here, there]


@pytest.mark.parametrize(
    ("abbreviation", "means"),
    [
        ("voc-3fa1c9", "voc-3fa1c9"),
        ("voc-3fa", "voc-3fa1c9"),
        ("voc-b", "voc-big-77aa00"),
        ("c", "cifar-3fa100"),
        ("77", "voc-big-77aa00"),
        ("3fb", "voc-3fb000"),
        ("3fa1c", "voc-3fa1c9"),
        ("latest", "cifar-3fa100"),
    ],
)
def test_a_run_may_be_named_by_what_is_enough(storages: list[Storage], abbreviation: str, means: str) -> None:
    run = find_run(storages, abbreviation)
    assert run.run_id == means
    assert run.exists()


@pytest.mark.parametrize(
    ("abbreviation", "candidates"),
    [("voc", ["voc-3fa1c9", "voc-3fb000", "voc-big-77aa00"]), ("3fa1", ["voc-3fa1c9", "cifar-3fa100"])],
)
def test_an_ambiguous_name_lists_what_it_may_mean(
    storages: list[Storage], abbreviation: str, candidates: list[str]
) -> None:
    with pytest.raises(UsageError, match=f"^'{abbreviation}' may mean several runs") as caught:
        find_run(storages, abbreviation)
    assert re.findall(r"^  (\S+)  in memory://", str(caught.value), re.MULTILINE) == candidates


def test_an_unknown_name_is_answered_with_the_nearest(storages: list[Storage]) -> None:
    with pytest.raises(UsageError, match="no run is named 'cifra-3fa100'") as caught:
        find_run(storages, "cifra-3fa100")
    assert caught.value.hint == "did you mean cifar-3fa100?"


def test_a_whole_id_wins_over_longer_ones_and_needs_no_further_storage() -> None:
    storage = MemoryStorage()
    submit(storage, "voc-3fa1c9")
    submit(storage, "voc-3fa1c9-again-000000")

    def asked_in_turn() -> Iterator[Storage]:
        yield storage
        raise AssertionError

    assert find_run(asked_in_turn(), "voc-3fa1c9").run_id == "voc-3fa1c9"


def test_without_any_run_there_is_no_latest() -> None:
    with pytest.raises(UsageError, match="there is no run yet"):
        find_run([MemoryStorage()], "latest")


# --- lists and places ---


def test_runs_are_listed_the_newest_first_and_broken_ones_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage()
    for run_id, seconds in (("a-000001", 5), ("b-000002", 9), ("c-000003", 1)):
        submit(storage, run_id, at=later(seconds))
    storage.write("runs/being-made/spec.yaml", b"")
    storage.write("runs/broken/plan.json", b"{")
    with caplog.at_level(logging.WARNING):
        assert [run.run_id for run in list_runs(storage)] == ["b-000002", "a-000001", "c-000003"]
    assert "runs/broken/plan.json: not JSON" in caplog.text


def test_storages_are_remembered_once_each_the_last_one_first(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    assert list(known_storages(environ)) == []
    for name in ("a", "b", "a b", "a"):
        remember_storage(str(tmp_path / name), environ)
    assert [storage.url for storage in known_storages(environ)] == [str(tmp_path / n) for n in ("a", "a b", "b")]


def test_a_storage_that_does_not_answer_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bucket that was used with credentials that are gone now."""
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    remember_storage(str(tmp_path / "a"), environ)
    remember_storage("s3://bucket/runs", environ)
    assert [storage.url for storage in known_storages(environ)] == [str(tmp_path / "a")]
    assert "skipping runs in s3://bucket/runs" in caplog.text
    assert "credentials" in caplog.text


def test_the_memory_lies_in_the_home_folder_unless_told_otherwise(tmp_path: Path) -> None:
    remember_storage("/runs", {"HOME": str(tmp_path)})
    assert (tmp_path / ".local/state/mtl-cloud/storages").read_text() == "/runs\n"


def test_a_variable_stands_for_all_remembered_storages(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path), "MTL_CLOUD_STORAGE": str(tmp_path / "mine")}
    remember_storage("/runs", environ)
    assert [storage.url for storage in known_storages(environ)] == [str(tmp_path / "mine")]


def test_a_run_goes_on_where_its_storage_cannot_be_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mtl-cloud").write_text("a file in the way")
    remember_storage("/runs", {"XDG_STATE_HOME": str(tmp_path)})
    assert "cannot remember the storage /runs" in caplog.text


# --- how a run stands ---


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return submit(FolderStorage(tmp_path), "voc-3fa1c9", price=36.0)


def test_a_run_is_queued_running_stopping_and_done(run: RunRecord) -> None:
    states = [summarize(run, NOON).state]
    begin(run, 1, later(10))
    states.append(summarize(run, later(20)).state)
    beat(run, 1, later(1000))
    states.append(summarize(run, later(1010)).state)
    run.request_cancel(CancelRecord(at="", by="ada"))
    states.append(summarize(run, later(1010)).state)
    end(run, 1, "cancelled", 990)
    states.append(summarize(run, later(1010)).state)
    assert states == ["queued", "running", "running", "stopping", "cancelled"]


def test_silence_for_too_long_is_a_loss_and_costs_no_more(run: RunRecord) -> None:
    begin(run, 1, NOON)
    beat(run, 1, later(100))
    fresh, lost = (summarize(run, later(100 + silence), lost_after_s=90) for silence in (90, 91))
    assert (fresh.state, fresh.seconds, fresh.usd) == ("running", 190, 1.9)
    assert (lost.state, lost.seconds, lost.usd) == ("lost", 100, 1.0)


def test_an_attempt_that_began_and_never_gave_a_sign_is_lost_too(run: RunRecord) -> None:
    begin(run, 1, NOON)
    assert summarize(run, later(91), lost_after_s=90).state == "lost"


@pytest.mark.parametrize(
    ("outcome", "state"), [("interrupted", "queued"), ("machine_error", "queued"), ("user_error", "user_error")]
)
def test_between_attempts_a_run_waits_unless_another_attempt_is_useless(
    run: RunRecord, outcome: str, state: str
) -> None:
    begin(run, 1, NOON)
    end(run, 1, outcome, 60)
    assert summarize(run, later(9999)).state == state


def test_seconds_and_dollars_are_summed_over_attempts(run: RunRecord) -> None:
    begin(run, 1, NOON)
    end(run, 1, "interrupted", 100)
    begin(run, 2, later(200))  # vanished after 50 s, without a word
    beat(run, 2, later(250))
    begin(run, 3, later(300))
    beat(run, 3, later(330))
    summary = summarize(run, later(340))
    assert (summary.state, summary.attempt, summary.seconds, summary.usd) == ("running", 3, 190, 1.9)


def test_a_summary_holds_rounds_and_headlines_and_the_result_has_the_last_word(run: RunRecord) -> None:
    begin(run, 1, NOON)
    metrics: dict[str, dict[str, float | None]] = {
        "classification": {"top1": 0.5, "top5": 0.9},
        "detection": {"map50_voc": None},
    }
    record = RoundRecord(
        round=1,
        attempt=1,
        step=10,
        epoch=1,
        ended_at="",
        seconds=1,
        validation_s=1,
        images=1,
        images_per_s=1,
        data_wait=0,
        train_losses={},
        val_losses={},
        metrics=metrics,
    )
    run.write_round(record)
    run.write_round(replace(record, round=2, best_round=1, best_metric="classification/top1", best_value=0.75))
    result = ResultRecord(ended_at="", outcome="done", message="", attempts=1, rounds=2, seconds=77, usd=0.7)
    run.write_result(result, attempt=1)
    assert summarize(run, later(9999)) == RunSummary(
        run_id="voc-3fa1c9",
        name="voc",
        backend="local",
        storage=run.storage.url,
        created_at=NOON.isoformat(),
        state="done",
        attempt=1,
        round=2,
        rounds=3,
        metrics={"classification": 0.5, "detection": None},
        best=BestRound(1, "classification/top1", 0.75),
        started_at=NOON.isoformat(),
        seconds=77,
        usd=0.7,
    )
