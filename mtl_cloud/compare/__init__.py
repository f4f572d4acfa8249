"""Runs side by side: what each configuration reached, how fast and for how much, over its seeds.

The table is truthful or not at all. Runs of other data, another image size or another number of epochs (of images seen,
where epochs are cut short) are refused, or marked where a user insists; and the multi-task performance delta_m is taken
against single-task runs of the same budget only: same data, image size, length and batch. But for ``read_entry``,
everything here is a function of values.
"""

from __future__ import annotations

from mtl_cloud.compare.build import compare
from mtl_cloud.compare.entry import At, Entry, differences, read_entry
from mtl_cloud.compare.table import RECALL, Comparison, Delta, Measure, Row, WorkerEffect, delta_m

__all__ = [
    "RECALL",
    "At",
    "Comparison",
    "Delta",
    "Entry",
    "Measure",
    "Row",
    "WorkerEffect",
    "compare",
    "delta_m",
    "differences",
    "read_entry",
]
