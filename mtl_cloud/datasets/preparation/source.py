"""The interface of a split in its original form, for the preparation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.shards.sample import EncodedSample, Files

__all__ = ["Indices", "Source", "fingerprint_of"]

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
    def fingerprint(self) -> bytes:
        """Changes with names, sizes and labels, as far as these are known without reading samples."""
        ...

    def take(self, indices: Indices) -> Source:
        """Only these samples, to be sent to a worker."""
        ...

    def read(self, index: int) -> EncodedSample:
        """One sample. Raises ``DatasetError`` if the original is damaged or wrongly labelled."""
        ...

    def originals(self, index: int) -> Files:
        """The sample's unchecked original files. Raises ``DatasetError`` if they cannot be read."""
        ...


def fingerprint_of(keys: Iterable[str | bytes], *arrays: npt.NDArray[np.int64]) -> bytes:
    """SHA-256 of ``keys`` and ``arrays``."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update((key if isinstance(key, bytes) else key.encode(errors="surrogateescape")) + b"\0")
    for array in arrays:
        digest.update(array.tobytes())
    return digest.digest()
