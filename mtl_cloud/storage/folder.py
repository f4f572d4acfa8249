"""A storage in a folder: local disks and network file systems with atomic rename and hard links."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path

from mtl_cloud.errors import AlreadyExistsError, NotFoundError, StorageError
from mtl_cloud.storage.base import Data, Entry, check_key, check_prefix

__all__ = ["FolderStorage"]

# Folder of unfinished objects, on the same file system; no key starts with a dot.
_STAGING = ".partial"
# A concurrent `delete` may prune a folder between its creation and its use; a few retries are enough.
_PLACE_ATTEMPTS = 20


class FolderStorage:
    """One file per object, below ``root``, which the first write creates.

    A new object is written and fsynced under a temporary name, and then renamed over the old one (``write``) or
    hard-linked to its key (``create``), which the file system refuses if the key exists.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100 - keeps symbolic links as written
        self.url = str(self._root)

    def __repr__(self) -> str:
        return f"FolderStorage({self.url!r})"

    def read(self, key: str) -> bytes:
        with self._open(key) as file:
            return file.read()

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        with self._open(key) as file:
            return os.pread(file.fileno(), size, offset)

    def write(self, key: str, data: Data) -> None:
        self._publish(key, data, os.replace)

    def create(self, key: str, data: bytes) -> None:
        self._publish(key, data, _link)

    def list(self, prefix: str) -> list[Entry]:
        folder = check_prefix(prefix).rpartition("/")[0]
        with _translated(self._root / folder):
            return sorted(entry for entry in self._walk(folder) if entry.key.startswith(prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        with _translated(self._root / check_prefix(folder)):
            # a folder that a crash left empty holds no key
            entries = (e for e in _scan(self._root / folder) if not e.is_dir() or any(self._walk(folder + e.name)))
            return tuple(sorted(entry.name for entry in entries))

    def delete(self, key: str) -> None:
        with _translated(path := self._root / check_key(key)):
            path.unlink(missing_ok=True)
            self._prune(path.parent)

    def sweep(self, prefix: str, before: datetime) -> int:  # noqa: ARG002  # the key of an unfinished file is unknown
        with _translated(folder := self._root / _STAGING):
            old = [path for path in _files(folder) if _mtime(path) < before.timestamp()]
            for path in old:
                path.unlink(missing_ok=True)
        return len(old)

    @contextmanager
    def _open(self, key: str) -> Iterator[FileIO]:
        path = f"{self.url}/{check_key(key)}"  # not a Path: joining paths takes longer than opening the file
        try:
            with FileIO(path) as file:
                yield file
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(f"{path}: no such object") from error
        except OSError as error:
            raise _storage_error(path, error) from error

    def _publish(self, key: str, data: Data, place: Callable[[Path, Path], None]) -> None:
        with _translated(target := self._root / check_key(key)):
            staged = self._stage(data)
            try:
                _place(staged, target, place)
            finally:
                staged.unlink(missing_ok=True)

    def _stage(self, data: Data) -> Path:
        folder = self._root / _STAGING
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            _write_durably(path, data)
        except OSError:  # e.g. the disk is full: free the space again
            path.unlink(missing_ok=True)
            raise
        return path

    def _walk(self, folder: str) -> Iterator[Entry]:
        for entry in _scan(self._root / folder):
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from self._walk(key)
            else:
                yield from _entry(key, entry)

    def _prune(self, folder: Path) -> None:
        """Remove ``folder`` and its parents below the root while they are empty."""
        while folder != self._root:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return
            folder = folder.parent


def _write_durably(path: Path, data: Data) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return math.inf


def _place(staged: Path, target: Path, place: Callable[[Path, Path], None]) -> None:
    for left in reversed(range(_PLACE_ATTEMPTS)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            place(staged, target)
            break
        except (FileNotFoundError, FileExistsError):  # mkdir raises the latter if the folder is deleted meanwhile
            if not left:
                raise
    _fsync_folder(target.parent)


def _link(staged: Path, target: Path) -> None:
    try:
        os.link(staged, target)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{target}: exists already") from error


def _fsync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # the object was deleted meanwhile, and its folder with it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entry(key: str, entry: os.DirEntry[str]) -> Iterator[Entry]:
    try:
        yield Entry(key, entry.stat().st_size)
    except FileNotFoundError:  # deleted since the scan
        return


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translates errors of the file system to ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error) from error


def _storage_error(path: Path | str, error: OSError) -> StorageError:
    return StorageError(f"{path}: {error.strerror or error}")
