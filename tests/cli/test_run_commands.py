"""Commands that look at a run or stop it, in processes of their own, over a run record in a folder."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from run_example import example_report, round_record, write_run
from run_harness import start_at_terminal
from waiting import PATIENCE_S

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.json_types import Json
from mtl_cloud.report.build import AttemptView, Report
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, Heartbeat
from mtl_cloud.storage import FolderStorage
from mtl_cloud.train.checkpoint.retention import Retention

RUN_ID = example_report().plan.run_id


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage with the example run in it; nothing of the user's own is seen."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "storage"
    write_run(FolderStorage(folder), example_report())
    return str(folder)


@pytest.fixture
def living(tmp_path: Path, storage: str) -> RunRecord:
    """A second, newer run that goes on: its heart has just beaten."""
    now = datetime.now(UTC).isoformat()
    attempt = AttemptRecord(number=1, started_at=now, host="elsewhere", pid=1, backend="local")
    report = Report(
        plan=replace(example_report().plan, run_id="living-1", name="living", created_at=now),
        spec_yaml="",
        rounds=(round_record(1),),
        attempts=(AttemptView(attempt),),
    )
    run = write_run(FolderStorage(storage), report)
    progress: dict[str, Json] = {
        "round": 2,
        "rounds": 5,
        "step": 411,
        "steps": 685,
        "losses": {"detection": 1.5},
        "images_per_s": 99.0,
    }
    run.write_heartbeat(1, Heartbeat(at=now, phase="training", progress=progress))
    return run


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mtl_cloud", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_metrics_shows_a_table_and_a_sparkline_for_each_task(storage: str) -> None:
    result = call("metrics", "--storage", storage)
    assert (result.returncode, result.stderr) == (0, "")
    assert "detection  mAP@.5 ▁▅▇█ 76.1 %" in result.stdout
    (last,) = [line for line in result.stdout.splitlines() if line.startswith("4") and "91.0 %" in line]
    assert last.split()[:3] == ["4", "0.1537", "0.3594"]


def test_metrics_json_is_the_rounds_of_the_record(storage: str) -> None:
    document = json.loads(call("metrics", RUN_ID[:12], "--storage", storage, "--json").stdout)
    assert document["run_id"] == RUN_ID
    assert document["rounds"] == [json.loads(record.encode()) for record in example_report().rounds]


@pytest.fixture
def choosing(storage: str) -> str:
    """A run that keeps its best round by a metric that the second lacks, and in which the two last are equal."""
    job = JobSpec.model_validate(
        {"dataset": {"name": "embedded"}, "checkpoint": {"keep_best": {"metric": "detection/map50_voc"}}}
    )
    retention = Retention(job, steps_per_round=137)
    detection = [{"map50_voc": 0.3}, {"map50_voc07": 0.9}, {"map50_voc": 0.7}, {"map50_voc": 0.7}]
    rounds = tuple(
        retention.with_best(round_record(number, metrics={"classification": {"top1": number / 5}, "detection": found}))
        for number, found in enumerate(detection, 1)
    )
    plan = replace(example_report().plan, run_id="choosing-1", created_at=datetime.now(UTC).isoformat())
    write_run(FolderStorage(storage), replace(example_report(), plan=plan, rounds=rounds))
    return storage


def test_metrics_marks_the_round_that_is_kept_as_the_best(choosing: str) -> None:
    lines = call("metrics", "--storage", choosing).stdout.splitlines()
    assert lines[1] == "* best: round 3, detection mAP@.5 70.0 %"
    starts = [line.split()[:2] for line in lines if line[:1].isdigit()]
    assert [number for number, mark in starts if mark == "*"] == ["3"] * 3
    document = json.loads(call("metrics", "--storage", choosing, "--json").stdout)
    assert document["best"] == {"round": 3, "metric": "detection/map50_voc", "value": 0.7}


def test_status_says_which_round_is_the_best_by_what_and_how_good(choosing: str) -> None:
    (line,) = [line for line in call("status", "--storage", choosing).stdout.splitlines() if line.startswith("best")]
    assert line.split(maxsplit=1)[1] == "round 3, detection mAP@.5 70.0 %"
    document = json.loads(call("status", "--storage", choosing, "--json").stdout)
    assert document["best"] == {"round": 3, "metric": "detection/map50_voc", "value": 0.7}


@pytest.mark.parametrize("command", ["metrics", "status"])
def test_where_no_best_is_kept_none_is_marked_or_told_of(storage: str, command: str) -> None:
    assert json.loads(call(command, "--storage", storage, "--json").stdout)["best"] is None
    assert re.search(r"^best|\*", call(command, "--storage", storage).stdout, re.MULTILINE) is None


def test_logs_are_those_of_all_attempts_or_of_one(storage: str) -> None:
    both = call("logs", "--storage", storage)
    assert both.stdout == "attempt 1 begins\nattempt 1 éng\nattempt 2 begins\nattempt 2 éng\n"
    assert both.stderr == "--- attempt 1\n--- attempt 2\n"
    assert call("logs", "--storage", storage, "--attempt", "2").stdout == "attempt 2 begins\nattempt 2 éng\n"


def test_logs_of_an_attempt_that_never_was_is_a_usage_error(storage: str) -> None:
    result = call("logs", "--storage", storage, "--attempt", "7")
    assert (result.returncode, result.stdout) == (2, "")
    assert "has no attempt 7" in result.stderr


def test_following_the_log_of_a_run_that_is_over_prints_it_and_ends(storage: str) -> None:
    result = call("logs", "-f", "--storage", storage)
    assert (result.returncode, result.stdout) == (0, call("logs", "--storage", storage).stdout)


def test_followed_logs_in_json_are_one_object_a_line(storage: str) -> None:
    lines = call("logs", "-f", "--json", "--attempt", "1", "--storage", storage).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"attempt": 1, "text": "attempt 1 begins\n"},
        {"attempt": 1, "text": "attempt 1 éng\n"},
    ]


def test_report_writes_one_file_named_after_the_run(storage: str, tmp_path: Path) -> None:
    document = json.loads(call("report", "--storage", storage, "--json").stdout)
    page = tmp_path / f"{RUN_ID}.html"
    assert document == {"run_id": RUN_ID, "file": page.name, "bytes": page.stat().st_size}
    assert page.read_text().startswith("<!doctype html>")


def test_report_to_standard_output_is_the_page_alone(storage: str) -> None:
    result = call("report", "--storage", storage, "-o", "-")
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.rstrip().endswith("</html>")


def test_cancel_of_a_run_that_is_over_changes_nothing(storage: str) -> None:
    result = call("cancel", "--storage", storage, "--json")
    assert (result.returncode, json.loads(result.stdout)) == (0, {"run_id": RUN_ID, "outcome": "done"})
    assert RunRecord(FolderStorage(storage), RUN_ID).cancel_request() is None


def test_cancelling_twice_keeps_the_first_wish(storage: str, living: RunRecord) -> None:
    for reason in ("diverged", "again"):
        assert call("cancel", "living", "--storage", storage, "--reason", reason).returncode == 0
    wish = living.cancel_request()
    assert wish is not None
    assert wish.reason == "diverged"


def test_latest_is_the_run_that_was_made_last(storage: str, living: RunRecord) -> None:
    assert json.loads(call("metrics", "--storage", storage, "--json").stdout)["run_id"] == "living-1"


def test_an_unknown_run_is_a_usage_error_with_a_hint(storage: str) -> None:
    result = call("status", "nothing-like-it", "--storage", storage, "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.returncode, result.stdout, error["exit_code"]) == (2, "", 2)
    assert error["hint"]


def test_runs_lists_the_newest_first(storage: str, living: RunRecord) -> None:
    lines = call("runs", "--storage", storage).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["living-1", RUN_ID]


def test_runs_in_an_empty_storage_is_no_error(storage: str, tmp_path: Path) -> None:
    assert json.loads(call("runs", "--storage", str(tmp_path / "empty"), "--json").stdout) == {"runs": []}


def test_status_tells_how_far_a_living_run_is(storage: str, living: RunRecord) -> None:
    text = call("status", "--storage", storage).stdout
    assert "round 2/5 · step 411/685" in text
    assert "99 images/s" in text


def test_status_json_of_a_run_that_is_over(storage: str) -> None:
    document = json.loads(call("status", "--storage", storage, "--json").stdout)
    assert (document["run_id"], document["state"], document["round"]) == (RUN_ID, "done", 4)


def test_ctrl_c_detaches_with_130_and_tells_the_way_back(storage: str, living: RunRecord) -> None:
    command = [sys.executable, "-m", "mtl_cloud", "status", "--follow", "living-1", "--storage", storage]
    with start_at_terminal(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "attempt 1 on elsewhere" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert "mtl-cloud status --follow living-1" in words
    assert "Traceback" not in words
    assert living.cancel_request() is None


def test_on_a_terminal_progress_is_drawn_with_a_bar(storage: str, living: RunRecord) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mtl_cloud", "status", "--follow", "living-1", "--storage", storage]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with start_at_terminal(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        drawn = _read_until(ours, "99 images/s")
        process.send_signal(signal.SIGINT)
    os.close(ours)
    assert "60%" in drawn
    assert "loss detection 1.5" in drawn
    assert process.returncode == 130


def _read_until(descriptor: int, words: str) -> str:
    text = ""
    while words not in text:
        text += os.read(descriptor, 4096).decode("utf-8", "replace")
    return text
