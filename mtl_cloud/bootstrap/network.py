"""The stack's network parameters: which zones, or which subnets of a VPC of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtl_cloud.errors import LaunchError
from mtl_cloud.names import ZONE_PARAMETERS, StackParameter

__all__ = ["network_parameters"]


def network_parameters(ec2: Any, had: Mapping[str, str], vpc: str | None) -> dict[str, str]:
    """The template's parameters that speak of the network; ``had`` are those that the stack has.

    Raises ``LaunchError`` for a VPC without a subnet, and lets botocore's errors through.
    """
    vpc = vpc or had.get(StackParameter.VPC)
    if vpc:
        return {StackParameter.VPC: vpc, StackParameter.VPC_SUBNETS: _subnets(ec2, vpc)}
    return dict(
        zip(ZONE_PARAMETERS, _places(_zones(ec2), [had.get(place, "") for place in ZONE_PARAMETERS]), strict=True)
    )


def _zones(ec2: Any) -> list[str]:
    """Real zones (no Local or Wavelength Zones) that are open to the account."""
    filters = [{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
    return sorted(zone["ZoneName"] for zone in ec2.describe_availability_zones(Filters=filters)["AvailabilityZones"])


def _places(zones: Iterable[str], had: list[str]) -> list[str]:
    """A zone keeps its place for good, even if AWS closes it: moving would replace subnets in use. New ones fill up."""
    new = iter([zone for zone in zones if zone not in had])
    return [place or next(new, "") for place in had]


def _subnets(ec2: Any, vpc: str) -> str:
    """``zone=subnet,…``: of each zone the subnet that gives public addresses, if one does, and has the most room."""
    found = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    if not found:
        raise LaunchError(f"{vpc}: this VPC has no subnet in this region", hint="name another --vpc, or make a subnet")
    ranked = sorted(found, key=lambda s: (s["MapPublicIpOnLaunch"], s["AvailableIpAddressCount"]))
    best = {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in ranked}
    return ",".join(f"{zone}={subnet}" for zone, subnet in sorted(best.items()))
