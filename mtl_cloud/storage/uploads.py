"""Uploads of megabytes to S3: by boto3, for a seventh of the processor time that s3fs takes.

They run beside a training loop that wants the processor and the interpreter's lock. s3fs hashes a body twice and moves
it through an event loop; here it goes from the caller's memory to the socket, without the lock. What protects it is a
checksum that S3 compares (over TLS, a signature of the body would protect nothing more).
"""

from __future__ import annotations

import base64
import weakref
import zlib
from typing import Any

__all__ = ["MINIMUM_BYTES", "S3Uploads"]

MINIMUM_BYTES = 1 << 20
"""Below, what a request costs is not its bytes."""
_SEND_BYTES = 1 << 20


class S3Uploads:
    """A boto3 client for whole objects. Used from any number of threads, in the process that made it."""

    def __init__(self, config: dict[str, Any]) -> None:
        """``config`` as for ``botocore.config.Config``."""
        import boto3
        from botocore.config import Config

        unsigned = {"s3": {"payload_signing_enabled": False}, "request_checksum_calculation": "when_required"}
        self._client = boto3.Session().client("s3", config=Config(**config, **unsigned))
        weakref.finalize(self, self._client.close)

    def put(self, bucket: str, key: str, data: memoryview) -> None:
        """Put or replace the object. Raises botocore's errors; ``BadDigest`` when it was damaged on its way."""
        self._client.put_object(Bucket=bucket, Key=key, Body=_Body(data), **_checksum(data))


class _Body:
    """Bytes as a file, for botocore: it rewinds them, say, when a bucket turns out to be in another region.

    A file is sent as it is read, and the time-out holds for one piece: it bounds a silence, not the upload.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        """The next MiB: the 16 KiB that urllib3 asks for would make thousands of calls."""
        begin = self._position
        self._position = len(self) if size < 0 else min(len(self), begin + _SEND_BYTES)
        return self._data[begin : self._position]

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position


def _checksum(data: memoryview) -> dict[str, str]:
    """The fastest checksum at hand, as S3 wants it named and written."""
    try:
        from awscrt.checksums import crc64nvme
    except ImportError:
        return {"ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}
    return {"ChecksumCRC64NVME": base64.b64encode(crc64nvme(data).to_bytes(8, "big")).decode()}
