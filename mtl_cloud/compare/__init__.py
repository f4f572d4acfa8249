"""Comparison of runs: metrics, speed and cost of each configuration, over its seeds.

Runs with different data, image size or number of epochs (number of images, if epochs are cut short) are refused, or
marked with ``--force``. The multi-task performance delta_m is computed only against single-task runs with the same
budget: data, image size, length and batch size. All functions are pure, except ``read_entry``.
"""

from __future__ import annotations

from mtl_cloud.compare.build import compare
from mtl_cloud.compare.entry import Entry, RoundChoice, differences, read_entry
from mtl_cloud.compare.table import RECALL, Comparison, Delta, Measure, Row, WorkerEffect, delta_m

__all__ = [
    "RECALL",
    "Comparison",
    "Delta",
    "Entry",
    "Measure",
    "RoundChoice",
    "Row",
    "WorkerEffect",
    "compare",
    "delta_m",
    "differences",
    "read_entry",
]
