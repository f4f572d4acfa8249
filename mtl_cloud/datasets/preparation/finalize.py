"""Finish a preparation: merge the index parts of each split's shards, and assemble the manifest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.preparation.index_parts import Part
from mtl_cloud.datasets.preparation.shard_job import bad_samples
from mtl_cloud.datasets.preparation.shard_plan import ShardJob
from mtl_cloud.datasets.preparation.source import Source
from mtl_cloud.datasets.shards.format import DatasetManifest, FileEntry, Finding, Rows, SplitManifest
from mtl_cloud.datasets.shards.index_table import encode_table
from mtl_cloud.errors import DatasetError
from mtl_cloud.storage import Storage

__all__ = ["assemble"]

_TRANSFERS = 8
_SHARD = re.compile(r"([^/]+)-\d{6}\.tar")


def assemble(
    name: str,
    sources: Mapping[str, Source],
    jobs: Sequence[ShardJob],
    target: Storage,
    keys: Sequence[str],
    *,
    aliases: Mapping[str, str],
) -> DatasetManifest:
    """Write index files from the parts ``keys``, one per job, and delete shards without a part.

    The caller writes the manifest.

    Raises
    ------
    DatasetError
        A split has no good sample, or a shard has changed since it was written.
    """
    parts = _read_parts(keys, target)
    _assert_shards(parts, jobs, target)
    merged = {
        split: _merge(source.info, [part for part, job in zip(parts, jobs, strict=True) if job.split == split])
        for split, source in sources.items()
    }
    same = _same_images({split: each.rows for split, each in merged.items()})
    infos = [source.info for source in sources.values()]
    return DatasetManifest(
        name=name,
        multi_label=infos[0].multi_label,
        classes={task: names for info in infos for task, names in info.classes.items()},
        splits={split: _store(split, each, same[split], target) for split, each in merged.items()},
        aliases=dict(aliases),
    ).sealed()


def _read_parts(keys: Sequence[str], target: Storage) -> list[Part]:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        return [Part.decode(data) for data in pool.map(target.read, keys)]


def _assert_shards(parts: Sequence[Part], jobs: Sequence[ShardJob], target: Storage) -> None:
    """All shards are present with the recorded size; others are deleted, they are of an abandoned preparation."""
    splits = {job.split for job in jobs}
    stored = {entry.key: entry.size for entry in target.list("") if _split_of(entry.key) in splits}
    for part in parts:
        if stored.pop(part.shard.key, None) != part.shard.size:
            raise DatasetError(
                f"{target.url}/{part.shard.key}: changed or deleted since it was written",
                hint=f"delete {target.url} and prepare it again; do not write to it meanwhile",
            )
    for key in stored:
        target.delete(key)


def _split_of(key: str) -> str | None:
    match = _SHARD.fullmatch(key)
    return match[1] if match else None


class _Merged(NamedTuple):
    """The merged parts of a split."""

    info: DatasetInfo
    shards: tuple[FileEntry, ...]
    rows: Rows
    """In the order of the plain dataset."""
    boxes: Rows
    digest: str
    left_out: list[Finding]
    notes: list[Finding]


def _merge(info: DatasetInfo, parts: Sequence[Part]) -> _Merged:
    order = np.argsort(np.concatenate([part.positions for part in parts]))
    if not len(order):
        raise bad_samples([finding for part in parts for finding in part.left_out])
    digests = np.concatenate([part.digests for part in parts])[order]
    return _Merged(
        info=info,
        shards=tuple(part.shard for part in parts),
        rows=np.concatenate(list(_with_boxes_of_the_split(parts)))[order],
        boxes=np.concatenate([part.boxes for part in parts]),
        digest=hashlib.sha256(digests.tobytes()).hexdigest(),
        left_out=[finding for part in parts for finding in part.left_out],
        notes=[note for part in parts for note in part.notes],
    )


def _with_boxes_of_the_split(parts: Sequence[Part]) -> Iterator[Rows]:
    """Rows with ``first_box`` counted over the whole split."""
    first = 0
    for part in parts:
        if "first_box" in (part.rows.dtype.names or ()):
            part.rows["first_box"] += first
        yield part.rows
        first += len(part.boxes)


def _same_images(tables: Mapping[str, Rows]) -> dict[str, list[Finding]]:
    """Images with the same CRC64NVME and size as an earlier one, in the same split or an earlier one."""
    checksums, sizes = (np.concatenate([rows[name] for rows in tables.values()]) for name in ("crc64nvme", "size"))
    order = np.lexsort((sizes, checksums))  # stable: the first of equal ones comes first
    same = (np.diff(checksums[order]) == 0) & (np.diff(sizes[order]) == 0)
    names = (
        [(split, os.fsdecode(key)) for split, rows in tables.items() for key in rows["key"].tolist()]
        if same.any()
        else []
    )
    found: dict[str, list[Finding]] = {split: [] for split in tables}
    for earlier, later in zip(order[:-1][same], order[1:][same], strict=True):
        split, key = names[later]
        found[split].append(Finding(key=key, what=f"{key}: a duplicate: the same bytes as {'/'.join(names[earlier])}"))
    return found


def _store(split: str, merged: _Merged, same: Sequence[Finding], target: Storage) -> SplitManifest:
    return SplitManifest(
        samples=len(merged.rows),
        digest=merged.digest,
        shards=merged.shards,
        index=_write_table(f"{split}.index.npy", merged.rows, target),
        boxes=_write_table(f"{split}.boxes.npy", merged.boxes, target) if "detection" in merged.info.classes else None,
        left_out=_by_key(merged.left_out),
        notes=_by_key([*merged.notes, *same]),
    )


def _write_table(key: str, rows: Rows, target: Storage) -> FileEntry:
    data = encode_table(rows)
    target.write(key, data)
    return FileEntry.of(key, data)


def _by_key(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: (finding.key, finding.what)))
