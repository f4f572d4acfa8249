"""The seam between a plan and the place where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self, runtime_checkable

from mtl_cloud.errors import LaunchError
from mtl_cloud.json_types import Json
from mtl_cloud.runs.charges import Charge
from mtl_cloud.runs.events import MachineNews, MachineWatch
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import Storage, open_storage

__all__ = [
    "BackendState",
    "Launcher",
    "MachineNews",
    "MachineWatch",
    "RunHandle",
    "Submission",
    "Watchable",
    "record_of",
]


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


def record_of(handle: RunHandle, storages: Callable[[str], Storage] = open_storage) -> RunRecord:
    """The run that a handle names. Raises ``LaunchError`` when there is none."""
    run = RunRecord(storages(handle.storage), handle.run_id)
    if not run.exists():
        raise LaunchError(f"{handle.run_id}: there is no such run in {handle.storage}")
    return run


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


@runtime_checkable
class Watchable(Launcher, Protocol):
    """A launcher whose backend rents the machine, brings the next one after an interruption, and tells of both.

    Its ``stop`` removes all that the run has at the backend, and returns when the backend confirms it.
    """

    def watch(self, handle: RunHandle) -> MachineWatch: ...


@runtime_checkable
class LogSource(Protocol):
    """A launcher whose backend keeps what its containers print, apart from the run record."""

    def log_lines(self, handle: RunHandle) -> Iterator[str]:
        """All lines, oldest container first, without line ends. Raises ``LaunchError``."""
        ...


@runtime_checkable
class Biller(Protocol):
    """A launcher whose backend itself says which seconds it bills."""

    def charges(self, handle: RunHandle) -> list[Charge]:
        """Of what has ended; the rest is not known yet. Raises ``LaunchError``."""
        ...
