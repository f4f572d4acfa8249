"""Checkpoints of the training state: exact, verified on load, committed by their manifest.

A save has two halves. ``take_snapshot`` copies the state into host memory that training does not use; the loop has to
wait for it. Everything else (checksums, upload, commit, retention) reads only the snapshot, and runs in the thread of
``mtl_cloud.train.checkpoint.async_saver``.

A checkpoint is a set of safetensors files, which cannot execute code on load, and a manifest with their sizes and
CRC64NVMEs, everything of the state that is not a tensor, and its own SHA-256. The manifest is written last, once, and
only by the attempt that owns the run.

**Which one is loaded.** Each attempt records in ``start.json`` the checkpoint from which it starts, before its first
step. The ancestors of the newest attempt are preferred, newest first. A manifest that a replaced attempt still commits
during the takeover is not among them once its successor has written that record.
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
    """Saves and restores the state of one attempt of a run; keeps the newest ``keep`` checkpoints, and pinned ones."""

    pinned: frozenset[int] = frozenset()
    """Steps whose checkpoints are kept regardless of age; may be replaced at any time."""

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
        """Both halves at once: ``snapshot`` and ``commit``."""
        return self.commit(self.snapshot(state, HostBuffers()), step=step, round=round, reason=reason)

    def snapshot(self, state: Mapping[str, Any], buffers: HostBuffers) -> Snapshot:
        """Copy ``state`` into ``buffers``, for ``commit``. Raises ``TypeError`` as ``take_snapshot`` does."""
        return take_snapshot(state, buffers=buffers, part_bytes=self._part_bytes)

    def commit(self, snapshot: Snapshot, *, step: int, round: int, reason: str) -> CheckpointManifest:  # noqa: A002 - as above
        """Store ``snapshot``, and then delete checkpoints that are neither among the newest ``keep`` nor pinned.

        An attempt commits a step once: if it is committed already, the existing manifest is returned. The parts are
        uploaded from the snapshot's memory, without a copy.

        Raises
        ------
        RunTakenOverError
            A later attempt owns the run, and will not start from this checkpoint.
        StorageError
            The storage failed; nothing was committed, and the next save is independent of this one.
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
        self.apply_retention()
        return manifest

    def apply_retention(self) -> None:
        """Delete checkpoints neither among the newest nor pinned. Raises ``RunTakenOverError`` as ``commit`` does."""
        # Checked again, because a commit may be slow: a successor may already have chosen one of these checkpoints.
        self._run.require_owner(self._attempt)
        ancestors = lineage(self._run, self._attempt)
        kept = {*ancestors[: self._keep], *(found for found in ancestors if found.step in self.pinned)}
        for checkpoint in self._run.started_checkpoints():
            # Only a later attempt deletes its own checkpoints.
            if checkpoint not in kept and checkpoint.attempt <= self._attempt:
                self._run.delete_checkpoint(checkpoint)

    def load_latest(self) -> Restored | None:
        """The newest intact checkpoint; None if there is none.

        A damaged one is skipped, with a warning that names it. All processes of an attempt get the same checkpoint.

        Raises ``DatasetError`` if the run was begun on other data, for which its position is meaningless. Data without
        a digest is trusted: a run may move from the originals to the prepared dataset.
        """
        self._require_same_data()
        restored = self._newest_intact()
        if restored and restored.manifest.attempt == self._attempt:
            return restored  # a restart within the attempt
        choice = _start_from(restored, self._datasets)
        if self._run.write_start(self._attempt, choice) == choice:
            return restored
        return self._newest_intact()  # another process of this attempt chose first

    def discard_newer(self, *, than: int) -> None:
        """Delete the checkpoints of this and earlier attempts after step ``than``, because training is rewound.

        No save may be running. Raises ``RunTakenOverError`` if a later attempt owns the run.
        """
        self._run.require_owner(self._attempt)
        for checkpoint in self._run.started_checkpoints():
            if checkpoint.step > than and checkpoint.attempt <= self._attempt:
                self._run.delete_checkpoint(checkpoint)
                self._damaged.discard(checkpoint)

    def load_upto(self, step: int) -> Restored | None:
        """The newest intact checkpoint of ``step`` or before, for a rewind within the attempt."""
        return self._newest_intact(upto=step)

    def _require_same_data(self) -> None:
        starts = (self._run.start(attempt) for attempt in range(self._attempt, 0, -1))
        before = next((start.datasets for start in starts if start and start.datasets), self._datasets)
        for one, other in zip(before, self._datasets, strict=False):
            if None not in {one["digest"], other["digest"]} and one != other:
                raise DatasetError(
                    f"{other['name']} is not the data that the run began with (its digest is {other['digest']}, "
                    f"and was {one['digest']})",
                    hint="restore the data at the dataset's `uri:`, or submit a new run",
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
        # Listed again after each failure: the checkpoint may just have been deleted for a newer one.
        while candidates := [c for c in self._candidates() if c not in self._damaged and c.step <= upto]:
            try:
                return read_checkpoint(self._run, candidates[0])
            except (RecordError, NotFoundError) as error:
                log.warning("skipping the checkpoint of step %d by attempt %d: %s", *candidates[0], error)
                self._damaged.add(candidates[0])
        return None

    def _candidates(self) -> list[CheckpointId]:
        """Ancestors first; then, in case all are damaged, other checkpoints of this and earlier attempts."""
        ancestors = lineage(self._run, self._attempt)
        others = [found for found in self._run.checkpoints() if found.attempt <= self._attempt] if ancestors else []
        return ancestors + [found for found in reversed(others) if found not in ancestors]


def read_checkpoint(run: RunRecord, checkpoint: CheckpointId) -> Restored:
    """Load one checkpoint and verify every byte; on failure, once more, in case it was damaged in transit.

    Raises ``RecordError`` that names the damaged object, or ``NotFoundError`` for a missing one.
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
        raise RecordError(f"{key}: {len(data)} bytes instead of {part['size']}")
    if f"{crc64nvme(data):016x}" != part["crc64nvme"]:
        raise RecordError(f"{key}: damaged: its CRC64NVME is not {part['crc64nvme']}")
    return safetensors.torch.load(data)


def _start_from(restored: Restored | None, datasets: list[dict[str, Json]]) -> StartRecord:
    step, attempt = (restored.manifest.step, restored.manifest.attempt) if restored else (None, None)
    return StartRecord(checkpoint_step=step, checkpoint_attempt=attempt, datasets=datasets)


def lineage(run: RunRecord, attempt: int) -> list[CheckpointId]:
    """The committed checkpoints of ``attempt`` and its ancestors, newest first.

    From each attempt the walk goes back to the one from which it started, and takes that one's checkpoints up to there.
    An attempt that ended before it chose a checkpoint is skipped.
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
