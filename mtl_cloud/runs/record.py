"""The run record of one run: the only reader and writer of ``<storage>/runs/<run-id>/``.

Orchestrator and container communicate through this record alone. The module uses only the standard library, because
process 1 of the container imports it.

**Fence.** An attempt owns the run while its number is the highest. Rounds, checkpoints and the result are written once,
by the owner only; an attempt that was replaced gets ``RunTakenOverError``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from itertools import count, takewhile
from typing import NamedTuple, TypeVar

from mtl_cloud.errors import AlreadyExistsError, NotFoundError, RecordError, RunTakenOverError
from mtl_cloud.runs.dataclass_json import FieldPath, from_json, json_object
from mtl_cloud.runs.paths import RunPaths
from mtl_cloud.runs.schema import (
    AttemptRecord,
    BootRecord,
    CancelRecord,
    CheckpointManifest,
    ExitRecord,
    Heartbeat,
    PlanRecord,
    Record,
    ResultRecord,
    RoundRecord,
    RoundSamples,
    StartRecord,
    SupervisedJob,
)
from mtl_cloud.storage import Storage

__all__ = ["CheckpointId", "RunRecord"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


class CheckpointId(NamedTuple):
    """Names one checkpoint of a run."""

    step: int
    attempt: int


class RunRecord:
    """One run's record in a storage.

    Every method raises ``StorageError`` when the storage fails, and ``RecordError`` when a file is malformed. Readers
    of files that exist from the start (``plan``, ``spec_*``, ``manifest``, ``log_segment``) raise ``NotFoundError``
    when the file is absent; readers of files that may not exist yet return None.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.storage = storage
        self.run_id = run_id
        self.paths = RunPaths(run_id)

    def __repr__(self) -> str:
        return f"RunRecord({self.storage.url!r}, {self.run_id!r})"

    # --- the run ---

    def create(self, plan: PlanRecord, *, spec_yaml: bytes, spec_json: bytes) -> None:
        """Create the run. ``plan.json`` is written last and create-only: with it the run exists.

        Raises ``AlreadyExistsError`` when the run exists, or another one is being created under its id.
        """
        self._create(self.paths.spec_yaml, spec_yaml)
        self._create(self.paths.spec_json, spec_json)
        self.storage.create(self.paths.plan, plan.encode())

    def exists(self) -> bool:
        return self._exists(self.paths.plan)

    def plan(self) -> PlanRecord:
        """The current plan: that of the newest move, or the first."""
        move = self.moves()
        return self._read(PlanRecord, self.paths.moved_plan(move) if move else self.paths.plan)

    def move(self, plan: PlanRecord, *, spec_json: bytes) -> None:
        """Continue the run under another plan, for the same training elsewhere. The plan is written last, create-only.

        Raises ``AlreadyExistsError`` when another process moves the run at the same time.
        """
        move = self.moves() + 1
        self._create(self.paths.moved_spec_json(move), spec_json)
        self._create(self.paths.moved_plan(move), plan.encode())

    def moves(self) -> int:
        """The number of moves."""
        return max(takewhile(lambda move: self._exists(self.paths.moved_plan(move)), count(1)), default=0)

    def spec_yaml(self) -> bytes:
        """The bytes that were submitted."""
        return self.storage.read(self.paths.spec_yaml)

    def spec_json(self) -> bytes:
        """The resolved job with all defaults, as of the newest move."""
        return self.storage.read(self._spec_key())

    def max_restarts(self) -> int:
        """``compute.max_restarts`` of the resolved job."""
        key = self._spec_key()
        source = f"{self.storage.url}/{key}"
        document = json_object(self.storage.read(key), source)
        return from_json(SupervisedJob, document, FieldPath(source, "job")).compute.max_restarts

    def first_spec_json(self) -> bytes:
        """The resolved job as it was submitted."""
        return self.storage.read(self.paths.spec_json)

    def request_cancel(self, record: CancelRecord) -> None:
        """Ask for the run to stop. The first request is kept; repeating it changes nothing."""
        self._create_unless_present(self.paths.cancel, record.encode())

    def cancel_request(self) -> CancelRecord | None:
        return self._find(CancelRecord, self.paths.cancel)

    def write_result(self, record: ResultRecord, *, attempt: int) -> None:
        """End the run for good, as its owner. Raises ``AlreadyExistsError`` when it has a different result already."""
        self.require_owner(attempt)
        self._create(self.paths.result, record.encode())

    def result(self) -> ResultRecord | None:
        return self._find(ResultRecord, self.paths.result)

    # --- attempts ---

    def claim(self, record: AttemptRecord) -> None:
        """Become the owner as attempt ``record.number``: one more than the present owner's, 1 for the first.

        Raises ``AlreadyExistsError`` when another process has claimed that number. With a ``nonce`` in the record,
        a claim that succeeded but whose reply was lost is recognised.
        """
        if record.number > 1 and not self._exists(self.paths.attempt(record.number - 1)):
            raise ValueError(f"{self.run_id}: attempt {record.number} claimed before attempt {record.number - 1}")
        create = self._create if record.nonce else self.storage.create
        create(self.paths.attempt(record.number), record.encode())

    def attempts(self) -> list[AttemptRecord]:
        """All claims, oldest first."""
        return [self._read(AttemptRecord, self.paths.attempt(number)) for number in range(1, (self.owner() or 0) + 1)]

    def owner(self) -> int | None:
        """The number of the attempt that owns the run; None before the first claim."""
        # Claims have no gaps, and a listing of `attempts/` would page through all log segments.
        claimed = takewhile(lambda number: self._exists(self.paths.attempt(number)), count(1))
        return max(claimed, default=None)

    def require_owner(self, attempt: int) -> None:
        """Raise ``RunTakenOverError`` when a later attempt has claimed the run."""
        later = self._find(AttemptRecord, self.paths.attempt(attempt + 1))
        if later is not None:
            raise RunTakenOverError(
                f"{self.run_id}: attempt {attempt} was replaced by attempt {later.number}, "
                f"which started at {later.started_at} on {later.host}",
                hint="this process must stop; the run continues there",
            )

    def write_start(self, attempt: int, record: StartRecord) -> StartRecord:
        """Record the checkpoint that the attempt resumes from. The first record is kept, and returned."""
        self._create_unless_present(self.paths.start(attempt), record.encode())
        return self._read(StartRecord, self.paths.start(attempt))

    def start(self, attempt: int) -> StartRecord | None:
        return self._find(StartRecord, self.paths.start(attempt))

    def write_heartbeat(self, attempt: int, record: Heartbeat) -> None:
        self.storage.write(self.paths.heartbeat(attempt), record.encode())

    def heartbeat(self, attempt: int) -> Heartbeat | None:
        return self._find(Heartbeat, self.paths.heartbeat(attempt))

    def write_exit(self, attempt: int, record: ExitRecord) -> None:
        """Record once how the attempt ended. Raises ``AlreadyExistsError`` when a different record exists."""
        self._create(self.paths.exit(attempt), record.encode())

    def exit(self, attempt: int) -> ExitRecord | None:
        return self._find(ExitRecord, self.paths.exit(attempt))

    def boots(self) -> list[BootRecord]:
        """The boot records of rented machines, oldest first; empty where no machine is rented."""
        keys = [entry.key for entry in self.storage.list(self.paths.boots) if entry.key.endswith(".json")]
        return sorted(filter(None, map(self._boot, keys)), key=lambda boot: boot.started_at)

    def _boot(self, key: str) -> BootRecord | None:
        """None, with a warning, for a damaged record: a boot script writes it, and it must not stop the supervisor."""
        try:
            return self._read(BootRecord, key)
        except (NotFoundError, RecordError) as error:
            log.warning("skipping a boot record: %s", error)
            return None

    # --- logs ---

    def append_log(self, attempt: int, number: int, data: bytes) -> None:
        """Write log segment ``number`` (1, 2, ...), once. Raises ``AlreadyExistsError`` when it differs."""
        self._create(self.paths.log_segment(attempt, number), data)

    def log_segments(self, attempt: int, after: int = 0) -> list[int]:
        """Numbers of the attempt's segments greater than ``after``, ascending."""
        return self._numbers(self.paths.log(attempt), after)

    def log_segment(self, attempt: int, number: int) -> bytes:
        return self.storage.read(self.paths.log_segment(attempt, number))

    def read_log(self, attempt: int) -> bytes:
        """The attempt's whole log so far."""
        return b"".join(self.log_segment(attempt, number) for number in self.log_segments(attempt))

    # --- rounds ---

    def write_round(self, record: RoundRecord) -> bool:
        """Commit a round's metrics as the owner. Returns False, and changes nothing, when the round exists already.

        A round may be trained twice when its record was written but the checkpoint after it was not: the second time
        gives the same metrics and other seconds. Write a round before any checkpoint past it, so that no run resumes
        from a checkpoint whose rounds are missing.
        """
        self.require_owner(record.attempt)
        return self._create_unless_present(self.paths.round(record.round), record.encode())

    def rounds(self, after: int = 0) -> list[RoundRecord]:
        """Records of the rounds with numbers greater than ``after``, ascending."""
        numbers = self._numbers(self.paths.rounds, after)
        return [self._read(RoundRecord, self.paths.round(number)) for number in numbers]

    def write_samples(self, record: RoundSamples, *, attempt: int) -> bool:
        """Commit a round's samples as the owner. Returns False, and changes nothing, when they exist already."""
        self.require_owner(attempt)
        return self._create_unless_present(self.paths.samples(record.round), record.encode())

    def samples(self, round_number: int) -> RoundSamples | None:
        return self._find(RoundSamples, self.paths.samples(round_number))

    # --- checkpoints ---

    def commit_checkpoint(self, manifest: CheckpointManifest) -> None:
        """Commit a checkpoint, as the owner. All its parts must have been written."""
        self.require_owner(manifest.attempt)
        self._create(self.paths.manifest(manifest.step, manifest.attempt), manifest.encode())

    def checkpoints(self) -> list[CheckpointId]:
        """The committed checkpoints, sorted by step, then by attempt. Their parts may be damaged."""
        keys = {entry.key for entry in self.storage.list(self.paths.checkpoints)}
        return [found for found in self._checkpoint_ids(keys) if self.paths.manifest(*found) in keys]

    def started_checkpoints(self) -> list[CheckpointId]:
        """All checkpoints: committed, being written, or never finished."""
        return self._checkpoint_ids(self.storage.children(self.paths.checkpoints))

    def manifest(self, checkpoint: CheckpointId) -> CheckpointManifest:
        """The manifest. Raises ``RecordError`` also when its checksum or its checkpoint does not match."""
        key = self.paths.manifest(*checkpoint)
        manifest = self._read(CheckpointManifest, key)
        if not manifest.is_intact or (manifest.step, manifest.attempt) != checkpoint:
            raise RecordError(f"{self.storage.url}/{key}: damaged: its own checksum does not match")
        return manifest

    def delete_checkpoint(self, checkpoint: CheckpointId) -> None:
        """Undo the commit first, then remove the parts."""
        self.storage.delete(self.paths.manifest(*checkpoint))
        for entry in self.storage.list(self.paths.checkpoint(*checkpoint)):
            self.storage.delete(entry.key)

    def sweep(self, before: datetime) -> int:
        """Remove the remains of uploads to this run that began before ``before``. Returns their number."""
        return self.storage.sweep(f"{self.paths.root}/", before)

    # --- helpers ---

    def _spec_key(self) -> str:
        move = self.moves()
        return self.paths.moved_spec_json(move) if move else self.paths.spec_json

    def _read(self, kind: type[R], key: str) -> R:
        return kind.decode(self.storage.read(key), source=f"{self.storage.url}/{key}")

    def _find(self, kind: type[R], key: str) -> R | None:
        try:
            return self._read(kind, key)
        except NotFoundError:
            return None

    def _numbers(self, prefix: str, after: int) -> list[int]:
        numbers = (self.paths.number_of(entry.key) for entry in self.storage.list(prefix))
        return sorted(number for number in numbers if number is not None and number > after)

    def _checkpoint_ids(self, keys: Iterable[str]) -> list[CheckpointId]:
        return sorted({CheckpointId(*found) for key in keys if (found := self.paths.checkpoint_of(key))})

    def _exists(self, key: str) -> bool:
        try:
            self.storage.read(key)
        except NotFoundError:
            return False
        return True

    def _create(self, key: str, data: bytes) -> None:
        """Create-only write. An existing object with the same bytes counts as our own, whose reply was lost."""
        try:
            self.storage.create(key, data)
        except AlreadyExistsError:
            if self.storage.read(key) != data:
                raise

    def _create_unless_present(self, key: str, data: bytes) -> bool:
        try:
            self.storage.create(key, data)
        except AlreadyExistsError:
            return False
        return True
