"""Checkpoints of the training state: exact, verified on load, committed by their manifest.

A save has two halves. ``take_snapshot`` copies the state into host memory that training does not touch: the loop has
to wait for it. Everything after it (checksums, uploading, the commit, retention) reads the snapshot only, and is done
behind the loop's back by ``mtl_cloud.train.checkpoint.async_saver``.

A checkpoint is a set of safetensors files, which cannot execute code on load, and a manifest with their sizes and
CRC64NVMEs, everything of the state that is not a tensor, and its own SHA-256. The manifest comes last, once, and only
from the attempt that owns the run.

**Which one is loaded.** Each attempt states in ``start.json`` what it goes on from, before its first step. The
checkpoints that the newest attempt descends from are preferred, newest first. A manifest that a replaced attempt still
commits in the instant of the takeover is not among them once its successor has made its statement.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

import safetensors.torch
from awscrt.checksums import crc64nvme
from torch import Tensor

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.errors import DatasetError, NotFoundError, RecordError
from mtl_cloud.json_types import Json
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import CheckpointManifest, StartRecord
from mtl_cloud.train.checkpoint.snapshot import PART_BYTES, HostBuffers, Snapshot, restore_snapshot, take_snapshot

__all__ = ["Checkpointer", "Restored", "lineage", "read_checkpoint"]

log = logging.getLogger(__name__)

_TRANSFERS = 4


@dataclass(frozen=True)
class Restored:
    """A loaded checkpoint."""

    manifest: CheckpointManifest
    state: dict[str, Any]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Checkpointer:
    """Saves and restores the state of one attempt of a run, keeping the newest ``keep`` checkpoints, and some more."""

    pinned: frozenset[int] = frozenset()
    """Steps whose checkpoints stay however old they get; may be replaced at any time."""

    def __init__(
        self,
        run: RunRecord,
        attempt: int,
        *,
        keep: int,
        part_bytes: int = PART_BYTES,
        now: Callable[[], datetime] = _utc_now,
        datasets: Sequence[DatasetInfo] = (),
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._keep = keep
        self._part_bytes = part_bytes
        self._now = now
        self._datasets: list[dict[str, Json]] = [{"name": info.name, "digest": info.digest} for info in datasets]
        self._damaged: set[CheckpointId] = set()

    def save(self, state: Mapping[str, Any], *, step: int, round: int, reason: str) -> CheckpointManifest:  # noqa: A002 - the field's name in the manifest
        """Both halves at once: ``take`` and ``commit``."""
        return self.commit(self.take(state, HostBuffers()), step=step, round=round, reason=reason)

    def take(self, state: Mapping[str, Any], buffers: HostBuffers) -> Snapshot:
        """Copy ``state`` into ``buffers``, as ``commit`` wants it. Raises ``TypeError`` as ``take_snapshot`` does."""
        return take_snapshot(state, buffers=buffers, part_bytes=self._part_bytes)

    def commit(self, snapshot: Snapshot, *, step: int, round: int, reason: str) -> CheckpointManifest:  # noqa: A002 - as above
        """Store ``snapshot``, and then remove what is older than the newest ``keep`` and not pinned.

        A step is committed once an attempt: for one that is, the manifest that stands is returned. The parts are
        uploaded from where they lie: beside the snapshot no memory is used.

        Raises
        ------
        RunTakenOverError
            A later attempt owns the run, and will not go on from here.
        StorageError
            The storage failed; nothing was committed, and the next save starts afresh.
        """
        checkpoint = CheckpointId(step, self._attempt)
        if checkpoint in self._damaged:
            self._run.delete_checkpoint(checkpoint)
        if checkpoint in self._run.checkpoints():
            return self._run.manifest(checkpoint)
        manifest = CheckpointManifest(
            step=step,
            attempt=self._attempt,
            round=round,
            created_at=self._now().isoformat(timespec="seconds"),
            reason=reason,
            parts=self._write_parts(snapshot, self._run.paths.checkpoint(*checkpoint)),
            meta=snapshot.tree,
        ).sealed()
        self._run.commit_checkpoint(manifest)
        self.retire()
        return manifest

    def retire(self) -> None:
        """Remove what is neither among the newest nor pinned. Raises ``RunTakenOverError`` as ``commit`` does."""
        # Asked again, because a commit may be slow: a successor that chose before it must find its choice intact.
        self._run.require_owner(self._attempt)
        ancestors = lineage(self._run, self._attempt)
        kept = {*ancestors[: self._keep], *(found for found in ancestors if found.step in self.pinned)}
        for checkpoint in self._run.started_checkpoints():
            # What a later attempt has begun is not ours to judge.
            if checkpoint not in kept and checkpoint.attempt <= self._attempt:
                self._run.delete_checkpoint(checkpoint)

    def load_latest(self) -> Restored | None:
        """The newest checkpoint all of whose bytes are as they were written; None when there is none.

        One that is damaged is passed over, with a warning that names it. All processes of an attempt get the same.

        Raises ``DatasetError`` where the run was begun on other data: a position in one says nothing of another. Data
        without a digest is trusted: a run may move from the originals to what was prepared of them.
        """
        self._require_same_data()
        restored = self._newest_intact()
        if restored and restored.manifest.attempt == self._attempt:
            return restored  # a restart within the attempt
        choice = _start_from(restored, self._datasets)
        if self._run.write_start(self._attempt, choice) == choice:
            return restored
        return self._newest_intact()  # another process of this attempt looked earlier, and its choice stands

    def abandon(self, *, after: int) -> None:
        """Remove what this attempt and those before have committed beyond step ``after``: training goes another way.

        Nothing may be on its way. Raises ``RunTakenOverError`` when a later attempt owns the run.
        """
        self._run.require_owner(self._attempt)
        for checkpoint in self._run.started_checkpoints():
            if checkpoint.step > after and checkpoint.attempt <= self._attempt:
                self._run.delete_checkpoint(checkpoint)
                self._damaged.discard(checkpoint)

    def load_upto(self, step: int) -> Restored | None:
        """The newest intact checkpoint of ``step`` or before, for going back there within the attempt."""
        return self._newest_intact(upto=step)

    def _require_same_data(self) -> None:
        starts = (self._run.start(attempt) for attempt in range(self._attempt, 0, -1))
        before = next((start.datasets for start in starts if start and start.datasets), self._datasets)
        for one, other in zip(before, self._datasets, strict=False):
            if None not in {one["digest"], other["digest"]} and one != other:
                raise DatasetError(
                    f"{other['name']} is not the data that the run began with (its digest is {other['digest']}, "
                    f"and was {one['digest']})",
                    hint="put back what lay under the dataset's `uri:`, or submit a new run",
                )

    # --- save ---

    def _write_parts(self, snapshot: Snapshot, prefix: str) -> list[dict[str, Any]]:
        def write(number: int, data: memoryview) -> dict[str, Any]:
            part = {"key": f"part-{number:04d}.safetensors", "size": len(data), "crc64nvme": f"{crc64nvme(data):016x}"}
            self._run.storage.write(f"{prefix}{part['key']}", data)
            return part

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            return list(pool.map(write, count(1), snapshot.files))

    # --- load ---

    def _newest_intact(self, upto: float = math.inf) -> Restored | None:
        # Listed anew after each failure: the one that failed may just have been retired for a newer one.
        while candidates := [c for c in self._candidates() if c not in self._damaged and c.step <= upto]:
            try:
                return read_checkpoint(self._run, candidates[0])
            except (RecordError, NotFoundError) as error:
                log.warning("checkpoint of step %d by attempt %d is passed over: %s", *candidates[0], error)
                self._damaged.add(candidates[0])
        return None

    def _candidates(self) -> list[CheckpointId]:
        """Ancestors first; should all be damaged, what earlier attempts have committed beside them."""
        ancestors = lineage(self._run, self._attempt)
        others = [found for found in self._run.checkpoints() if found.attempt <= self._attempt] if ancestors else []
        return ancestors + [found for found in reversed(others) if found not in ancestors]


def read_checkpoint(run: RunRecord, checkpoint: CheckpointId) -> Restored:
    """Load one checkpoint, every byte of it verified; a second time where the first fails.

    What was damaged on its way here, and not where it lies, is whole then. Raises ``RecordError`` that names what is
    damaged, and ``NotFoundError`` for what is missing.
    """
    try:
        return _load(run, checkpoint)
    except RecordError:
        return _load(run, checkpoint)


def _load(run: RunRecord, checkpoint: CheckpointId) -> Restored:
    manifest = run.manifest(checkpoint)
    prefix = run.paths.checkpoint(*checkpoint)
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        parts = list(pool.map(lambda part: _read_part(run, prefix, part), manifest.parts))
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    return Restored(manifest, restore_snapshot(Snapshot(manifest.meta, tensors)))


def _read_part(run: RunRecord, prefix: str, part: Mapping[str, Any]) -> dict[str, Tensor]:
    key = prefix + part["key"]
    data = run.storage.read(key)
    if len(data) != part["size"]:
        raise RecordError(f"{key}: {len(data)} bytes, but {part['size']} were written")
    if f"{crc64nvme(data):016x}" != part["crc64nvme"]:
        raise RecordError(f"{key}: damaged: its CRC64NVME is not {part['crc64nvme']}")
    return safetensors.torch.load(data)


def _start_from(restored: Restored | None, datasets: list[dict[str, Json]]) -> StartRecord:
    step, attempt = (restored.manifest.step, restored.manifest.attempt) if restored else (None, None)
    return StartRecord(checkpoint_step=step, checkpoint_attempt=attempt, datasets=datasets)


def lineage(run: RunRecord, attempt: int) -> list[CheckpointId]:
    """The committed checkpoints that ``attempt`` descends from or has written, newest first.

    From each attempt back to the one it went on from, and of that one only what it had committed up to there. An
    attempt that ended before it chose is passed over.
    """
    committed = run.checkpoints()
    ancestors: list[CheckpointId] = []
    newest: float = math.inf
    while any(found.attempt <= attempt for found in committed):
        ancestors += [c for c in reversed(committed) if c.attempt == attempt and c.step <= newest]
        start = run.start(attempt)
        if start is None:
            attempt -= 1
        elif start.checkpoint_attempt is None or start.checkpoint_step is None:
            break
        else:
            attempt, newest = min(attempt - 1, start.checkpoint_attempt), start.checkpoint_step
    return ancestors
