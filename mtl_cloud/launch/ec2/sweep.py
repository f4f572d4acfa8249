"""Find and remove AWS resources that runs left behind, by their tags alone, so that any machine may do it.

Resources stay while their run may continue. They are removed when the run has expired, when its record has a result,
and when no machine was requested for an hour (a submit that was killed, a machine that failed to boot).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from mtl_cloud.aws import ClientMaker, ErrorClass, translated
from mtl_cloud.clock import Clock
from mtl_cloud.errors import CloudError
from mtl_cloud.launch.ec2.group import ALIVE, Group
from mtl_cloud.launch.leftover import Leftover
from mtl_cloud.launch.tags import read_tags
from mtl_cloud.names import EXPIRES_TAG, OWNER_TAG, RUN_TAG, STORAGE_TAG

__all__ = ["Look", "enabled_regions", "find_leftovers", "look_in", "remove_leftovers"]

_AT_ONCE = 8
_IDLE = timedelta(hours=1)
"""A submit in progress is younger."""


@dataclass
class _Found:
    """All resources with one run's tag."""

    tags: dict[str, str]
    names: list[str] = field(default_factory=list)
    instances: int = 0
    has_group: bool = False
    wanted: int = 0
    newest: datetime | None = None

    def add(self, name: str, made_at: datetime) -> None:
        self.names.append(name)
        self.newest = max(made_at, self.newest or made_at)


def enabled_regions(clients: ClientMaker) -> list[str]:
    """The regions that are enabled for the account."""
    with translated("ec2"):
        return sorted(region["RegionName"] for region in clients("ec2").describe_regions()["Regions"])


class Look(NamedTuple):
    """The search of one region."""

    region: str
    found: list[Leftover]
    refused: CloudError | None = None
    """AWS's refusal, if any: an organisation may close regions to its accounts."""


def look_in(
    regions: Sequence[str],
    clients: Callable[[str], ClientMaker],
    *,
    now: datetime,
    is_over: Callable[[str, str], bool],
) -> list[Look]:
    """``find_leftovers`` in several regions at once, in their order. ``clients`` maps a region to its maker of clients.

    Raises ``CloudError`` if every region refuses, and for any error other than a denied permission.
    """

    def look(region: str) -> Look:
        try:
            return Look(region, find_leftovers(clients(region), now=now, is_over=is_over))
        except CloudError as error:
            if error.error_class != ErrorClass.PERMISSION:
                raise
            return Look(region, [], refused=error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        looks = list(pool.map(look, regions))
    refused = [look.refused for look in looks if look.refused]
    if len(refused) == len(looks):
        raise refused[0]
    return looks


def find_leftovers(clients: ClientMaker, *, now: datetime, is_over: Callable[[str, str], bool]) -> list[Leftover]:
    """Resources in the region whose runs should have none, sorted by run id.

    ``is_over`` maps a run id and the URL of its storage to whether the run has a result.
    """
    leftovers = []
    for run_id, found in sorted(_look(clients).items()):
        reason = _reason(run_id, found, now, is_over)
        if reason:
            owner = found.tags.get(OWNER_TAG, "")
            leftovers.append(Leftover(run_id, owner, reason, tuple(found.names), clients.region))
    return leftovers


def remove_leftovers(
    leftovers: list[Leftover], clients: Callable[[str], ClientMaker], clock: Clock
) -> Iterator[Leftover]:
    """Delete all of them at once, then yield each when AWS confirms its removal.

    ``clients`` maps a region to its maker of clients.
    """
    groups = [Group(leftover.run_id, clients(leftover.region), clock) for leftover in leftovers]
    for group in groups:
        group.delete()
    for group, leftover in zip(groups, leftovers, strict=True):
        group.finish()
        yield leftover


def _reason(run_id: str, found: _Found, now: datetime, is_over: Callable[[str, str], bool]) -> str:
    """The reason to remove them; empty if they may stay."""
    expiry = found.tags.get(EXPIRES_TAG)
    if expiry is None:
        return "has no expiry"
    if datetime.fromisoformat(expiry) <= now:
        return f"expired at {expiry}"
    if is_over(run_id, found.tags.get(STORAGE_TAG, "")):
        return "the run is over"
    is_new = found.newest is not None and now - found.newest < _IDLE
    if is_new or (found.has_group and (found.wanted or found.instances)):
        return ""
    return "its group is gone" if found.instances else "no machine is asked for"


# --- looking ---------------------------------------------------------------------------------------------------------


def _look(clients: ClientMaker) -> dict[str, _Found]:
    runs: dict[str, _Found] = {}
    for group in _pages(clients, "autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"):
        found = _of_run(runs, group["Tags"])
        found.add(f"group {group['AutoScalingGroupName']}", group["CreatedTime"])
        found.has_group, found.wanted = True, group["DesiredCapacity"]
    for template in _pages(clients, "ec2", "describe_launch_templates", "LaunchTemplates"):
        _of_run(runs, template["Tags"]).add(f"template {template['LaunchTemplateName']}", template["CreateTime"])
    for held in _pages(clients, "ec2", "describe_instances", "Reservations"):
        for instance in held["Instances"]:
            if instance["State"]["Name"] in ALIVE:
                found = _of_run(runs, instance["Tags"])
                found.add(f"instance {instance['InstanceId']}", instance["LaunchTime"])
                found.instances += 1
    return runs


def _pages(clients: ClientMaker, service: str, operation: str, what: str) -> Iterator[dict[str, Any]]:
    """Every resource with a run's tag."""
    with translated(service):
        pages = clients(service).get_paginator(operation).paginate(Filters=[{"Name": "tag-key", "Values": [RUN_TAG]}])
        for page in pages:
            yield from page[what]


def _of_run(runs: dict[str, _Found], tags: list[dict[str, str]]) -> _Found:
    read = read_tags(tags)
    return runs.setdefault(read[RUN_TAG], _Found(read))
