"""Real supervisors over real trainers, killed by SIGKILL at random instants, come to the end of an unbroken run.

``MTL_CLOUD_KILLS`` says how many kills; a process costs seconds to start, so this takes minutes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from run_harness import start_supervisor
from trainer_harness import facts_of, small_job, state_digest

from mtl_cloud.plan import gather_facts, plan_run
from mtl_cloud.run_record import RunRecord
from mtl_cloud.spec.load import job_to_json
from mtl_cloud.storage import FolderStorage
from mtl_cloud.supervise import guard
from mtl_cloud.train.checkpoint import Checkpointer

KILLS = int(os.environ.get("MTL_CLOUD_KILLS", "10"))
Outcome = tuple[str, list[object]]


def make_run(folder: Path) -> RunRecord:
    """Four rounds of three small batches; every step is saved, unless a save is under way."""
    job = small_job(rounds=4, epochs_per_round=1, max_steps_per_epoch=3, batch_size=4, image_size=32)
    job = job.model_copy(
        update={
            "checkpoint": job.checkpoint.model_copy(update={"every_minutes": 1e-9}),
            "compute": job.compute.model_copy(update={"max_restarts": 1000}),
            "storage": str(folder),
        }
    )
    run = RunRecord(FolderStorage(folder), "test")
    plan = plan_run(job, gather_facts(job), run_id="test", now=datetime(2026, 1, 1, tzinfo=UTC))
    run.create(plan, spec_yaml=b"", spec_json=job_to_json(job))
    return run


def outcome(run: RunRecord) -> Outcome:
    newest = run.checkpoints()[-1]
    state = Checkpointer(run, newest.attempt, keep=1)._load(newest).state
    return state_digest(state["network"]), [facts_of(record) for record in run.rounds()]


def trainers_below(pid: int) -> list[int]:
    """The trainer's process, without its guard."""
    found = []
    for below in guard._descendants(pid):
        with suppress(OSError):
            command = Path(f"/proc/{below}/cmdline").read_bytes()
            if b"mtl_cloud.train" in command and b"guard.py" not in command:
                found.append(below)
    return found


class Killer:
    """Kills the trainer, the supervisor or both. The trainer only once the run has come further: no crash loop."""

    def __init__(self, run: RunRecord, seed: int) -> None:
        self._run = run
        self._chance = random.Random(seed)
        self._reached = 0
        self.kills = 0

    def pause_s(self, life_s: float) -> float:
        return self._chance.uniform(0, life_s)

    def strike(self, supervisor: int) -> None:
        trainers, step = trainers_below(supervisor), self._step()
        whom = self._chance.choice(["trainer", "supervisor", "both"])
        if whom != "supervisor" and step <= self._reached:
            whom = "supervisor"
        if whom != "supervisor":
            self._reached = step
        for pid in (trainers if whom != "supervisor" else []) + ([supervisor] if whom != "trainer" else []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills += 1

    def _step(self) -> int:
        """Of the newest checkpoint that the owner itself has committed."""
        owner = self._run.owner()
        return max((found.step for found in self._run.checkpoints() if found.attempt == owner), default=0)


def survive(run: RunRecord, scratch: Path, killer: Killer | None, life_s: float = 0.0) -> None:
    """One supervisor after another, until the run is over."""
    while run.result() is None:
        with start_supervisor(run, scratch, attempt=(run.owner() or 0) + 1) as supervisor:
            while supervisor.poll() is None:
                try:
                    supervisor.wait(killer.pause_s(life_s) if killer else None)
                except subprocess.TimeoutExpired:
                    killer.strike(supervisor.pid)


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_sigkills_at_random_instants_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    straight, started = make_run(tmp_path / "straight"), time.monotonic()
    survive(straight, tmp_path / "scratch-straight", None)
    life_s, expected = time.monotonic() - started, outcome(straight)
    kills = number = 0
    while kills < KILLS:
        number += 1
        run = make_run(tmp_path / f"run-{number}")
        killer = Killer(run, number)
        survive(run, tmp_path / f"scratch-{number}", killer, 1.5 * life_s)
        result = run.result()
        assert result is not None
        assert (result.outcome, outcome(run)) == ("done", expected), f"run {number}, {killer.kills} kills"
        kills += killer.kills
