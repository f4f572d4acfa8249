"""Options of the supervisor: intervals and limits, each also a flag of ``python -m mtl_cloud.supervise``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field, fields
from typing import Self

__all__ = ["SupervisorOptions"]


def _seconds(default: float, meaning: str) -> float:
    value: float = field(default=default, metadata={"help": meaning})
    return value


@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """Intervals and limits in seconds. The defaults suit runs of hours with S3 storage."""

    grace_s: float = _seconds(120.0, "time for a trainer to save after a stop request, before it is killed")
    kill_after_s: float = _seconds(5.0, "last part of the grace period, which starts with SIGTERM")
    tick_s: float = _seconds(0.2, "interval at which stop conditions are polled")
    poll_s: float = _seconds(5.0, "interval at which the record is checked for a cancel request and a newer attempt")
    first_s: float = _seconds(0.5, "interval of heartbeats and log segments at the start of an attempt")
    last_s: float = _seconds(10.0, "longest such interval; it grows with a twentieth of the attempt's age")
    hang_s: float = _seconds(1800.0, "time without progress until the trainer dumps its stack traces and is killed")
    patience_s: float = _seconds(120.0, "how long failed storage requests are retried")

    def pace(self, age_s: float) -> float:
        """Interval of heartbeats and log segments at an attempt's age: short at first, cheap for a long run."""
        return min(self.last_s, max(self.first_s, age_s / 20))

    @classmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        for f in fields(cls):
            flag = f"--{f.name.replace('_', '-')}"
            parser.add_argument(flag, type=float, default=f.default, metavar="S", help=f.metadata["help"])

    @classmethod
    def from_flags(cls, args: Namespace) -> Self:
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls)})

    def to_flags(self) -> list[str]:
        """The flags for options that differ from their defaults; ``from_flags`` reads them back."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return [part for name, value in changed.items() for part in (f"--{name.replace('_', '-')}", str(value))]
