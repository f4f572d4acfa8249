"""The launcher protocol: what every backend implements."""

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
    """The state of a run at its backend. Its progress is in the run record."""

    PENDING = "pending"
    """Accepted; no machine is running yet."""
    RUNNING = "running"
    ENDED = "ended"
    """Nothing runs, and nothing will start by itself."""


@dataclass(frozen=True)
class RunHandle:
    """Identifies a run at its backend. It follows from the run's plan, on any machine."""

    backend: str
    run_id: str
    storage: str

    @classmethod
    def of(cls, plan: PlanRecord) -> Self:
        return cls(plan.backend, plan.run_id, plan.storage)


@dataclass(frozen=True)
class Submission:
    """The exact request to a backend, as plain values that can be printed, stored and compared."""

    handle: RunHandle
    request: dict[str, Json]


def record_of(handle: RunHandle, storages: Callable[[str], Storage] = open_storage) -> RunRecord:
    """The record of the handle's run. Raises ``LaunchError`` if there is no such run."""
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
        """The request for a plan. Pure: the same plan gives an equal submission, without side effects."""
        ...

    def submit(self, submission: Submission) -> RunHandle:
        """Start the run. Idempotent: a run that is running or over is not changed; one whose process or machine is
        gone continues with its next attempt. At most one attempt runs at a time."""
        ...

    def describe(self, handle: RunHandle) -> BackendState:
        """The current state. Raises ``LaunchError`` for a run that was never submitted to this backend."""
        ...

    def stop(self, handle: RunHandle) -> None:
        """Stop the machine, after a grace period in which the trainer saves. Does nothing if none is running."""
        ...


@runtime_checkable
class Watchable(Launcher, Protocol):
    """A launcher whose backend rents machines, replaces interrupted ones, and reports both.

    Its ``stop`` removes all of the run's resources at the backend, and returns when the backend confirms it.
    """

    def watch(self, handle: RunHandle) -> MachineWatch: ...


@runtime_checkable
class LogSource(Protocol):
    """A launcher whose backend stores container output apart from the run record."""

    def log_lines(self, handle: RunHandle) -> Iterator[str]:
        """All lines without line breaks, oldest container first. Raises ``LaunchError``."""
        ...


@runtime_checkable
class Biller(Protocol):
    """A launcher whose backend reports the seconds that it bills."""

    def charges(self, handle: RunHandle) -> list[Charge]:
        """The charges of ended jobs; those of running ones are not known yet. Raises ``LaunchError``."""
        ...
