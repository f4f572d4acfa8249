"""The seam between a plan and the place where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from mtl_cloud.records import Json, PlanRecord

__all__ = ["BackendState", "Launcher", "RunHandle", "Submission"]


class BackendState(StrEnum):
    """What a backend knows of a run. How far the run is stands in its record."""

    PENDING = "pending"
    """Accepted; the machine is not there yet."""
    RUNNING = "running"
    ENDED = "ended"
    """Nothing of it runs, and nothing will by itself."""


@dataclass(frozen=True)
class RunHandle:
    """Names a run at its backend. Whoever has the run's plan can make it, on any machine."""

    backend: str
    run_id: str
    storage: str

    @classmethod
    def of(cls, plan: PlanRecord) -> Self:
        return cls(plan.backend, plan.run_id, plan.storage)


@dataclass(frozen=True)
class Submission:
    """Exactly what a backend will be asked for: plain values, to be printed, stored and compared."""

    handle: RunHandle
    request: dict[str, Json]


class Launcher(Protocol):
    """One backend. All methods but ``prepare`` raise ``LaunchError`` when the backend refuses."""

    @property
    def backend(self) -> str:
        """Its name in ``compute.backend``."""
        ...

    def prepare(self, plan: PlanRecord) -> Submission:
        """The request for a plan. Pure: the same plan gives an equal submission, and nothing happens."""
        ...

    def submit(self, submission: Submission) -> RunHandle:
        """Make the run run. Again for the same run id: a run that runs or is over is left alone, one whose process
        or machine is gone goes on with its next attempt. Never do two run."""
        ...

    def describe(self, handle: RunHandle) -> BackendState:
        """What the backend knows now. Raises ``LaunchError`` for a run that it was never given."""
        ...

    def stop(self, handle: RunHandle) -> None:
        """Take the machine away, after the grace in which the trainer saves. Silent when nothing runs."""
        ...
