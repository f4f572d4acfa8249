"""What the preparation remembers of each finished shard until the index is made: then a restart need not redo it."""

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


def plan_name(stamp: str, on_bad: OnBad, *, left_out: bool) -> str:
    """What a shard or dataset was made by. Without bad samples it does not matter what would have become of them."""
    return f"{stamp}-{on_bad}" if left_out else stamp


@dataclass(frozen=True)
class Part:
    """A finished shard's share of the index. It is written after the shard."""

    shard: FileEntry
    rows: Rows
    boxes: Rows
    digests: Rows
    positions: Indices
    """[n] index of each row in the split."""
    left_out: Sequence[Finding]
    notes: Sequence[Finding]

    def encode(self) -> bytes:
        words = {name: list(map(asdict, getattr(self, name))) for name in ("left_out", "notes")}
        document = json.dumps({"shard": asdict(self.shard), **words}).encode()
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
