"""The background events of the fake AWS account: launches, interruptions, scheduled actions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from mtl_cloud import catalog
from mtl_cloud.clock import Clock

__all__ = ["ALIVE", "Account", "Group", "Pool", "State"]

ALIVE = {"pending", "running"}
_TERMINATION_S = 60.0
_SENTENCES = {
    "InsufficientInstanceCapacity": "We currently do not have sufficient {type} capacity in the Availability Zone you "
    "requested ({zone}). Our system will be working on provisioning additional capacity.",
    "UnfulfillableCapacity": "Unable to fulfill capacity due to your request configuration. Please adjust your request "
    "and try again.",
    "VcpuLimitExceeded": "You have requested more vCPU capacity than your current vCPU limit of {quota} allows for the "
    "instance bucket that the specified instance type belongs to.",
}


class Pool(NamedTuple):
    """A capacity pool: instance type, zone and market."""

    instance_type: str
    zone: str
    market: str
    """spot | on-demand"""


@dataclass
class Group:
    request: dict[str, Any]
    created_at: datetime
    next_try: datetime
    zone: int = 0
    """Index of the zone to try next, and its number of refusals since."""
    refusals: int = 0


@dataclass
class State:
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    actions: dict[str, dict[str, Any]] = field(default_factory=dict)
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    activities: list[dict[str, Any]] = field(default_factory=list)


class Account:
    """One account in one region.

    Parameters
    ----------
    clock
        The clock of the fake.
    zones
        Subnet -> its zone.
    capacity
        Pool -> number of machines; other pools are unlimited.
    quota_vcpus
        Market -> vCPUs that may run at once; other markets are unlimited.
    script
        Zone -> codes (or whole sentences) of the first refusals of launches there, before the pools apply. A code that
        ends in ``*`` is repeated without end.
    lag_s
        Age of the answers to describe requests.
    throttle_every
        Every n-th request is answered with ``Throttling``; 0: none.
    tries_per_zone
        Launch attempts in a zone before the next zone is tried.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        zones: Mapping[str, str],
        capacity: Mapping[Pool, int] | None = None,
        quota_vcpus: Mapping[str, int] | None = None,
        script: Mapping[str, list[str]] | None = None,
        lag_s: float = 0.0,
        throttle_every: int = 0,
        boot_s: float = 30.0,
        retry_s: float = 30.0,
        tries_per_zone: int = 2,
        on_running: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.clock = clock
        self._zones = dict(zones)
        self._capacity = dict(capacity or {})
        self._quota = dict(quota_vcpus or {})
        self._script = {zone: list(codes) for zone, codes in (script or {}).items()}
        self._lag = timedelta(seconds=lag_s)
        self._throttle_every = throttle_every
        self._boot_s = boot_s
        self._retry_s = retry_s
        self._tries_per_zone = tries_per_zone
        self._on_running = on_running
        self.state = State()
        self._past: list[tuple[datetime, State]] = [(clock.now(), State())]
        self._refused_next: dict[str, tuple[str, str]] = {}
        self._templates_made = 0
        self.calls: list[str] = []
        """All requested operations in order, including refused ones."""
        self.most_alive: Counter[str] = Counter()
        """Group -> the largest number of its instances, pending or running, at one time."""

    # --- background events ---

    def advance(self) -> None:
        """Process all events that are due, in time order."""
        while due := [event for event in self._events() if event[0] <= self.clock.now()]:
            at, happen = min(due, key=lambda event: event[0])
            happen(at)
            self.note(at)

    def _events(self) -> Iterator[tuple[datetime, Callable[[datetime], None]]]:
        for name, action in self.state.actions.items():
            yield action["at"], partial(self._act, name)
        for name, group in self.state.groups.items():
            members = self.members(name)
            if len(members) < group.request["DesiredCapacity"]:
                yield group.next_try, partial(self._try, name)
            elif len(members) > group.request["DesiredCapacity"]:
                yield self._past[-1][0], partial(self._shrink, members[0])
        for name, instance in self.state.instances.items():
            if "next" in instance:
                yield instance["next"], partial(self._step, name)

    def _act(self, name: str, _: datetime) -> None:
        action = self.state.actions.pop(name)
        sizes = {key: action[key] for key in ("MinSize", "MaxSize", "DesiredCapacity")}
        self.state.groups[name].request.update(sizes)

    def _shrink(self, instance: str, at: datetime) -> None:
        self.terminate(instance, "User initiated", at, "a difference between desired and actual capacity")

    def _step(self, name: str, _: datetime) -> None:
        instance = self.state.instances[name]
        del instance["next"]
        if instance["State"]["Name"] == "pending":
            instance["State"] = {"Name": "running"}
            self._on_running(name)
        else:
            instance["State"] = {"Name": "terminated"}

    def _try(self, name: str, at: datetime) -> None:
        """One launch attempt in the next zone, with the first type that it offers."""
        group = self.state.groups[name]
        subnets = group.request["VPCZoneIdentifier"].split(",")
        zone = self._zones[subnets[group.zone % len(subnets)]]
        pools = [Pool(kind, zone, _market(group.request)) for kind in self._types(group.request)]
        refusals = [self._refusal(pool) for pool in pools]
        if None in refusals:
            self._launch(name, pools[refusals.index(None)], at)
            group.refusals, group.next_try = 0, at
            return
        group.refusals += 1
        if group.refusals % self._tries_per_zone == 0:
            group.zone += 1
        group.next_try = at + timedelta(seconds=self._retry_s)
        words = _status(pools[0].market, refusals[0] or "")
        self._write(name, at, "Launching a new EC2 instance", zone=zone, status="Failed", words=words)

    def _refusal(self, pool: Pool) -> str | None:
        """AWS's refusal ``CODE - sentence`` for a launch from the pool; None if it has a machine."""
        running = [one["pool"] for one in self.state.instances.values() if one["State"]["Name"] in ALIVE]
        quota = self._quota.get(pool.market)
        used = sum(catalog.instance_type(one.instance_type).vcpus for one in running if one.market == pool.market)
        script = self._script.get(pool.zone, [])
        code = None
        if script:
            code = script[0].rstrip("*")
            if not script[0].endswith("*"):
                script.pop(0)
        elif quota is not None and used + catalog.instance_type(pool.instance_type).vcpus > quota:
            code = "VcpuLimitExceeded"
        elif running.count(pool) >= self._capacity.get(pool, 1_000_000):
            code = "UnfulfillableCapacity" if pool.market == "spot" else "InsufficientInstanceCapacity"
        if code is None or " " in code:
            return code
        sentence = _SENTENCES.get(code, "As the script says.")
        return f"{code} - {sentence.format(type=pool.instance_type, zone=pool.zone, quota=quota)}"

    def _launch(self, name: str, pool: Pool, at: datetime) -> None:
        instance = f"i-{len(self.state.instances) + 1:017x}"
        self.state.instances[instance] = {
            "InstanceId": instance,
            "InstanceType": pool.instance_type,
            "Placement": {"AvailabilityZone": pool.zone},
            "State": {"Name": "pending"},
            "LaunchTime": at,
            "Tags": [
                {"Key": tag["Key"], "Value": tag["Value"]}
                for tag in self.state.groups[name].request["Tags"]
                if tag["PropagateAtLaunch"]
            ],
            "group": name,
            "pool": pool,
            "next": at + timedelta(seconds=self._boot_s),
        }
        self.most_alive[name] = max(self.most_alive[name], len(self.members(name)))
        self._write(
            name, at, f"Launching a new EC2 instance: {instance}", zone=pool.zone, status="Successful", words=""
        )

    def terminate(self, name: str, code: str, at: datetime, cause: str) -> None:
        instance = self.state.instances[name]
        if instance["State"]["Name"] not in ALIVE:
            return
        instance["State"] = {"Name": "shutting-down"}
        instance["StateReason"] = {"Code": code, "Message": code}
        instance["next"] = at + timedelta(seconds=_TERMINATION_S)
        if instance["group"] in self.state.groups:
            self.state.groups[instance["group"]].next_try = at
        zone = instance["Placement"]["AvailabilityZone"]
        self._write(
            instance["group"], at, f"Terminating EC2 instance: {name}", zone=zone, status="Successful", words=cause
        )

    def _write(self, name: str, at: datetime, description: str, *, zone: str, status: str, words: str) -> None:
        failed = status == "Failed"
        self.state.activities.append(
            {
                "ActivityId": str(len(self.state.activities)),
                "AutoScalingGroupName": name,
                "Description": f"{description}.  Status Reason: {words}" if failed else description,
                "Cause": f"At {at:%Y-%m-%dT%H:%M:%SZ} {words or 'an instance was started'}",
                "StartTime": at,
                "StatusCode": status,
                **({"StatusMessage": words} if failed else {}),
                "Details": json.dumps({"Availability Zone": zone}),
            }
        )

    def members(self, name: str) -> list[str]:
        return [
            key for key, one in self.state.instances.items() if one["group"] == name and one["State"]["Name"] in ALIVE
        ]

    def _types(self, request: Mapping[str, Any]) -> list[str]:
        policy = request.get("MixedInstancesPolicy")
        if policy:
            return [override["InstanceType"] for override in policy["LaunchTemplate"]["Overrides"]]
        template = self.template(request)
        return [template["data"]["InstanceType"]] if template else []

    def template(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The launch template that the request for a group names, by id or name; None if it does not exist."""
        policy = request.get("MixedInstancesPolicy")
        held = policy["LaunchTemplate"]["LaunchTemplateSpecification"] if policy else request["LaunchTemplate"]
        names = {held.get("LaunchTemplateId"), held.get("LaunchTemplateName")}
        templates = self.state.templates.values()
        return next((one for one in templates if names & {one["LaunchTemplateId"], one["LaunchTemplateName"]}), None)

    # --- stale reads ---

    def note(self, at: datetime) -> None:
        self._past.append((at, deepcopy(self.state)))
        old = [index for index, (then, _) in enumerate(self._past) if then <= self.clock.now() - self._lag]
        del self._past[: max(old, default=0)]

    def seen(self) -> State:
        """The state as it was ``lag_s`` ago."""
        then = self.clock.now() - self._lag
        return next((state for at, state in reversed(self._past) if at <= then), self._past[0][1])


def _market(request: Mapping[str, Any]) -> str:
    distribution = request.get("MixedInstancesPolicy", {}).get("InstancesDistribution", {})
    return "on-demand" if distribution.get("OnDemandPercentageAboveBaseCapacity", 100) == 100 else "spot"


def _status(market: str, refusal: str) -> str:
    if " - " not in refusal:  # Auto Scaling's own words, without EC2's code
        return f"{refusal} Launching EC2 instance failed."
    kind = {"spot": "Spot", "on-demand": "On-Demand"}[market]
    return f"Could not launch {kind} Instances. {refusal} Launching EC2 instance failed."
