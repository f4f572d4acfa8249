"""A split in its original form, as the preparation reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.shards.sample import EncodedSample, Files

__all__ = ["Indices", "Source", "stamp_of"]

Indices = npt.NDArray[np.int64]


class Source(Protocol):
    """Encoded samples in the order of the plain dataset. Picklable."""

    @property
    def info(self) -> DatasetInfo: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    @property
    def sizes(self) -> Indices:
        """[n] bytes of image and mask, without reading them."""
        ...

    @property
    def stamp(self) -> bytes:
        """Another one where names, sizes or labels are others, as far as they are known without reading samples."""
        ...

    def take(self, indices: Indices) -> Source:
        """These samples alone: what a worker is sent."""
        ...

    def read(self, index: int) -> EncodedSample:
        """Raises ``DatasetError`` where the original is damaged or wrongly labelled."""
        ...

    def originals(self, index: int) -> Files:
        """The sample's files as they came, which may be damaged. Raises ``DatasetError`` where they cannot be read."""
        ...


def stamp_of(keys: Iterable[str | bytes], *arrays: npt.NDArray[np.int64]) -> bytes:
    """SHA-256 of names and numbers."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update((key if isinstance(key, bytes) else key.encode(errors="surrogateescape")) + b"\0")
    for array in arrays:
        digest.update(array.tobytes())
    return digest.digest()
