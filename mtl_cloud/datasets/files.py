"""Resolve a dataset's URI, read bytes at an offset, and decode images. Every error names the file."""

from __future__ import annotations

import io
import os
import struct
import weakref
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mtl_cloud.datasets.base import DecodeHint, HintFor, full_decode
from mtl_cloud.errors import DatasetError

__all__ = [
    "ByteReader",
    "RandomReader",
    "decode_mask",
    "decode_rgb",
    "decode_scaled",
    "image_size",
    "local_path",
    "read_bytes",
    "read_lines",
    "text_lines",
]

_JPEG_COLORS = ("Gray", "YCbCr", "RGB")
"""JPEG colour spaces for which Pillow and libjpeg-turbo produce the same RGB."""
_SEQUENTIAL, _START_OF_SCAN = (0xC0, 0xC1), 0xDA
"""Markers of ITU-T T.81, table B.1: baseline and extended sequential frames with Huffman coding; start of scan."""
_UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""Exceptions that Pillow's decoders raise on damaged bytes."""


def local_path(uri: str) -> Path:
    """The file or folder that a ``uri`` of a job names: a path or a ``file:`` URL.

    Raises
    ------
    DatasetError
        The path does not exist, or the URI is remote.
    """
    parts = urlsplit(uri)
    if "://" in uri and parts.scheme != "file":
        raise DatasetError(
            f"{uri}: images are read from local disks, not from {parts.scheme}://",
            hint="download it or mount it first, and give that folder as `uri:`",
        )
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri).expanduser()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder", hint="correct the dataset's `uri:`")
    return path


def read_bytes(path: Path | str) -> bytes:
    """A whole file. Raises ``DatasetError``."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # takes half the time of `Path.read_bytes`
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped. Raises ``DatasetError``."""
    return text_lines(read_bytes(path), str(path))


def text_lines(data: bytes, source: str) -> list[str]:
    """As ``read_lines``, from bytes. Raises ``DatasetError`` that names ``source``."""
    try:
        return [line.strip() for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source}: not a text file ({error})", hint="unpack the dataset's archive again") from error


def decode_rgb(data: bytes, source: str) -> npt.NDArray[np.uint8]:
    """An encoded image of any colour space as [height, width, 3] RGB. Raises ``DatasetError`` that names ``source``."""
    return decode_scaled(data, source, full_decode)[0]


def decode_scaled(data: bytes, source: str, hint_for: HintFor) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """As ``decode_rgb``, with the stored height and width. Of a JPEG only as much as ``hint_for`` requires is decoded.

    Its sides are divided by the hint's divisor, rounded up: libjpeg-turbo drops the high frequencies before the inverse
    transform, which is fast and does not alias. Rows beyond the hint are black. At divisor 1 the other rows equal
    Pillow's. If libjpeg-turbo rejects or warns about an image, Pillow decodes it.
    """
    import simplejpeg

    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in _JPEG_COLORS:
            return _decode_jpeg(data, (height, width), hint_for(height, width)), (height, width)
    except ValueError:
        pass
    image = np.array(_load(data, source).convert("RGB"))
    return image, image.shape[:2]


def _decode_jpeg(data: bytes, shape: tuple[int, int], hint: DecodeHint) -> npt.NDArray[np.uint8]:
    """Raises ``ValueError`` for any error or warning of libjpeg-turbo."""
    import simplejpeg

    height, width = (-(-side // hint.divisor) for side in shape)
    rows = hint.rows + 2 * hint.divisor  # chroma upsampling mixes a row with the next
    at = _height_field(data) if rows < shape[0] else None
    if at is None:
        image: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        return image
    shorter = bytearray(data)
    shorter[at : at + 2] = rows.to_bytes(2, "big")
    image = np.empty((height, width, 3), dtype=np.uint8)
    # Not strict: surplus bytes cause a warning too.
    top = simplejpeg.decode_jpeg(
        shorter, "RGB", min_height=-(-rows // hint.divisor), min_width=width, buffer=image, strict=False
    )
    image[len(top) :] = 0
    return image


def _height_field(data: bytes) -> int | None:
    """Offset of a JPEG's height field; None unless its rows are coded sequentially and its end is present."""
    at = 2 if data.endswith(b"\xff\xd9") else len(data)
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1]) != _START_OF_SCAN:
        if marker in _SEQUENTIAL:
            return at + 5
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def decode_mask(data: bytes, source: str) -> npt.NDArray[np.uint8]:
    """A palette or 8-bit grey image as [height, width] indices. Raises ``DatasetError`` that names ``source``."""
    image = _load(data, source)
    if image.mode not in {"P", "L"}:
        raise DatasetError(
            f"{source}: a mask must be a palette image of class indices, not {image.mode}",
            hint="convert its colours to class indices",
        )
    return np.array(image)


def image_size(data: bytes, source: str) -> tuple[int, int]:
    """Width and height, from the header alone. Raises ``DatasetError`` that names ``source``."""
    try:
        return Image.open(io.BytesIO(data)).size
    except _UNDECODABLE as error:
        raise _not_an_image(source, error) from error


def _load(data: bytes, source: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except _UNDECODABLE as error:
        raise _not_an_image(source, error) from error
    return image


def _not_an_image(source: str, error: Exception) -> DatasetError:
    # Pillow's message holds the buffer's address, so it would differ from run to run.
    what = "unknown format" if isinstance(error, UnidentifiedImageError) else error
    return DatasetError(
        f"{source}: damaged, or not an image ({what})", hint="replace the file, or set `on_bad_sample: skip`"
    )


class ByteReader(Protocol):
    """Reads one file at any offset. Picklable."""

    @property
    def path(self) -> object:
        """The file, for messages."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DatasetError`` if the file is shorter or missing."""
        ...


class RandomReader:
    """Reads one file at any offset. Opens it on first use in each process, so it can be sent to loader workers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[RandomReader], tuple[Path]]:
        return RandomReader, (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DatasetError`` if the file is shorter or missing."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(data) != size:
            raise DatasetError(
                f"{self.path}: ends within a member, at byte {offset + len(data)}",
                hint="it has changed since it was opened: do not write to it while it is being read",
            )
        return data

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def _unreadable(path: Path | str, error: OSError) -> DatasetError:
    return DatasetError(
        f"{path}: cannot be read ({error.strerror})",
        hint="unpack the dataset's archive again, or fix its permissions",
    )
