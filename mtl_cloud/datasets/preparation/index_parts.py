"""Index parts: the rows of each finished shard, stored until the index is written so that a restart can skip it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from mtl_cloud.datasets.preparation.shard_plan import OnBad
from mtl_cloud.datasets.preparation.source import Indices
from mtl_cloud.datasets.shards.format import FileEntry, Finding, Rows

__all__ = ["PARTS", "Part", "part_key", "plan_name"]

PARTS = "parts/"


def part_key(plan: str, name: str) -> str:
    return f"{PARTS}{plan}/{name}.npz"


def plan_name(fingerprint: str, on_bad: OnBad, *, left_out: bool) -> str:
    """Name of the plan that made a shard or dataset. It includes ``on_bad`` only if there were bad samples."""
    return f"{fingerprint}-{on_bad}" if left_out else fingerprint


@dataclass(frozen=True)
class Part:
    """A finished shard's part of the index. It is written after the shard."""

    shard: FileEntry
    rows: Rows
    boxes: Rows
    digests: Rows
    positions: Indices
    """[n] index of each row in the split."""
    left_out: Sequence[Finding]
    notes: Sequence[Finding]

    def encode(self) -> bytes:
        findings = {name: list(map(asdict, getattr(self, name))) for name in ("left_out", "notes")}
        document = json.dumps({"shard": asdict(self.shard), **findings}).encode()
        file = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(file, document=np.frombuffer(document, np.uint8), **arrays)
        return file.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            document = json.loads(arrays["document"].tobytes())
            return cls(
                shard=FileEntry(**document["shard"]),
                left_out=[Finding(**each) for each in document["left_out"]],
                notes=[Finding(**each) for each in document["notes"]],
                **{name: arrays[name] for name in _ARRAYS},
            )


_ARRAYS = ("rows", "boxes", "digests", "positions")
