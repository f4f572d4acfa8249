"""The supervisor's settings: intervals and limits, all of them also flags of ``python -m mtl_cloud.supervise``."""

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
    """How often and how long, in seconds. The defaults suit a run of hours on S3."""

    grace_s: float = _seconds(120.0, "time that a trainer asked to stop has to save, before it is killed")
    kill_after_s: float = _seconds(5.0, "last part of the grace, begun with a SIGTERM")
    tick_s: float = _seconds(0.2, "how often watchers are asked")
    poll_s: float = _seconds(5.0, "how often the record is asked for a cancel and for a newer attempt")
    first_s: float = _seconds(0.5, "interval of heartbeat and log segments at an attempt's start")
    last_s: float = _seconds(10.0, "the interval that it grows to, by a twentieth of the attempt's age")
    hang_s: float = _seconds(1800.0, "silence of the trainer after which it writes its stack traces and is killed")
    patience_s: float = _seconds(120.0, "how long a request that the storage fails is made again")

    def pace(self, age_s: float) -> float:
        """Interval of heartbeat and log at an attempt's age: sub-second at first, cheap for a long run."""
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
        """The flags that differ from the defaults; ``from_flags`` reads them back."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return [part for name, value in changed.items() for part in (f"--{name.replace('_', '-')}", str(value))]
