"""The events of a run, and the watch over its machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, Heartbeat, ResultRecord, RoundRecord

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "Finished",
    "LogLines",
    "Lost",
    "MachineNews",
    "MachineWatch",
    "Progress",
    "RoundDone",
    "RunEvent",
]


@dataclass(frozen=True)
class AttemptStarted:
    attempt: AttemptRecord


@dataclass(frozen=True)
class LogLines:
    """The next piece of an attempt's log. The concatenated pieces are the log; most end at a line break."""

    attempt: int
    text: str


@dataclass(frozen=True)
class Progress:
    """A new heartbeat."""

    attempt: int
    heartbeat: Heartbeat


@dataclass(frozen=True)
class RoundDone:
    round: RoundRecord


@dataclass(frozen=True)
class AttemptEnded:
    attempt: int
    exit: ExitRecord | None
    """None: it stopped reporting, and the next attempt started."""


@dataclass(frozen=True)
class Finished:
    result: ResultRecord


@dataclass(frozen=True)
class Lost:
    """No attempt is running, and the run is not over."""

    attempt: int
    message: str


@dataclass(frozen=True)
class MachineNews:
    """An event of the run's machine before the supervisor runs, reported by the backend or by the boot script."""

    at: str
    """ISO 8601 in UTC."""
    phase: str
    """requesting | refused | launched | booting | pulling | running | ended | failed | gone"""
    message: str


RunEvent: TypeAlias = AttemptStarted | LogLines | Progress | RoundDone | AttemptEnded | Finished | Lost | MachineNews


class MachineWatch(Protocol):
    """Watches the machine of one run, at a backend that starts machines itself."""

    def look(self) -> list[MachineNews]:
        """News since the last call, oldest first. The backend is queried at a limited rate.

        Raises ``LaunchError`` when no machine will come any more although the run is not over.
        """
        ...
