"""The dry run: any job, on a slice of its data, in its own image on this machine, killed and interrupted on purpose.

``slice_job`` makes the small job, ``Rehearsal`` lives it, ``judge`` says what it showed, ``estimate`` what the whole
job may take on the machine that it names.
"""

from __future__ import annotations

from mtl_cloud.dry_run.estimate import Estimate, estimate
from mtl_cloud.dry_run.rehearsal import Evidence, Rehearsal
from mtl_cloud.dry_run.slice import slice_job
from mtl_cloud.dry_run.verdict import Row, judge

__all__ = ["Estimate", "Evidence", "Rehearsal", "Row", "estimate", "judge", "slice_job"]
