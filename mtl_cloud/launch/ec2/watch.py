"""News of a run's machines, from the group's scaling activities and the machines' boot records.

AWS retries failed launches itself. This module decides when retrying is useless: at once for a quota, a permission or
an invalid request, and after ``capacity_timeout_minutes`` for a lack of capacity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from mtl_cloud.aws import Diagnosis, ErrorClass, read_reason
from mtl_cloud.clock import Clock
from mtl_cloud.errors import CapacityError, CloudError, LaunchError
from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.launch.base import MachineNews
from mtl_cloud.launch.ec2.group import Group
from mtl_cloud.launch.ec2.request import capacity_timeout
from mtl_cloud.names import BootPhase
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import BootRecord, PlanRecord

__all__ = ["Activity", "Ec2Watch"]

_EVERY_S = 10.0
_SKEW = timedelta(minutes=2)
"""The clocks of this machine and of AWS may differ by this much."""
_FATAL = {ErrorClass.QUOTA, ErrorClass.PERMISSION, ErrorClass.CREDENTIALS, ErrorClass.PERMANENT}
_SCARCE = {ErrorClass.CAPACITY, ErrorClass.NOT_OFFERED, ErrorClass.SUBNET}
_INSTANCE = re.compile(r"\bi-[0-9a-f]+")


@dataclass(frozen=True)
class Activity:
    """One scaling activity of the group: a launch or a termination, and its progress."""

    started_at: datetime
    launches: bool
    status: str
    """Failed | Cancelled | Successful | InProgress | ... of the Auto Scaling API."""
    zone: str
    instance: str
    """Empty if no instance was launched."""
    reason: str
    """AWS's explanation of the failure or the change."""

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        description, status = answer.get("Description", ""), answer["StatusCode"]
        found = _INSTANCE.search(description)
        return cls(
            started_at=answer["StartTime"],
            launches=not description.startswith("Terminating"),
            status=status,
            zone=json.loads(answer.get("Details") or "{}").get("Availability Zone", ""),
            instance=found[0] if found else "",
            reason=answer.get("StatusMessage", "") if status == "Failed" else answer.get("Cause", ""),
        )

    @property
    def refused(self) -> bool:
        return self.launches and self.status == "Failed"

    @property
    def place(self) -> str:
        return self.zone or "the region"


class Ec2Watch:
    """Implements ``MachineWatch`` for a group."""

    def __init__(self, run: RunRecord, group: Group, clock: Clock, *, since: datetime | None) -> None:
        """Activities before ``since`` belong to an earlier group of the run and are ignored."""
        self._run = run
        self._plan = run.plan()
        self._group = group
        self._clock = clock
        self._since = since and since - _SKEW
        self._look_at = clock.monotonic()
        self._told: set[tuple[str, str, str]] = set()

    def look(self) -> list[MachineNews]:
        now = self._clock.monotonic()
        if now < self._look_at:
            return []
        self._look_at = now + _EVERY_S
        activities = [Activity.of(answer) for answer in self._group.activities()]
        activities = [a for a in activities if self._since is None or a.started_at >= self._since]
        boots = self._run.boots()
        fresh = [(key, news) for key, news in _keyed(self._all(activities, boots)) if key not in self._told]
        self._told.update(key for key, _ in fresh)
        if not fresh:
            self._check(activities, boots)
        return [news for _, news in fresh]

    def _all(self, activities: list[Activity], boots: list[BootRecord]) -> Iterator[MachineNews]:
        yield _announced(self._plan)
        yield from sorted([*_of_activities(activities), *map(_of_boot, boots)], key=lambda news: news.at)

    def _check(self, activities: list[Activity], boots: list[BootRecord]) -> None:
        """Raise if no machine will come any more. Called only after a look without news, so that news come first."""
        group = self._group.find()
        if self._run.result() is not None:  # read after the group, since a run that is over closes its group
            return
        refused = [activity for activity in activities if activity.refused]
        if refused and refused[-1] is activities[-1]:
            self._check_refusal(refused, had_one=bool(boots))
        if group is None or not (group.wanted or group.instances):
            raise self._closed(boots)

    def _check_refusal(self, refused: list[Activity], *, had_one: bool) -> None:
        found = read_reason(refused[-1].reason)
        timeout = capacity_timeout(self._plan)
        waited = self._clock.now() - datetime.fromisoformat(self._plan.created_at)
        if found.error_class in _FATAL:
            self._group.remove()
            raise self._refusal(refused[-1], found)
        if not had_one and timeout is not None and waited > timeout:
            self._group.remove()
            raise self._unfilled(refused, timeout)

    # --- what it raises ---

    def _refusal(self, activity: Activity, found: Diagnosis) -> CloudError:
        return CloudError(
            f"{self._run.run_id}: refused in {activity.place}: {activity.reason} ({found.error_class})",
            hint=f"{found.cause}; {found.action}",
            code=found.code,
            error_class=found.error_class,
            operation="Launch",
        )

    def _unfilled(self, refused: list[Activity], timeout: timedelta) -> CloudError:
        """The last reason of each zone. A capacity error only if AWS gave no other kind of reason."""
        last = {activity.place: activity for activity in refused}
        classes = {read_reason(activity.reason).error_class for activity in last.values()}
        kind = CapacityError if ErrorClass.CAPACITY in classes and classes <= _SCARCE else CloudError
        reasons = "\n".join(f"  {place}: {activity.reason}" for place, activity in last.items())
        return kind(
            f"{self._run.run_id}: AWS found no machine within {timeout.total_seconds() / 60:g} minutes:\n{reasons}",
            hint="name more instance types, another purchase or region, or a longer compute.capacity_timeout_minutes",
            error_class=ErrorClass.CAPACITY if kind is CapacityError else ErrorClass.UNKNOWN,
            operation="Launch",
        )

    def _closed(self, boots: list[BootRecord]) -> LaunchError:
        failed = [boot for boot in boots if boot.phase == BootPhase.FAILED]
        why = f"; {failed[-1].instance} failed: {failed[-1].message}" if failed else ""
        hint = (
            f"its boot log: {self._run.storage.url}/{self._run.paths.boot_log(failed[-1].instance)}" if failed else None
        )
        return LaunchError(
            f"{self._run.run_id}: the Auto Scaling group is scaled to 0 but the run has not finished{why}", hint=hint
        )


def _announced(plan: PlanRecord) -> MachineNews:
    compute = compute_of(plan, Ec2Compute)
    types, purchase = " or ".join(compute.instance_types), compute.purchase.replace("_", " ")
    return MachineNews(plan.created_at, "requesting", f"{types}, {purchase}, in {compute.region}")


def _keyed(every: Iterator[MachineNews]) -> Iterator[tuple[tuple[str, str, str], MachineNews]]:
    """News with the key that makes them unique: a refusal counts again once a machine has come in between."""
    machine = ""
    for news in every:
        machine = news.message if news.phase == "launched" else machine
        yield (news.phase, news.message, machine if news.phase == "refused" else ""), news


def _of_activities(activities: list[Activity]) -> Iterator[MachineNews]:
    """Until a machine comes, a refusal is reported once for each zone and reason, however often AWS retries."""
    told: set[tuple[str, str]] = set()
    for activity in activities:
        at = activity.started_at.isoformat()
        if activity.refused and (activity.place, activity.reason) not in told:
            told.add((activity.place, activity.reason))
            error_class = str(read_reason(activity.reason).error_class).replace("_", " ")
            yield MachineNews(at, "refused", f"in {activity.place}: {activity.reason} ({error_class})")
        elif activity.launches and activity.instance:
            told.clear()
            yield MachineNews(at, "launched", f"{activity.instance} in {activity.place}")
        elif not activity.launches:
            yield MachineNews(at, "gone", f"{activity.instance}: {activity.reason}")


def _of_boot(boot: BootRecord) -> MachineNews:
    words = f"{boot.instance} ({boot.instance_type}, {boot.market}, {boot.zone})"
    return MachineNews(boot.at, boot.phase, f"{words}: {boot.message}" if boot.message else words)
