"""Real supervisors over real trainers, killed by SIGKILL at random instants, come to the end of an unbroken run.

``MTL_CLOUD_KILLS`` sets the number of kills; the default is 10, and 500 before a release.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from examples import EXHAUSTIVE
from fork_harness import start_forked
from run_harness import supervisor_flags
from small_run import end_state, make_small_run

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.supervise import guard

KILLS = int(os.environ.get("MTL_CLOUD_KILLS", "500" if EXHAUSTIVE else "10"))
PHASES = {"training", "uploading", "validating"}
KILLS_A_RUN = 10
"""On a machine that others use too, a life may always be too short to come further: then peace comes at last."""


class Killer:
    """Kills the trainer, the supervisor or both. The trainer only once the run has come further: no crash loop."""

    def __init__(self, run: RunRecord, scratch: Path, seed: int) -> None:
        self._run = run
        self._scratch = scratch
        self._chance = random.Random(seed)
        self._reached = 0
        self.kills: Counter[tuple[str, str]] = Counter()

    def wait(self, supervisor: ForkServerProcess, life_s: float) -> None:
        """Some of its life; and mostly further, until it does what is done in moments only, as training and uploads."""
        supervisor.join(self._chance.uniform(0, life_s))
        aim, end = self._chance.choice([None, *sorted(PHASES)]), time.monotonic() + life_s
        while aim and time.monotonic() < end and supervisor.is_alive() and self._phase() != aim:
            time.sleep(0.0005)

    def strike(self, supervisor: int) -> None:
        whom = self._chance.choice(["trainer", "supervisor", "both"])
        trainers = [pid for below in guard._descendants(supervisor) for pid in guard._descendants(below)]
        if not trainers or self._newest_step() <= self._reached:
            whom = "supervisor"
        phase = self._phase()
        for pid in (trainers if whom != "supervisor" else []) + ([supervisor] if whom != "trainer" else []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if whom != "supervisor":
            self._reached = self._newest_step()  # which it may have committed as it was struck
        self.kills[whom, phase] += 1

    def _newest_step(self) -> int:
        return max((found.step for found in self._run.checkpoints()), default=0)

    def _phase(self) -> str:
        """What the trainer said last, and whether an upload without its commit lies there."""
        owner = self._run.owner() or 0
        unfinished = set(self._run.started_checkpoints()) - set(self._run.checkpoints())
        if any(found.attempt == owner for found in unfinished):
            return "uploading"
        return str(Scratch(self._scratch / f"{owner:04d}").progress().get("phase", "starting"))


def survive(run: RunRecord, scratch: Path, killer: Killer | None, life_s: float = 0.0) -> None:
    """One supervisor after another, until the run is over."""
    scratch.mkdir()
    while run.result() is None:
        flags = supervisor_flags(run, scratch, attempt=(run.owner() or 0) + 1)
        supervisor = start_forked(flags, {}, scratch / "errors.txt")
        assert supervisor.pid is not None
        while supervisor.is_alive():
            armed = killer if killer and killer.kills.total() < KILLS_A_RUN else None
            armed.wait(supervisor, life_s) if armed else supervisor.join()
            if supervisor.is_alive() and armed:
                armed.strike(supervisor.pid)
        supervisor.close()


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_sigkills_at_random_instants_change_nothing(tmp_path: Path) -> None:
    survive(make_small_run(tmp_path / "warm"), tmp_path / "scratch-warm", None)  # the fork server imports
    straight, started = make_small_run(tmp_path / "straight"), time.monotonic()
    survive(straight, tmp_path / "scratch-straight", None)
    life_s, expected = time.monotonic() - started, end_state(straight)
    kills: Counter[tuple[str, str]] = Counter()
    number = 0
    while kills.total() < KILLS or (_missing(kills) and kills.total() < 4 * KILLS):
        number += 1
        run, scratch = make_small_run(tmp_path / f"run-{number}"), tmp_path / f"scratch-{number}"
        killer = Killer(run, scratch, number)
        survive(run, scratch, killer, life_s)
        result = run.result()
        assert result is not None
        assert (result.outcome, end_state(run)) == ("done", expected), f"run {number}: {killer.kills}"
        kills += killer.kills
    print(f"{kills.total()} kills over {number} runs of {life_s:.1f} s in {time.monotonic() - started:.0f} s: {kills}")
    assert not _missing(kills)


def _missing(kills: Counter[tuple[str, str]]) -> set[str]:
    """Who, and in which phase, was not killed yet."""
    return {"trainer", "supervisor", "both", *PHASES} - {name for kill in kills for name in kill}
