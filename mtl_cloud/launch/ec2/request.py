"""The requests of a run on EC2, as a pure function of its plan and its launch template.

A launch template describes the machine. An Auto Scaling group of one, created with capacity 0, describes zones and
purchase. A scheduled action sets the group to 0 at the run's expiry, and only then is the capacity set to 1: no machine
is requested before its end is scheduled.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self

from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.json_types import Json
from mtl_cloud.launch.ec2.user_data import MAX_USER_DATA, Boot, user_data
from mtl_cloud.launch.tags import run_tags
from mtl_cloud.names import KEY_TAG, SPOT_THEN_ON_DEMAND, aws_name
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.plan_facts import Offer, Reservation
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["CLOSED", "OPEN", "PLANNED", "Ec2Facts", "Template", "capacity_timeout", "expires_at", "requests"]

OPEN: dict[str, Json] = {"MinSize": 0, "MaxSize": 1, "DesiredCapacity": 1}
CLOSED: dict[str, Json] = {"MinSize": 0, "MaxSize": 0, "DesiredCapacity": 0}
_SLACK = timedelta(minutes=30)
"""Time between the run's deadline, at which it saves and stops, and the scheduled end of its machine."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The part of the run's launch template that the requests need and no plan contains."""

    id: str
    """The group refers to this id, not to the name, which another template may have later."""
    key: str = field(repr=False)
    """The group's key, 32 hex digits. With it, a holder of the instances' role may close the group."""


PLANNED: Final = Template(id="lt-made-by-submit", key="made-by-submit")
"""Placeholder for the template that does not exist yet, in requests that are shown and stored."""


@dataclass(frozen=True, kw_only=True)
class Ec2Facts:
    """The account's facts for the requests, from ``facts.ec2`` of ``plan.json`` and the job's own fields."""

    ami: str
    root_device: str
    """The AMI's name for its root disk: ``/dev/sda1``, ``/dev/xvda``, ..."""
    subnets: Mapping[str, str]
    """Zone -> subnet, for the zones that offer any of the job's types."""
    security_group: str
    instance_profile: str
    """Name of the profile."""
    group_role: str
    """ARN of the role that a machine assumes to close its own group."""
    image: str
    """Reference of the container image."""
    owner: str
    """Last part of the planner's ARN."""
    reservation: Reservation | None
    """``compute.capacity_reservation``; None without one."""

    @classmethod
    def of(cls, plan: PlanRecord, compute: Ec2Compute) -> Self:
        """Raises ``LaunchError`` naming the first fact that the plan lacks."""
        facts = plan.parsed_facts
        account = facts.ec2
        if account is None:
            raise _unknown(plan, "ami")
        if account.group_role is None:
            raise _unknown(plan, "group_role")
        if compute.capacity_reservation and account.reservation is None:
            raise _unknown(plan, "reservation")
        return cls(
            ami=account.ami.id,
            root_device=account.ami.root_device,
            subnets=_offering(facts.offers, account.subnets),
            security_group=account.security_group,
            instance_profile=account.instance_profile,
            group_role=account.group_role,
            image=plan.image or account.image,
            owner=facts.owner,
            reservation=account.reservation if compute.capacity_reservation else None,
        )


def _unknown(plan: PlanRecord, fact: str) -> LaunchError:
    return LaunchError(
        f"{plan.run_id}: the plan lacks the fact ec2.{fact}: the account was not queried",
        hint="plan with credentials, in a region where `mtl-cloud bootstrap` has run",
    )


def _offering(offers: Iterable[Offer], subnets: Mapping[str, str]) -> Mapping[str, str]:
    """The facts with only those zones that the plan's offers name; all zones if the offers name none."""
    zones = {offer.zone for offer in offers} & subnets.keys()
    return {zone: subnet for zone, subnet in subnets.items() if zone in zones} if zones else subnets


def expires_at(plan: PlanRecord) -> datetime:
    """The time at which all of the run's resources are removed: its deadline plus the longest wait for capacity.

    Raises ``LaunchError`` for a plan without a deadline, since nothing may run at AWS without limit.
    """
    if plan.deadline_s is None:
        raise LaunchError(f"{plan.run_id}: the plan has no deadline", hint="set compute.max_hours")
    created = datetime.fromisoformat(plan.created_at)
    return created + (capacity_timeout(plan) or timedelta()) + timedelta(seconds=plan.deadline_s) + _SLACK


def capacity_timeout(plan: PlanRecord) -> timedelta | None:
    """How long to wait for the first machine; None: as long as the run may last."""
    minutes = compute_of(plan, Ec2Compute).capacity_timeout_minutes
    return None if minutes is None else timedelta(minutes=minutes)


def requests(plan: PlanRecord, template: Template = PLANNED) -> dict[str, dict[str, Json]]:
    """Operation -> parameters, in sending order. The first operation creates the template with its key.

    Raises ``LaunchError`` if the plan lacks a fact that a machine needs.
    """
    if not plan.storage.startswith("s3://"):
        raise LaunchError(f"{plan.run_id}: storage: an instance needs a bucket, not {plan.storage}", hint="s3://bucket")
    compute, name = compute_of(plan, Ec2Compute), aws_name(plan.run_id)
    facts = Ec2Facts.of(plan, compute)
    tags = {"Name": name, **run_tags(plan, owner=facts.owner, expires_at=expires_at(plan))}
    key_tag = {KEY_TAG: template.key}
    return {
        "create_launch_template": {
            "LaunchTemplateName": name,
            "LaunchTemplateData": _machine(plan, compute, facts, tags, template.key),
            "TagSpecifications": [_tagged("launch-template", tags | key_tag)],
        },
        "create_auto_scaling_group": {
            "AutoScalingGroupName": name,
            **CLOSED,
            **_purchase(compute, facts, template.id),
            "VPCZoneIdentifier": ",".join(_subnets(facts)),
            "HealthCheckType": "EC2",
            "HealthCheckGracePeriod": 300,
            # It would start a second machine beside a healthy one when spot merely may interrupt the first.
            "CapacityRebalance": False,
            "Tags": [*_group_tags(tags, propagate=True), *_group_tags(key_tag, propagate=False)],
        },
        "put_scheduled_update_group_action": {
            "AutoScalingGroupName": name,
            "ScheduledActionName": name,
            "StartTime": expires_at(plan).isoformat(),
            **CLOSED,
        },
        "update_auto_scaling_group": {"AutoScalingGroupName": name, **OPEN},
    }


def _tagged(resource: str, tags: Mapping[str, str]) -> dict[str, Json]:
    return {"ResourceType": resource, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def _group_tags(tags: Mapping[str, str], *, propagate: bool) -> list[Json]:
    """``propagate``: whether the group's instances get the tags, too."""
    return [{"Key": key, "Value": value, "PropagateAtLaunch": propagate} for key, value in tags.items()]


# --- the machine ---------------------------------------------------------------------------------------------


def _machine(
    plan: PlanRecord, compute: Ec2Compute, facts: Ec2Facts, tags: Mapping[str, str], key: str
) -> dict[str, Json]:
    return {
        "ImageId": facts.ami,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "IamInstanceProfile": {"Name": facts.instance_profile},
        "SecurityGroupIds": [facts.security_group],
        # Two hops, because the trainer runs in a bridged container.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [
            {
                "DeviceName": facts.root_device,
                "Ebs": {
                    "VolumeType": "gp3",
                    "VolumeSize": compute.disk_gib,
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "UserData": b64encode(_script(plan, compute, facts, key)).decode(),
        "TagSpecifications": [_tagged(resource, tags) for resource in ("instance", "volume", "network-interface")],
        **_reserved(compute, facts),
    }


def _script(plan: PlanRecord, compute: Ec2Compute, facts: Ec2Facts, key: str) -> bytes:
    boot = Boot(
        run_id=plan.run_id,
        group=aws_name(plan.run_id),
        group_role=facts.group_role,
        key=key,
        region=compute.region,
        storage=plan.storage.rstrip("/"),
        image=facts.image,
        gpus=compute.gpu_count,
        on_demand_after=compute.on_demand_after if compute.purchase == SPOT_THEN_ON_DEMAND else 0,
    )
    script = user_data(boot, expires_at(plan)).encode()
    if len(script) > MAX_USER_DATA:
        raise LaunchError(f"{plan.run_id}: the boot script has {len(script)} bytes, and EC2 takes {MAX_USER_DATA}")
    return script


def _reserved(compute: Ec2Compute, facts: Ec2Facts) -> dict[str, Json]:
    """A reservation has one type, and a capacity block is a separate market."""
    if facts.reservation is None:
        return {}
    block: dict[str, Json] = {"InstanceMarketOptions": {"MarketType": "capacity-block"}}
    target: dict[str, Json] = {"CapacityReservationId": compute.capacity_reservation}
    return {
        "InstanceType": compute.instance_types[0],
        "CapacityReservationSpecification": {"CapacityReservationTarget": target},
        **(block if facts.reservation.kind == "capacity-block" else {}),
    }


# --- zones and purchase -----------------------------------------------------------------------------


def _subnets(facts: Ec2Facts) -> list[str]:
    """One subnet for each zone; a reservation has one zone."""
    if facts.reservation is None:
        return list(facts.subnets.values())
    zone = facts.reservation.zone
    if zone not in facts.subnets:
        raise LaunchError(
            f"compute.capacity_reservation: it is in {zone}, where the network has no subnet",
            hint="`mtl-cloud bootstrap` makes one in every zone",
        )
    return [facts.subnets[zone]]


def _purchase(compute: Ec2Compute, facts: Ec2Facts, template_id: str) -> dict[str, Json]:
    template: dict[str, Json] = {"LaunchTemplateId": template_id, "Version": "1"}
    if facts.reservation is not None:  # a mixed group cannot run in a capacity block
        return {"LaunchTemplate": template}
    on_demand = compute.purchase == "on_demand"
    return {
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": template,
                "Overrides": [{"InstanceType": name} for name in compute.instance_types],
            },
            "InstancesDistribution": {
                "OnDemandBaseCapacity": 0,
                "OnDemandPercentageAboveBaseCapacity": 100 if on_demand else 0,
                "OnDemandAllocationStrategy": "prioritized",
                "SpotAllocationStrategy": "price-capacity-optimized",
            },
        }
    }
