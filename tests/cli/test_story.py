"""The whole command line, as a user types it: a real run on this machine, from `init` to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = {
    "dataset.max_train_samples": 32,
    "dataset.max_val_samples": 16,
    "training.rounds": 2,
    "training.max_steps_per_epoch": 2,
    "training.batch_size": 4,
    "training.loader_workers": 0,
}
OPTIONS = ["job.yaml", *(word for field, value in SMALL.items() for word in ("--set", f"{field}={value}"))]


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def call(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "mtl_cloud", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result.stdout


def test_from_init_to_the_report(tmp_path: Path) -> None:
    call("init", "--name", "story")
    call("validate", *OPTIONS)
    assert "mtl_cloud.train" in call("plan", *OPTIONS)

    lines = call("submit", *OPTIONS).splitlines()
    assert lines[0].startswith("run story-")
    assert [line.partition(":")[0] for line in lines if line.startswith("round ")] == ["round 1/2", "round 2/2"]
    assert lines[-1].startswith("done after 2 rounds")

    status = json.loads(call("status", "--json"))
    assert (status["state"], status["round"], status["rounds"]) == ("done", 2, 2)
    assert len(json.loads(call("metrics", "--json"))["rounds"]) == 2
    assert "round 2/2 done" in call("logs")
    assert status["run_id"] in call("runs")
    call("report", "-o", "report.html")
    assert status["run_id"] in Path("report.html").read_text()


def test_a_detached_run_is_cancelled_and_says_so(tmp_path: Path) -> None:
    call("init", "--name", "story")
    options = [*OPTIONS, "--set", "training.rounds=1000", "--run-id", "story-1"]
    submitted = json.loads(call("submit", "--detach", "--json", *options))
    assert (submitted["run_id"], submitted["outcome"]) == ("story-1", None)
    again = json.loads(call("submit", "--detach", "--json", *options))
    assert again["run_id"] == "story-1"
    cancelled = json.loads(call("cancel", "--wait", "--json"))
    assert cancelled == {"run_id": "story-1", "outcome": "cancelled"}
    assert "cancelled" in call("status", "story")
    call("status", "--follow", "story", code=7)
