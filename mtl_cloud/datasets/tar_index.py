"""Index of a tar, or of a tar of tars: its headers are scanned once, its members read by offset.

Scanning the 150 GB of ImageNet's training tar takes minutes, so the index is kept in the user's cache folder
(``$XDG_CACHE_HOME/mtl-cloud``), under a name made of the tar's path, size and time of change. If the cache cannot be
written, the tar is scanned each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.stored_file import StoredFile
from mtl_cloud.errors import DatasetError
from mtl_cloud.user_dirs import cache_folder, whole_file

__all__ = ["TarIndex", "default_cache", "index_tar", "inner_tars"]

_STREAMS = 8


class TarIndex(NamedTuple):
    """The regular files of a tar. The names of files in an inner tar start with that tar's name."""

    names: npt.NDArray[np.bytes_]
    """[n] UTF-8, e.g. ``n01440764/n01440764_10026.JPEG``. Sorted."""
    offsets: npt.NDArray[np.int64]
    """[n] offset of the first content byte, from the start of the (outer) file."""
    sizes: npt.NDArray[np.int64]
    """[n] size in bytes."""


def index_tar(tar: Path | StoredFile, cache: Path) -> TarIndex:
    """The index of ``tar``, from the folder ``cache`` or by a scan.

    Raises
    ------
    DatasetError
        ``tar`` is not a tar, or is truncated (an unfinished download).
    """
    cached = cache / f"{_fingerprint(tar)}.npz"
    index = _load(cached)
    if index is None:
        index = _scan(tar)
        with contextlib.suppress(OSError), whole_file(cached) as file:
            np.savez(file, **index._asdict())
    return index


def inner_tars(tar: Path | StoredFile) -> list[str]:
    """Names, without suffix, of the tars in a tar. Reads headers only. Raises ``DatasetError``."""
    with _open(tar) as file:
        return sorted(Path(m.name).stem for m in _headers(file, 0, _name(tar)) if m.name.endswith(".tar"))


def default_cache(environ: Mapping[str, str]) -> Path:
    """The folder of cached indexes."""
    return cache_folder(environ) / "tar-index"


def _fingerprint(tar: Path | StoredFile) -> str:
    identity = f"{tar.path}\n{tar.size}\n1" if isinstance(tar, StoredFile) else _file_identity(tar)
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _file_identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n1"


def _open(tar: Path | StoredFile) -> BinaryIO:
    return tar.open() if isinstance(tar, StoredFile) else tar.open("rb")


def _name(tar: Path | StoredFile) -> str:
    return tar.path if isinstance(tar, StoredFile) else str(tar)


def _scan(tar: Path | StoredFile) -> TarIndex:
    members = sorted(_members(tar))
    if not members:
        raise DatasetError(f"{_name(tar)}: the tar holds no files", hint="download it again, and compare its checksum")
    names, offsets, sizes = zip(*members, strict=True)
    return TarIndex(np.array(names), np.array(offsets), np.array(sizes))


def _members(tar: Path | StoredFile) -> Iterator[tuple[bytes, int, int]]:
    """Inner tars of a remote tar are scanned by several threads, because one stream is slow."""
    with _open(tar) as file:
        outer = list(_headers(file, 0, _name(tar)))
    yield from ((os.fsencode(m.name.removeprefix("./")), m.offset_data, m.size) for m in outer if not _is_tar(m))
    with ThreadPoolExecutor(_STREAMS if isinstance(tar, StoredFile) else 1) as pool:
        for members in pool.map(partial(_inner_members, tar), filter(_is_tar, outer)):
            yield from members


def _is_tar(member: tarfile.TarInfo) -> bool:
    return member.name.endswith(".tar")


def _inner_members(tar: Path | StoredFile, outer: tarfile.TarInfo) -> list[tuple[bytes, int, int]]:
    source, folder = f"{_name(tar)}: {outer.name}", Path(outer.name).stem
    with _open(tar) as file:
        members = list(_headers(file, outer.offset_data, source))
    for member in members:
        if member.offset_data + member.size > outer.offset_data + outer.size:
            raise _truncated(source, f"{member.name} extends beyond its end")
    if not members:
        raise DatasetError(f"{source}: the class has no images", hint="download the tar again, or remove the class")
    return [(os.fsencode(f"{folder}/{m.name.rpartition('/')[2]}"), m.offset_data, m.size) for m in members]


def _headers(file: BinaryIO, offset: int, source: str) -> Iterator[tarfile.TarInfo]:
    file.seek(offset)
    try:
        tar = tarfile.TarFile(fileobj=file)
        yield from (member for member in tar if member.isreg())
    except tarfile.TarError as error:
        raise _truncated(source, str(error)) from error
    # tarfile treats an invalid header as the end, and so would hide the rest of a damaged tar.
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise _truncated(source, f"neither a header nor an end marker at byte {tar.offset}")


def _truncated(source: str, what: str) -> DatasetError:
    return DatasetError(f"{source}: not a whole tar ({what})", hint="download it again, and compare its checksum")


def _load(cached: Path) -> TarIndex | None:
    try:
        with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return TarIndex(*(arrays[name] for name in TarIndex._fields))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
