"""EC2's interruption notices, read from the instance metadata service (IMDSv2).

*Spot notice*: EC2 reclaims the instance in two minutes. *Scheduled maintenance*: a reboot, stop or retirement at a time
that is announced days ahead. *Rebalance recommendation*: the spot instance is at elevated risk of interruption; it may
arrive long before a notice, together with one, or without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mtl_cloud.clock import Clock
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.supervise.stop_conditions import Stop

__all__ = ["Ec2Watcher", "InstanceMetadata"]

_ENDPOINT = "http://169.254.169.254"
_TIMEOUT_S = 2
_TOKEN_TTL_S = 21600
_SPOT = "spot/instance-action"
_REBALANCE = "events/recommendations/rebalance"
_MAINTENANCE = "events/maintenance/scheduled"
_MARGIN_S = 10.0
"""Reserved at the end of the notice for the last log lines and the exit record."""
_LEAD_S = 300.0
"""The run leaves the machine this many seconds before maintenance begins, and trains until then."""


class InstanceMetadata:
    """A client of the metadata service; ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` overrides its address."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._endpoint = (environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT).rstrip("/")
        self._token = ""

    def get(self, path: str) -> Any:
        """The JSON document below ``meta-data/``; None where the service has none. Raises ``OSError``."""
        try:
            return json.loads(self._get(path))
        except HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise
        except ValueError as error:
            raise OSError(f"{self._endpoint}: {path} is not JSON: {error}") from error

    def _get(self, path: str) -> str:
        try:
            return self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except HTTPError as error:
            if error.code != HTTPStatus.UNAUTHORIZED:
                raise
        # The first request, or an expired token.
        self._token = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)})
        return self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = Request(self._endpoint + path, method=method, headers=headers)  # noqa: S310  # the service speaks http only
        with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # the same
            text: str = answer.read().decode()
            return text


class Ec2Watcher:
    """Stops the run at a spot notice or near maintenance; a rebalance recommendation only requests a checkpoint."""

    def __init__(self, metadata: InstanceMetadata, clock: Clock, *, save_early: Callable[[str], None]) -> None:
        self._metadata = metadata
        self._clock = clock
        self._save_early = save_early
        self._recommended: Any = None
        self._stop: Stop | None = None

    def look(self) -> None:
        self._stop = self._stop or next(self._stops(), None)
        recommendation = self._metadata.get(_REBALANCE)
        if recommendation is not None and recommendation != self._recommended:
            self._recommended = recommendation
            self._save_early(f"EC2 recommended at {recommendation['noticeTime']} to leave this instance")

    def poll(self) -> Stop | None:
        return self._stop

    def _stops(self) -> Iterator[Stop]:
        notice = self._metadata.get(_SPOT)
        if notice is not None:
            message = f"EC2 takes the spot instance back at {notice['time']} ({notice['action']})"
            yield self._stop_before(datetime.fromisoformat(notice["time"]), StopReason.SPOT, message)
        for event in self._metadata.get(_MAINTENANCE) or []:
            at = parsedate_to_datetime(event["NotBefore"])
            if event["State"] == "active" and at - self._clock.now() <= timedelta(seconds=_LEAD_S):
                message = f"EC2 has maintenance of the instance from {event['NotBefore']} on ({event['Code']})"
                yield self._stop_before(at, StopReason.MAINTENANCE, message)

    def _stop_before(self, at: datetime, reason: StopReason, message: str) -> Stop:
        left_s = (at - self._clock.now()).total_seconds()
        return Stop(reason, message, grace_s=max(0.0, left_s - _MARGIN_S))
