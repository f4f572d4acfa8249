"""The requests of a run on EC2, as a pure function of its plan and of its launch template.

A launch template says what the machine is; an Auto Scaling group of one, made at size zero, says where and how it is
bought; a scheduled action sets the group to zero at the run's expiry; only then is the group opened. So no machine is
ever asked for whose end is not arranged.
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
"""From the run's own deadline, at which it saves and ends, to the walls that end it if it does not."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What the requests take from the run's launch template, and no plan knows."""

    id: str
    """The group is bound to it, and not to the name, which another template may have by then."""
    key: str = field(repr=False)
    """Of the group: 32 hex digits. Who has it, and the instances' role, may close the group."""


PLANNED: Final = Template(id="lt-made-by-submit", key="made-by-submit")
"""Stands for the template that is not made yet, in all that is shown and stored."""


@dataclass(frozen=True, kw_only=True)
class Ec2Facts:
    """What the requests need of the account, from ``facts.ec2`` of ``plan.json`` and the job's own fields."""

    ami: str
    root_device: str
    """The AMI's own name of its root disk: ``/dev/sda1``, ``/dev/xvda``, ..."""
    subnets: Mapping[str, str]
    """Zone -> subnet, of the zones that offer any of the job's types."""
    security_group: str
    instance_profile: str
    """Name of the profile."""
    group_role: str
    """ARN of the role with which a machine closes its own group."""
    image: str
    """Reference of the container image."""
    owner: str
    """Last part of the ARN of who planned."""
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
        f"{plan.run_id}: the plan lacks the fact ec2.{fact}: nobody looked at the account",
        hint="plan with credentials, in a region where `mtl-cloud bootstrap` has run",
    )


def _offering(offers: Iterable[Offer], subnets: Mapping[str, str]) -> Mapping[str, str]:
    """Zones that no offer of the plan names are left out; all stay where it names none."""
    zones = {offer.zone for offer in offers} & subnets.keys()
    return {zone: subnet for zone, subnet in subnets.items() if zone in zones} if zones else subnets


def expires_at(plan: PlanRecord) -> datetime:
    """When nothing of the run may be left: its deadline, after the time in which AWS may look for a machine.

    Raises ``LaunchError`` for a plan without a deadline: nothing may run at AWS for ever.
    """
    if plan.deadline_s is None:
        raise LaunchError(f"{plan.run_id}: the plan has no deadline", hint="set compute.max_hours")
    created = datetime.fromisoformat(plan.created_at)
    return created + (capacity_timeout(plan) or timedelta()) + timedelta(seconds=plan.deadline_s) + _SLACK


def capacity_timeout(plan: PlanRecord) -> timedelta | None:
    """How long AWS may look for the first machine; None for as long as the run may last."""
    minutes = compute_of(plan, Ec2Compute).capacity_timeout_minutes
    return None if minutes is None else timedelta(minutes=minutes)


def requests(plan: PlanRecord, template: Template = PLANNED) -> dict[str, dict[str, Json]]:
    """Operation -> its parameters, in the order in which they are sent. The first one makes the template, with its key.

    Raises ``LaunchError`` where the plan lacks what a machine needs.
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
            # It would start a second machine beside a healthy one, on the hint that spot may take the first.
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
    """``propagate``: the group's instances get them too."""
    return [{"Key": key, "Value": value, "PropagateAtLaunch": propagate} for key, value in tags.items()]


# --- what the machine is ---------------------------------------------------------------------------------------------


def _machine(
    plan: PlanRecord, compute: Ec2Compute, facts: Ec2Facts, tags: Mapping[str, str], key: str
) -> dict[str, Json]:
    return {
        "ImageId": facts.ami,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "IamInstanceProfile": {"Name": facts.instance_profile},
        "SecurityGroupIds": [facts.security_group],
        # Two hops: the trainer asks from inside of a bridged container.
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
    """A reservation is of one type, and a capacity block must be asked for as a market of its own."""
    if facts.reservation is None:
        return {}
    block: dict[str, Json] = {"InstanceMarketOptions": {"MarketType": "capacity-block"}}
    target: dict[str, Json] = {"CapacityReservationId": compute.capacity_reservation}
    return {
        "InstanceType": compute.instance_types[0],
        "CapacityReservationSpecification": {"CapacityReservationTarget": target},
        **(block if facts.reservation.kind == "capacity-block" else {}),
    }


# --- where it runs, and how it is bought -----------------------------------------------------------------------------


def _subnets(facts: Ec2Facts) -> list[str]:
    """One a zone; a reservation has one zone."""
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
