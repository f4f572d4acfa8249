"""EC2's notice that it takes a spot instance back, read from the instance metadata service (IMDSv2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mtl_cloud.clock import Clock
from mtl_cloud.supervise.contract import StopReason
from mtl_cloud.supervise.watch import Stop

__all__ = ["SpotWatcher"]

_ENDPOINT = "http://169.254.169.254"
_NOTICE = "/latest/meta-data/spot/instance-action"
_TIMEOUT_S = 2
_MARGIN_S = 10.0
"""Kept back from the notice for the last log lines and the exit record."""


class SpotWatcher:
    """Asks the service, at ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` where that is set."""

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._endpoint = (environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT).rstrip("/")
        self._clock = clock
        self._stop: Stop | None = None

    def look(self) -> None:
        notice = self._notice()
        if notice is not None:
            left_s = (datetime.fromisoformat(notice["time"]) - self._clock.now()).total_seconds()
            message = f"EC2 takes the spot instance back at {notice['time']} ({notice['action']})"
            self._stop = Stop(StopReason.SPOT, message, grace_s=max(0.0, left_s - _MARGIN_S))

    def poll(self) -> Stop | None:
        return self._stop

    def _notice(self) -> dict[str, str] | None:
        token = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        try:
            answer = self._ask("GET", _NOTICE, {"X-aws-ec2-metadata-token": token})
        except HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:  # EC2's way to say: none
                return None
            raise
        notice: dict[str, str] = json.loads(answer)
        return notice

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = Request(self._endpoint + path, method=method, headers=headers)  # noqa: S310  # http is all it speaks
        with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # the same
            text: str = answer.read().decode()
            return text
