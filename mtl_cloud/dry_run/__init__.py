"""The dry run: any job, on a slice of its data, in its own image on this machine, killed and interrupted on purpose.

``slice_job`` makes the small job, ``Rehearsal`` lives it, ``judge`` says what it showed, ``memory_need``
whether the whole job fits the GPU that it names.
"""

from __future__ import annotations

from mtl_cloud.dry_run.memory import MemoryNeed, memory_need
from mtl_cloud.dry_run.rehearsal import Evidence, Rehearsal
from mtl_cloud.dry_run.slice import slice_job
from mtl_cloud.dry_run.verdict import Row, judge

__all__ = ["Evidence", "MemoryNeed", "Rehearsal", "Row", "judge", "memory_need", "slice_job"]
