"""The output of a training job, from CloudWatch: for the time before the run record has a log, and after its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtl_cloud.aws import translated
from mtl_cloud.errors import CloudError
from mtl_cloud.names import SAGEMAKER_LOG_GROUP

__all__ = ["log_lines"]


def log_lines(client: Any, job: str) -> Iterator[str]:
    """The lines of all containers of a training job, one container after another, without line breaks.

    ``client`` is a CloudWatch Logs client. A job without output has no lines. Raises ``CloudError``.
    """
    for stream in _streams(client, job):
        yield from _lines(client, stream)


def _streams(client: Any, job: str) -> list[str]:
    pages = client.get_paginator("describe_log_streams")
    try:
        with translated("logs", where=SAGEMAKER_LOG_GROUP):
            found = pages.paginate(logGroupName=SAGEMAKER_LOG_GROUP, logStreamNamePrefix=f"{job}/")
            return [stream["logStreamName"] for page in found for stream in page["logStreams"]]
    except CloudError as error:
        if error.code == "ResourceNotFoundException":  # the account's first training job creates the log group
            return []
        raise


def _lines(client: Any, stream: str) -> Iterator[str]:
    """All events of a stream. Pages may be empty before the end, which is where the token does not change any more."""
    token: dict[str, str] = {}
    while True:
        with translated("logs", where=stream):
            page = client.get_log_events(
                logGroupName=SAGEMAKER_LOG_GROUP, logStreamName=stream, startFromHead=True, **token
            )
        yield from (event["message"] for event in page["events"])
        if token.get("nextToken") == page["nextForwardToken"]:
            return
        token = {"nextToken": page["nextForwardToken"]}
