"""Where the members of a tar, or of a tar of tars, lie: headers are scanned once, members are read by offset.

Scanning the 150 GB of ImageNet's training tar takes minutes, so an index is kept in the user's cache folder
(``$XDG_CACHE_HOME/mtl-cloud``) under a name made of the tar's path, size and time of change. A cache that cannot be
written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_cloud.errors import DatasetError

__all__ = ["TarIndex", "default_cache", "index_tar", "inner_tars"]


class TarIndex(NamedTuple):
    """The regular files of a tar; of those in a tar within it, the inner tar's name is the first part of the name."""

    names: npt.NDArray[np.bytes_]
    """[n] UTF-8, e.g. ``n01440764/n01440764_10026.JPEG``. Sorted."""
    offsets: npt.NDArray[np.int64]
    """[n] of the first content byte, from the start of the (outer) file."""
    sizes: npt.NDArray[np.int64]
    """[n] in bytes."""


def index_tar(path: Path, cache: Path) -> TarIndex:
    """The index of ``path``, scanned or from the folder ``cache``.

    Raises
    ------
    DatasetError
        Not a tar, or one that ends too early (an unfinished download).
    """
    cached = cache / f"{_fingerprint(path)}.npz"
    index = _load(cached)
    if index is None:
        index = _scan(path)
        with contextlib.suppress(OSError):
            _save(index, cached)
    return index


def inner_tars(path: Path) -> list[str]:
    """Names, without suffix, of the tars in a tar. Reads their headers only. Raises ``DatasetError``."""
    with path.open("rb") as file:
        return sorted(Path(m.name).stem for m in _headers(file, 0, str(path)) if m.name.endswith(".tar"))


def default_cache(environ: Mapping[str, str]) -> Path:
    """Where indexes are kept between runs."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl-cloud" / "tar-index"


def _fingerprint(path: Path) -> str:
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n1"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _scan(path: Path) -> TarIndex:
    with path.open("rb") as file:
        members = sorted(_members(file, path))
    if not members:
        raise DatasetError(f"{path}: the tar holds no files", hint="download it again, and compare its checksum")
    names, offsets, sizes = zip(*members, strict=True)
    return TarIndex(np.array(names), np.array(offsets), np.array(sizes))


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int, int]]:
    for member in list(_headers(file, 0, str(path))):
        if member.name.endswith(".tar"):
            yield from _inner_members(file, member, path)
        else:
            yield os.fsencode(member.name.removeprefix("./")), member.offset_data, member.size


def _inner_members(file: BinaryIO, outer: tarfile.TarInfo, path: Path) -> Iterator[tuple[bytes, int, int]]:
    source, folder, count = f"{path}: {outer.name}", Path(outer.name).stem, 0
    for count, member in enumerate(_headers(file, outer.offset_data, source), 1):  # noqa: B007
        if member.offset_data + member.size > outer.offset_data + outer.size:
            raise _truncated(source, f"{member.name} reaches beyond its end")
        yield os.fsencode(f"{folder}/{member.name.rpartition('/')[2]}"), member.offset_data, member.size
    if not count:
        raise DatasetError(f"{source}: the class has no images", hint="download the tar again, or take the class out")


def _headers(file: BinaryIO, offset: int, source: str) -> Iterator[tarfile.TarInfo]:
    file.seek(offset)
    try:
        tar = tarfile.TarFile(fileobj=file)
        yield from (member for member in tar if member.isreg())
    except tarfile.TarError as error:
        raise _truncated(source, str(error)) from error
    # tarfile takes a header that it does not understand for the end, and so would hide the rest of a damaged tar.
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise _truncated(source, f"no header and no end at byte {tar.offset}")


def _truncated(source: str, what: str) -> DatasetError:
    return DatasetError(f"{source}: not a whole tar ({what})", hint="download it again, and compare its checksum")


def _load(cached: Path) -> TarIndex | None:
    try:
        with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return TarIndex(*(arrays[name] for name in TarIndex._fields))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _save(index: TarIndex, cached: Path) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **index._asdict())
        partial.replace(cached)
    finally:
        partial.unlink(missing_ok=True)
