"""A dataset's files: where a URI points to, bytes at an offset, images as arrays. Every failure names the file."""

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
    "decode_shrunk",
    "image_size",
    "local_path",
    "read_bytes",
    "read_lines",
    "text_lines",
]

_JPEG_COLORS = ("Gray", "YCbCr", "RGB")
"""Those of which Pillow and libjpeg-turbo make the same RGB."""
_SEQUENTIAL, _START_OF_SCAN = (0xC0, 0xC1), 0xDA
"""Markers of ITU-T T.81, table B.1: frames of baseline and of extended sequential, Huffman-coded data; their data."""
_UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise on damaged bytes."""


def local_path(uri: str) -> Path:
    """The file or folder that a ``uri`` of a job names: a path or a ``file:`` URL.

    Raises
    ------
    DatasetError
        Nothing is there, or the data lies elsewhere than on this machine.
    """
    parts = urlsplit(uri)
    if "://" in uri and parts.scheme != "file":
        raise DatasetError(
            f"{uri}: images are read from this machine's disks, not from {parts.scheme}://",
            hint="download it or mount it first, and give that folder as `uri:`",
        )
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri).expanduser()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder", hint="correct the dataset's `uri:`")
    return path


def read_bytes(path: Path | str) -> bytes:
    """A whole file. Raises ``DatasetError``."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # in half the time of `Path.read_bytes`
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything. Raises ``DatasetError``."""
    return text_lines(read_bytes(path), str(path))


def text_lines(data: bytes, source: str) -> list[str]:
    """The same of a file's bytes. Raises ``DatasetError`` naming ``source``."""
    try:
        return [line.strip() for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source}: not a text file ({error})", hint="unpack the dataset's archive again") from error


def decode_rgb(data: bytes, source: str) -> npt.NDArray[np.uint8]:
    """An encoded image of any colour space as [height, width, 3] RGB. Raises ``DatasetError`` naming ``source``."""
    return decode_shrunk(data, source, full_decode)[0]


def decode_shrunk(data: bytes, source: str, hint_for: HintFor) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """The same, and the stored height and width. Of a JPEG no more is decoded than ``shrink`` asks for.

    Its sides come divided, rounded up: libjpeg-turbo drops the high frequencies before the inverse transform, which is
    both fast and free of aliases. Rows that were not asked for are black. The others of a JPEG that is not shrunk have
    the pixels that Pillow gives it. What libjpeg-turbo complains of is Pillow's to judge.
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
    """Raises ``ValueError`` for what libjpeg-turbo complains of."""
    import simplejpeg

    height, width = (-(-side // hint.divisor) for side in shape)
    rows = hint.rows + 2 * hint.divisor  # the colours of a row are mixed with those of the next
    at = _height_field(data) if rows < shape[0] else None
    if at is None:
        image: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        return image
    shorter = bytearray(data)
    shorter[at : at + 2] = rows.to_bytes(2, "big")
    image = np.empty((height, width, 3), dtype=np.uint8)
    # Not strict: that bytes are left over is a complaint too.
    top = simplejpeg.decode_jpeg(
        shorter, "RGB", min_height=-(-rows // hint.divisor), min_width=width, buffer=image, strict=False
    )
    image[len(top) :] = 0
    return image


def _height_field(data: bytes) -> int | None:
    """Where a JPEG states its height; None unless its rows are coded one after another, and its end is there."""
    at = 2 if data.endswith(b"\xff\xd9") else len(data)
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1]) != _START_OF_SCAN:
        if marker in _SEQUENTIAL:
            return at + 5
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def decode_mask(data: bytes, source: str) -> npt.NDArray[np.uint8]:
    """A palette or 8-bit grey image as [height, width] indices. Raises ``DatasetError`` naming ``source``."""
    image = _load(data, source)
    if image.mode not in {"P", "L"}:
        raise DatasetError(
            f"{source}: a mask is a palette image of class indices, and this is {image.mode}",
            hint="convert its colours to class indices",
        )
    return np.array(image)


def image_size(data: bytes, source: str) -> tuple[int, int]:
    """Width and height, by the header alone. Raises ``DatasetError`` naming ``source``."""
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
    # Pillow would name the buffer by its address, and the same damage would read otherwise each time.
    what = "of no known format" if isinstance(error, UnidentifiedImageError) else error
    return DatasetError(
        f"{source}: damaged, or not an image ({what})", hint="replace the file, or set `on_bad_sample: skip`"
    )


class ByteReader(Protocol):
    """Bytes of one file at any offset. Picklable."""

    @property
    def path(self) -> object:
        """Which file, for people."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DatasetError`` when the file is shorter or gone."""
        ...


class RandomReader:
    """Bytes of one file at any offset. Opens it on first use in each process, so it can be sent to loader workers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[RandomReader], tuple[Path]]:
        return RandomReader, (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DatasetError`` when the file is shorter or gone."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(data) != size:
            raise DatasetError(
                f"{self.path}: ends within a member, at byte {offset + len(data)}",
                hint="it has changed since it was opened: do not write to it while it is read",
            )
        return data

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def _unreadable(path: Path | str, error: OSError) -> DatasetError:
    return DatasetError(
        f"{path}: cannot be read ({error.strerror})", hint="unpack the dataset's archive again, or mend its permissions"
    )
