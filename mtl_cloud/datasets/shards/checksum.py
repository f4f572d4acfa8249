"""CRC64NVME, the checksum that S3 computes too."""

from __future__ import annotations

from mtl_cloud.errors import MissingExtraError

__all__ = ["crc64nvme"]


def crc64nvme(data: bytes | bytearray | memoryview) -> int:
    """CRC64NVME of ``data``. Raises ``MissingExtraError`` without awscrt, the only fast implementation."""
    try:
        from awscrt.checksums import crc64nvme as checksum
    except ImportError as error:
        raise MissingExtraError("data", "reading and writing prepared datasets") from error
    value: int = checksum(data)
    return value
