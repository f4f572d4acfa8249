"""A storage behind an fsspec URL, designed for S3."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, MissingExtraError, NotFoundError, StorageError, StorageRefusedError
from mtl_cloud.storage.base import Data, Entry, check_key, check_prefix
from mtl_cloud.storage.retry import retry
from mtl_cloud.storage.uploads import MINIMUM_BYTES, S3Uploads

__all__ = ["FsspecStorage"]

T = TypeVar("T")

# The only retries below `RetryingStorage`: those of botocore and s3fs would multiply, in steps of seconds. These cover
# single failed requests; a `RetryingStorage` waits for longer outages.
_PATIENCE_S = 10.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_TAKEN = {"PreconditionFailed", "412"}
_ABSENT = {"NoSuchKey", "404"}
_BEYOND_END = {"InvalidRange", "416"}
_REFUSED = {"NoSuchBucket", "InvalidAccessKeyId", "AccessDenied"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}
# The answer to a HEAD has no body with a reason. If access were denied, the request before it would have failed too.
_HEAD_REFUSED = "403"
_STALE = {"ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed", "TokenRefreshRequired"}


class _BeyondEndError(NotFoundError):
    """A range starts at or after the end of the object."""


class FsspecStorage:
    """One object per key, below the URL's path.

    Every read is one GET and every write up to 100 MiB one PUT, so none of them can mix two versions of an object.
    botocore finds credentials and region in the environment, and an S3-compatible server in ``AWS_ENDPOINT_URL``.
    Picklable, and usable after a fork: each process connects on its own.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.url = re.sub(r"(?<=://)[^/@]*@", "", url).rstrip("/")
        self._pid = -1
        self._connect()

    def __repr__(self) -> str:
        return f"FsspecStorage({self.url!r})"

    def __reduce__(self) -> tuple[type[FsspecStorage], tuple[str]]:
        return FsspecStorage, (self._url,)

    def read(self, key: str) -> bytes:
        path = self._path(check_key(key))
        return self._call("read", key, lambda fs: bytes(fs.cat_file(path)))

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        path = self._path(check_key(key))
        try:
            return self._call("read", key, lambda fs: bytes(fs.cat_file(path, start=offset, end=offset + size)))
        except _BeyondEndError:
            return b""

    def write(self, key: str, data: Data) -> None:
        path = self._path(check_key(key))
        if _is_s3(self._url) and len(data) >= MINIMUM_BYTES:
            bucket, _, name = path.partition("/")
            self._call("write", key, lambda _: self._uploads.put(bucket, name, memoryview(data)))
        else:
            self._call("write", key, lambda fs: fs.pipe_file(path, bytes(data)))

    def create(self, key: str, data: bytes) -> None:
        path = self._path(check_key(key))
        # S3 answers 409 to concurrent conditional puts of the same key: neither has lost yet, so it is retried.
        self._call("create", key, lambda fs: fs.pipe_file(path, data, mode="create"))

    def list(self, prefix: str) -> list[Entry]:
        folder = self._path(check_prefix(prefix).rpartition("/")[0])
        found: dict[str, Any] = self._call_or("list", prefix, lambda fs: fs.find(folder, detail=True), {})
        entries = (
            Entry(self._key(path), int(info["size"] or 0))
            for path, info in found.items()
            if info["type"] == "file" and not path.endswith("/")  # the S3 console creates empty objects as "folders"
        )
        return sorted(entry for entry in entries if entry.key.startswith(prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        path = self._path(check_prefix(folder))
        below = path + "/"
        found: tuple[str, ...] = self._call_or("list", folder, lambda fs: tuple(fs.ls(path, detail=False)), ())
        names = {name.removeprefix(below).strip("/") for name in found if name.startswith(below)}
        return tuple(sorted(names - {""}))

    def delete(self, key: str) -> None:
        path = self._path(check_key(key))
        self._call_or("delete", key, lambda fs: fs.rm_file(path), None)

    def sweep(self, prefix: str, before: datetime) -> int:
        """Aborts multipart uploads on S3. Other services have no known remains."""
        if not _is_s3(self._url):
            return 0
        bucket, _, name = f"{self._root}/{check_prefix(prefix)}".partition("/")
        return self._call("sweep", prefix, lambda fs: _abort_uploads(fs, bucket, name, before))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _key(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/")

    def _call_or(self, verb: str, key: str, use: Callable[[Any], T], absent: T) -> T:
        try:
            return self._call(verb, key, use)
        except NotFoundError:
            return absent

    def _call(self, verb: str, key: str, use: Callable[[Any], T]) -> T:
        return retry(
            lambda: self._try(verb, key, use),
            patience_s=_PATIENCE_S,
            first_s=_FIRST_PAUSE_S,
            longest_s=_LONGEST_PAUSE_S,
            clock=Clock(),
        )

    def _try(self, verb: str, key: str, use: Callable[[Any], T]) -> T:
        fs = self._connect()
        try:
            return use(fs)
        except self._errors as error:
            raise _translate(error, f"{self.url}/{key}", verb) from error

    def _connect(self) -> Any:
        if self._pid != os.getpid():  # fsspec's event loop does not survive a fork
            self._fs, self._root, self._errors = _open(self._url)
            self.__dict__.pop("_uploads", None)
            self._pid = os.getpid()
        return self._fs

    @cached_property
    def _uploads(self) -> S3Uploads:
        return S3Uploads(_s3_options()["config_kwargs"])


def _open(url: str) -> tuple[Any, str, tuple[type[Exception], ...]]:
    """The file system, the root's path in it, and the exceptions of its calls."""
    import fsspec

    s3 = _is_s3(url)
    # Instances are not shared, because they would keep the endpoint and credentials of their first use.
    options = {"use_listings_cache": False, "skip_instance_cache": True} | (_s3_options() if s3 else {})
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if s3:
            raise MissingExtraError("aws", f"the storage {url}") from error
        raise StorageError(f"{url}: {error}") from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}", hint="use a folder, or a URL such as s3://bucket/prefix") from error
    fs.retries = 1
    return fs, root.rstrip("/"), (OSError, *_s3_errors()) if s3 else (OSError,)


def _abort_uploads(fs: Any, bucket: str, prefix: str, before: datetime) -> int:
    """Aborts old multipart uploads among the first thousand; the next call handles the next thousand."""
    found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", [])
    old = [upload for upload in found if upload["Key"].startswith(prefix) and upload["Initiated"] < before]
    for upload in old:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(old)


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))


def _s3_options() -> dict[str, Any]:
    return {
        # One GET per object: s3fs otherwise reads large ones in ranges, and an overwrite in between would mix versions.
        "max_concurrency": 1,
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 32,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    }


def _s3_errors() -> tuple[type[Exception], ...]:
    """Exceptions that s3fs does not translate."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, HttpError)


def _translate(error: Exception, where: str, verb: str) -> StorageError:
    code = _code(error)
    if isinstance(error, FileExistsError) or code in _TAKEN:
        return AlreadyExistsError(f"{where}: exists already")
    if code in _ABSENT or (isinstance(error, FileNotFoundError) and code is None):
        return NotFoundError(f"{where}: no such object")
    if code in _BEYOND_END:
        return _BeyondEndError(f"{where}: the range starts beyond the end of the object")
    kind = StorageRefusedError if _is_refusal(error, code) else StorageError
    return kind(f"{where}: cannot {verb}: {str(error) or type(error).__name__}", hint=_hint(error, code))


def _is_refusal(error: Exception, code: str | None) -> bool:
    """Whether access is denied. Expired credentials or a wrong clock do not count: they may be fixed during a run."""
    if code in _STALE or code == _HEAD_REFUSED:
        return False
    return isinstance(error, PermissionError) or code in _REFUSED or type(error).__name__ in _NO_CREDENTIALS


def _code(error: BaseException | None) -> str | None:
    """The error code of S3. s3fs turns botocore's errors into OSErrors that have them as their cause."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


def _hint(error: Exception, code: str | None) -> str | None:
    if code == "NoSuchBucket":
        return "create the bucket, or correct the storage's URL"
    if code in _STALE:
        return "renew the credentials (aws sso login), and check this machine's clock"
    if isinstance(error, PermissionError):
        return "the credentials in use need s3:GetObject, PutObject, DeleteObject and ListBucket there"
    if type(error).__name__ in _NO_CREDENTIALS:
        return "configure credentials: aws configure, aws sso login, or AWS_PROFILE"
    if type(error).__name__ == "EndpointConnectionError":
        return "check the network, AWS_REGION and AWS_ENDPOINT_URL"
    return None
