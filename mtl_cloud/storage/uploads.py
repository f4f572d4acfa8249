"""Uploads of large objects to S3 by boto3, for a seventh of the CPU time of s3fs.

They run beside a training loop that needs the CPU and the interpreter lock. s3fs hashes a body twice and copies it
through an event loop; here it goes from the caller's memory to the socket without the lock. S3 verifies its checksum;
over TLS, a signature of the body would add no protection.
"""

from __future__ import annotations

import base64
import weakref
import zlib
from typing import Any

__all__ = ["MINIMUM_BYTES", "S3Uploads"]

MINIMUM_BYTES = 1 << 20
"""Below this size, the bytes are not the main cost of a request."""
_SEND_BYTES = 1 << 20


class S3Uploads:
    """A boto3 client for whole objects. Thread-safe, within the process that created it."""

    def __init__(self, config: dict[str, Any]) -> None:
        """``config`` as for ``botocore.config.Config``."""
        import boto3
        from botocore.config import Config

        unsigned = {"s3": {"payload_signing_enabled": False}, "request_checksum_calculation": "when_required"}
        self._client = boto3.Session().client("s3", config=Config(**config, **unsigned))
        weakref.finalize(self, self._client.close)

    def put(self, bucket: str, key: str, data: memoryview) -> None:
        """Put or replace the object. Raises botocore's errors; ``BadDigest`` if it was damaged in transit."""
        self._client.put_object(Bucket=bucket, Key=key, Body=_Body(data), **_checksum(data))


class _Body:
    """A file-like view of bytes. botocore rewinds it, for example if a bucket is in another region.

    A file is sent piece by piece, and the timeout applies to each piece rather than to the whole upload.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        """The next MiB instead of ``size`` bytes: the 16 KiB that urllib3 requests would take thousands of calls."""
        begin = self._position
        self._position = len(self) if size < 0 else min(len(self), begin + _SEND_BYTES)
        return self._data[begin : self._position]

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position


def _checksum(data: memoryview) -> dict[str, str]:
    """The fastest available checksum, as an argument of ``put_object``."""
    try:
        from awscrt.checksums import crc64nvme
    except ImportError:
        return {"ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}
    return {"ChecksumCRC64NVME": base64.b64encode(crc64nvme(data).to_bytes(8, "big")).decode()}
