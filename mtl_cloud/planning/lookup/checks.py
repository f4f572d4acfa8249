"""Checks of dataset and storage access before a machine is paid for. Each gives one ``Check``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.errors import LaunchError
from mtl_cloud.runs.plan_facts import Check

__all__ = ["check_inputs", "check_storage", "tried"]


def tried(name: str, attempt: Callable[[], str]) -> Check:
    """A check by trying: its message on success, AWS's error otherwise."""
    try:
        return Check(name, "ok", attempt())
    except LaunchError as error:
        return Check(name, "failed", str(error), error.hint)


def check_inputs(clients: ClientMaker, inputs: Iterable[str]) -> Iterator[Check]:
    """Check that each ``s3://`` URL that the trainer reads can be listed and is not empty."""
    for uri in inputs:
        if uri.startswith("s3://"):
            yield tried("dataset", partial(_list, clients, uri))


def _list(clients: ClientMaker, uri: str) -> str:
    bucket, prefix = _parts(uri)
    with translated("s3", where=uri):
        answer = clients("s3").list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    if not answer.get("KeyCount"):
        raise LaunchError(f"{uri}: nothing is there", hint="copy the dataset there, or correct `uri`")
    return f"{uri}: can be read"


def check_storage(clients: ClientMaker, url: str) -> Check:
    """Check that run records can be written: start and abort an upload, which leaves nothing."""
    if not url.startswith("s3://"):
        return Check("storage", "unknown", f"{url}: not at S3, so not tried")
    return tried("storage", partial(_begin_upload, clients, url))


def _begin_upload(clients: ClientMaker, url: str) -> str:
    bucket, prefix = _parts(url)
    key = f"{prefix}/runs/.probe".lstrip("/")
    with translated("s3", where=url):
        s3 = clients("s3")
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    return f"{url}: can be written"


def _parts(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/")
