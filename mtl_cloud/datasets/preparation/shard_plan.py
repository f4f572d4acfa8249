"""Assign samples to shards: a pure function of the source and the options, so that a restart can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mtl_cloud.datasets.preparation.source import Indices, Source
from mtl_cloud.datasets.shards.sample import stem_of

__all__ = ["OnBad", "ShardJob", "plan_fingerprint", "plan_shards"]

OnBad: TypeAlias = Literal["fatal", "skip", "quarantine"]
_HEADERS = 2048
"""Approximate bytes per sample in a tar beside image and mask: headers, padding, labels."""


@dataclass(frozen=True)
class ShardJob:
    """The input of a worker for one shard."""

    split: str
    number: int
    source: Source
    """Its samples, in their order in the shard."""
    positions: Indices
    """[n] index of each sample in the split."""
    refused: Mapping[int, str]
    """Index in ``source`` -> why the sample is bad, for errors that only the whole split shows."""
    key_bytes: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}"


def plan_shards(split: str, source: Source, shard_bytes: int) -> list[ShardJob]:
    """Divides the split's samples, in a fixed random order, into shards of about ``shard_bytes``."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(source))
    sizes = source.sizes[order] + _HEADERS
    shard = (np.cumsum(sizes) - sizes) // shard_bytes
    keys = [source.key(i) for i in range(len(source))]
    key_bytes = max(len(os.fsencode(key)) for key in keys)
    again = _repeated(keys)
    return [
        ShardJob(
            split=split,
            number=number,
            source=source.take(positions),
            positions=positions,
            refused={i: again[p] for i, p in enumerate(positions.tolist()) if p in again},
            key_bytes=key_bytes,
        )
        for number, positions in enumerate(np.split(order, np.flatnonzero(np.diff(shard)) + 1))
    ]


def _repeated(keys: list[str]) -> dict[int, str]:
    """Samples with the name of an earlier one: index -> message."""
    first: dict[str, int] = {}
    again: dict[int, str] = {}
    for i, key in enumerate(keys):
        if (earlier := first.setdefault(stem_of(key), i)) != i:
            again[i] = f"{key}: a duplicate: an earlier sample has the same name: {keys[earlier]}"
    return again


def plan_fingerprint(sources: Mapping[str, Source], shard_bytes: int) -> str:
    """32 hexadecimal digits that change with anything that affects the bytes of the shards."""
    splits = {name: [source.fingerprint.hex(), sorted(source.info.classes.items())] for name, source in sources.items()}
    return hashlib.sha256(json.dumps([1, splits, shard_bytes], sort_keys=True).encode()).hexdigest()[:32]
