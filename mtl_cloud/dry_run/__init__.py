"""The dry run: any job, on a slice of its data, in its own image on this machine, killed and interrupted on purpose.

``slice_job`` makes the small job, ``Rehearsal`` runs it, ``check_evidence`` evaluates the result, and ``memory_need``
estimates whether the whole job fits its GPU.
"""

from __future__ import annotations

from mtl_cloud.dry_run.checks import Row, check_evidence
from mtl_cloud.dry_run.memory import MemoryNeed, memory_need
from mtl_cloud.dry_run.rehearsal import Evidence, Rehearsal
from mtl_cloud.dry_run.slice import slice_job

__all__ = ["Evidence", "MemoryNeed", "Rehearsal", "Row", "check_evidence", "memory_need", "slice_job"]
