"""The interface between supervisor and trainer: four small files, beside the variables and exit codes of ``names``.

The files are in the attempt's *scratch folder*, which both can write. Each is one JSON object, put in place by an
atomic rename, so a reader sees the old file, the new one, or none:

``progress.json``   trainer → supervisor: the newest progress, copied into the heartbeat; its age reveals a hang
``stop.json``       supervisor → trainer: save, commit and exit with ``TrainerExit.STOPPED``; checked before each step
``save.json``       supervisor → trainer: save now and continue; the trainer removes the file
``failure.json``    trainer → supervisor: the reason of an exit to come (torchrun hides exit codes)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from mtl_cloud.json_types import Json
from mtl_cloud.names import ENV_SCRATCH

__all__ = ["Failure", "Scratch", "StopReason"]


class StopReason(StrEnum):
    """Why the supervisor asks the trainer to save and stop."""

    CANCEL = "cancel"
    DEADLINE = "deadline"
    BUDGET = "budget"
    SIGTERM = "sigterm"
    SPOT = "spot"
    MAINTENANCE = "maintenance"
    HANG = "hang"
    """The trainer does not react any more, so it is killed."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failure that the trainer explains. Only a ``machine`` failure is worth another attempt."""

    exit_code: int
    message: str
    hint: str | None = None
    kind: Literal["user", "machine"] = "user"


@dataclass(frozen=True)
class Scratch:
    """The scratch folder of one attempt, for supervisor and trainer."""

    folder: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """The folder that the supervisor passed on. Raises ``KeyError`` without a supervisor."""
        return cls(Path(environ[ENV_SCRATCH]))

    def write_progress(self, phase: str, **progress: Json) -> None:
        """Report the trainer's progress: cheap enough once a second, too expensive at every step."""
        _write(self.folder / "progress.json", {"phase": phase, **progress})

    def progress(self) -> dict[str, Json]:
        """The trainer's newest progress with its ``phase``; empty before the first."""
        return _read(self.folder / "progress.json")

    def touch_progress(self) -> None:
        """Mark the trainer as alive without new progress."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / "progress.json")

    def progress_mtime_ns(self) -> int:
        """A number that changes with every report of progress; 0 before the first."""
        try:
            return (self.folder / "progress.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def request_stop(self, reason: StopReason) -> None:
        _write(self.folder / "stop.json", {"reason": reason.value})

    def stop_reason(self) -> StopReason | None:
        """The reason to stop, or None. Costs one failed ``open`` while there is none."""
        document = _read(self.folder / "stop.json")
        return StopReason(str(document["reason"])) if document else None

    def request_save(self) -> None:
        """Request a checkpoint ahead of schedule, since the machine may be interrupted."""
        _write(self.folder / "save.json", {})

    def take_save_request(self) -> bool:
        """Whether a checkpoint was requested. A request is returned once; without one this costs one ``unlink``."""
        try:
            (self.folder / "save.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def write_failure(self, failure: Failure) -> None:
        _write(self.folder / "failure.json", asdict(failure))

    def failure(self) -> Failure | None:
        document = _read(self.folder / "failure.json")
        if not document:
            return None
        hint = document.get("hint")
        return Failure(
            exit_code=int(str(document.get("exit_code", 1))),
            message=str(document.get("message", "the trainer gave no reason")),
            hint=None if hint is None else str(hint),
            kind="machine" if document.get("kind") == "machine" else "user",
        )


def _write(path: Path, document: Mapping[str, Json]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> dict[str, Json]:
    """The object in the file; empty when there is no file, or it is not a JSON object."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
