"""What can happen to a run, as events, and the watch over the machine of a run."""

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
    """The next piece of an attempt's log. Pieces joined are the log; most end with a line."""

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
    """None: it vanished, and the next attempt began."""


@dataclass(frozen=True)
class Finished:
    result: ResultRecord


@dataclass(frozen=True)
class Lost:
    """Nobody works on the run, and it is not over."""

    attempt: int
    message: str


@dataclass(frozen=True)
class MachineNews:
    """What happened to the run's machine, as its backend or its boot tells it; the supervisor is not there yet."""

    at: str
    """ISO 8601 in UTC."""
    phase: str
    """requesting | refused | launched | booting | pulling | running | ended | failed | gone"""
    message: str


RunEvent: TypeAlias = AttemptStarted | LogLines | Progress | RoundDone | AttemptEnded | Finished | Lost | MachineNews


class MachineWatch(Protocol):
    """Looks after the machine of one run, at a backend that brings machines by itself."""

    def look(self) -> list[MachineNews]:
        """What is new since the last look, oldest first. May be called as often as one likes.

        Raises ``LaunchError`` when no machine will come any more, and the run is not over.
        """
        ...
