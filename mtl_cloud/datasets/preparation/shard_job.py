"""Write one shard: read and check its samples, leave out bad ones, and store it with its part of the index."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mtl_cloud.datasets.preparation.index_parts import Part, part_key, plan_name
from mtl_cloud.datasets.preparation.shard_plan import OnBad, ShardJob
from mtl_cloud.datasets.preparation.writer import ShardWriter
from mtl_cloud.datasets.shards.format import FileEntry, Finding
from mtl_cloud.datasets.shards.sample import EncodedSample, check_sample, unusual
from mtl_cloud.errors import DatasetError
from mtl_cloud.storage import Storage

__all__ = ["QUARANTINE", "bad_samples", "make_shard"]

QUARANTINE = "quarantine/"
_SHOWN = 5
"""Bad samples named in one message."""


def make_shard(job: ShardJob, *, target: Storage, on_bad: OnBad, fingerprint: str) -> int:
    """Write one shard, then its part of the index. Returns the number of samples of the job.

    Raises
    ------
    DatasetError
        ``on_bad`` is fatal, and samples are bad. The message names the first ones; nothing was written.
    """
    work = _Work(job, ShardWriter(job.source.info, job.number, job.key_bytes))
    for index in range(len(job.positions)):
        work.add(index)
    if work.left_out and on_bad == "fatal":
        raise bad_samples(work.left_out)
    if on_bad == "quarantine":
        _quarantine(job, work, target)
    _store(work, target, plan_name(fingerprint, on_bad, left_out=bool(work.left_out)))
    return len(job.positions)


def bad_samples(findings: list[Finding]) -> DatasetError:
    """The error for a preparation with ``on_bad`` fatal."""
    shown = "\n".join(finding.what for finding in findings[:_SHOWN])
    more = f"\n… and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return DatasetError(
        f"{shown}{more}",
        hint="correct the original; or leave out bad samples, listed in the manifest: --on-bad skip, or quarantine",
    )


@dataclass
class _Work:
    job: ShardJob
    writer: ShardWriter
    kept: list[int] = field(default_factory=list)
    """[rows] index in the job of each row."""
    bad: list[int] = field(default_factory=list)
    left_out: list[Finding] = field(default_factory=list)
    """The reason for each of ``bad``."""
    notes: list[Finding] = field(default_factory=list)

    def add(self, index: int) -> None:
        try:
            sample = self._read(index)
            height, width = check_sample(sample, self.job.source.info)
        except DatasetError as error:
            self.bad.append(index)
            self.left_out.append(Finding(key=self.job.source.key(index), what=str(error)))
            return
        self.writer.append(sample, height=height, width=width)
        self.kept.append(index)
        if what := unusual(sample):
            self.notes.append(Finding(key=sample.key, what=f"{sample.where}: {what}"))

    def _read(self, index: int) -> EncodedSample:
        if index in self.job.refused:
            raise DatasetError(self.job.refused[index])
        return self.job.source.read(index)


def _quarantine(job: ShardJob, work: _Work, target: Storage) -> None:
    for index in work.bad:
        try:
            files = job.source.originals(index)
        except DatasetError:
            continue  # the finding names the error
        for name, data in files:
            target.write(f"{QUARANTINE}{job.split}/{name}", data)


def _store(work: _Work, target: Storage, plan: str) -> None:
    job, shard = work.job, work.writer.finish()
    entry = FileEntry.of(f"{job.name}.tar", shard.data)
    part = Part(
        shard=entry,
        rows=shard.rows,
        boxes=shard.boxes,
        digests=shard.digests,
        positions=job.positions[np.array(work.kept, np.int64)],
        left_out=work.left_out,
        notes=work.notes,
    )
    target.write(entry.key, shard.data)
    target.write(part_key(plan, job.name), part.encode())
