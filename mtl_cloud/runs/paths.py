"""The keys of a run's record below ``<storage>/``. Nothing else builds such a key."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["RUNS", "RunPaths"]

RUNS = "runs/"
_CHECKPOINT = re.compile(r"(\d+)-(\d+)")
_NUMBERED = re.compile(r"(\d+)\.(?:json|txt)")


@dataclass(frozen=True)
class RunPaths:
    """Keys of one run, relative to the storage's root. Numbers are 1-based and zero-padded, so keys sort."""

    run_id: str

    @property
    def root(self) -> str:
        return f"{RUNS}{self.run_id}"

    @property
    def spec_yaml(self) -> str:
        """The bytes that were submitted."""
        return f"{self.root}/spec.yaml"

    @property
    def spec_json(self) -> str:
        """The resolved job with all defaults."""
        return f"{self.root}/spec.json"

    @property
    def plan(self) -> str:
        return f"{self.root}/plan.json"

    def moved_spec_json(self, move: int) -> str:
        """The resolved job from a move to another backend on."""
        return f"{self.root}/moves/{move:04d}/spec.json"

    def moved_plan(self, move: int) -> str:
        """Written last: it commits the move."""
        return f"{self.root}/moves/{move:04d}/plan.json"

    @property
    def cancel(self) -> str:
        return f"{self.root}/cancel.json"

    @property
    def result(self) -> str:
        return f"{self.root}/result.json"

    @property
    def attempts(self) -> str:
        return f"{self.root}/attempts/"

    def attempt(self, number: int) -> str:
        """The claim that makes ``number`` the owner of the run: created only if absent."""
        return f"{self.attempts}{number:04d}.json"

    def start(self, attempt: int) -> str:
        """The checkpoint that the attempt resumed from."""
        return f"{self.attempts}{attempt:04d}/start.json"

    def heartbeat(self, attempt: int) -> str:
        return f"{self.attempts}{attempt:04d}/heartbeat.json"

    def exit(self, attempt: int) -> str:
        return f"{self.attempts}{attempt:04d}/exit.json"

    def log(self, attempt: int) -> str:
        """Prefix of an attempt's log segments."""
        return f"{self.attempts}{attempt:04d}/log/"

    def log_segment(self, attempt: int, number: int) -> str:
        return f"{self.log(attempt)}{number:06d}.txt"

    def number_of(self, key: str) -> int | None:
        """The number of a log segment or round; it may have more digits than the padding."""
        match = _NUMBERED.fullmatch(key.rpartition("/")[2])
        return int(match[1]) if match else None

    @property
    def boots(self) -> str:
        return f"{self.root}/boots/"

    def boot(self, instance: str) -> str:
        """The boot record of a rented machine, written by its boot script before the supervisor runs."""
        return f"{self.boots}{instance}.json"

    def boot_log(self, instance: str) -> str:
        """The boot script's output, written only on failure."""
        return f"{self.boots}{instance}.log"

    @property
    def rounds(self) -> str:
        return f"{self.root}/rounds/"

    def round(self, number: int) -> str:
        return f"{self.rounds}{number:04d}.json"

    def samples(self, number: int) -> str:
        """Validation images of a round with truth and prediction, for the report."""
        return f"{self.root}/samples/{number:04d}.json"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}/checkpoints/"

    def checkpoint(self, step: int, attempt: int) -> str:
        """Prefix of one checkpoint. An attempt never writes under another attempt's prefix."""
        return f"{self.checkpoints}{step:010d}-{attempt:04d}/"

    def manifest(self, step: int, attempt: int) -> str:
        """Written last: it commits the checkpoint."""
        return f"{self.checkpoint(step, attempt)}manifest.json"

    def checkpoint_of(self, key: str) -> tuple[int, int] | None:
        """Step and attempt of the checkpoint that ``key`` belongs to; None for other keys."""
        match = _CHECKPOINT.fullmatch(key.removeprefix(self.checkpoints).partition("/")[0])
        return (int(match[1]), int(match[2])) if match else None

    @property
    def backend(self) -> str:
        """Prefix for files that a backend insists on writing. Nothing reads them."""
        return f"{self.root}/backend/"

    def events(self, attempt: int) -> str:
        """Prefix of an attempt's TensorBoard event files."""
        return f"{self.root}/events/{attempt:04d}/"
