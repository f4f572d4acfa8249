"""The report as a value: the parts of a run record that the page shows, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, PlanRecord, ResultRecord, RoundRecord, RoundSamples

__all__ = ["AttemptView", "Report", "RunSource", "build_report"]


@dataclass(frozen=True)
class AttemptView:
    """One attempt and its exit record, which is None while it runs or if it stopped without writing one."""

    attempt: AttemptRecord
    exit: ExitRecord | None = None


@dataclass(frozen=True)
class Report:
    """A run as its record shows it. ``rounds`` and ``attempts`` are sorted by number; both may be empty."""

    plan: PlanRecord
    spec_yaml: str
    """The job file as submitted."""
    rounds: tuple[RoundRecord, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    result: ResultRecord | None = None
    samples: RoundSamples | None = None
    """Samples of the newest round that has any."""

    @property
    def outcome(self) -> str:
        """The result's outcome; without a result ``waiting`` (no attempt yet) or ``unfinished``."""
        if self.result is not None:
            return self.result.outcome
        return "unfinished" if self.attempts else "waiting"

    @property
    def usd(self) -> float | None:
        """The result's dollars; without a result the sum over rounds; None if nothing has a price."""
        if self.result is not None and self.result.usd is not None:
            return self.result.usd
        priced = [record.usd for record in self.rounds if record.usd is not None]
        return sum(priced) if priced else None

    @property
    def seconds(self) -> float | None:
        """The result's seconds over all attempts; without a result those of the rounds."""
        if self.result is not None:
            return self.result.seconds
        return sum(record.seconds + record.validation_s for record in self.rounds) if self.rounds else None


class RunSource(Protocol):
    """The part of a run record that ``build_report`` reads."""

    def plan(self) -> PlanRecord: ...
    def spec_yaml(self) -> bytes: ...
    def attempts(self) -> Sequence[AttemptRecord]: ...
    def exit(self, attempt: int) -> ExitRecord | None: ...
    def rounds(self) -> Sequence[RoundRecord]: ...
    def samples(self, number: int) -> RoundSamples | None: ...
    def result(self) -> ResultRecord | None: ...


def build_report(run: RunSource) -> Report:
    """Read the record. Raises ``StorageError`` if it cannot be read."""
    rounds = tuple(run.rounds())
    newest_first = (run.samples(record.round) for record in reversed(rounds))
    return Report(
        plan=run.plan(),
        spec_yaml=run.spec_yaml().decode("utf-8", "replace"),
        rounds=rounds,
        attempts=tuple(AttemptView(attempt, run.exit(attempt.number)) for attempt in run.attempts()),
        result=run.result(),
        samples=next((samples for samples in newest_first if samples is not None), None),
    )
