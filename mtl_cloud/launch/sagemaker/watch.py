"""News of a run's training jobs, from SageMaker's status transitions."""

from __future__ import annotations

from collections.abc import Callable

from mtl_cloud.clock import Clock
from mtl_cloud.launch.base import BackendState
from mtl_cloud.launch.sagemaker.jobs import Job, Transition
from mtl_cloud.runs.events import MachineNews
from mtl_cloud.runs.record import RunRecord

__all__ = ["SageMakerWatch"]

_EVERY_S = 10.0
_PHASES = {
    "Starting": "requesting",
    "Pending": "requesting",
    "Downloading": "pulling",
    "Training": "running",
    "Interrupted": "gone",
    "Restarting": "launched",
    "Failed": "failed",
}
"""SecondaryStatus -> phase of the news; all others mean that the job has ended."""


class SageMakerWatch:
    """Implements ``MachineWatch`` for a series of training jobs."""

    def __init__(self, run: RunRecord, jobs: Callable[[], list[Job]], clock: Clock) -> None:
        self._run = run
        self._jobs = jobs
        self._clock = clock
        self._look_at = clock.monotonic()
        self._told: set[MachineNews] = set()

    def look(self) -> list[MachineNews]:
        now = self._clock.monotonic()
        if now < self._look_at:
            return []
        self._look_at = now + _EVERY_S
        jobs = self._jobs()
        fresh = [news for job in jobs for step in job.transitions if (news := _news(job, step)) not in self._told]
        self._told.update(fresh)
        if not fresh and jobs[-1].state is BackendState.ENDED and self._run.result() is None:
            raise jobs[-1].failure(self._run.run_id)  # news come first
        return fresh


def _news(job: Job, step: Transition) -> MachineNews:
    message = f"{step.status}: {step.message}" if step.message else step.status
    return MachineNews(step.at.isoformat(), _PHASES.get(step.status, "ended"), f"{job.name} {message}")
