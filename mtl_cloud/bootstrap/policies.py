"""The policies of the stack as IAM will see them, and each statement's reason. The template is their only source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mtl_cloud.bootstrap.template import resolved, template

__all__ = ["POLICIES", "Policy", "policies"]

POLICIES: Final = {
    "user": ("UserLaunchPolicy", "UserPolicy"),
    "instance": ("RunPolicy", "InstancePolicy"),
    "sagemaker": ("RunPolicy", "SageMakerPolicy"),
}
"""Whose policies -> their resources in the template."""


@dataclass(frozen=True)
class Policy:
    """One managed policy."""

    name: str
    document: dict[str, Any]
    """Ready for IAM."""
    reasons: dict[str, str]
    """Sid of a statement -> why it is there."""


def policies(who: str, *, account: str, region: str, prefix: str = "mtl-cloud") -> list[Policy]:
    """The policies of one of ``POLICIES`` in an account's region, for a stack with that ``Prefix``."""
    names = {
        "AWS::AccountId": account,
        "AWS::Partition": _partition(region),
        "AWS::Region": region,
        "Prefix": prefix,
    }
    resources = template()["Resources"]
    names["Bucket"] = resolved(resources["Bucket"]["Properties"]["BucketName"], names)
    return [_policy(resources[resource], names) for resource in POLICIES[who]]


def _policy(resource: dict[str, Any], names: dict[str, str]) -> Policy:
    properties = resource["Properties"]
    return Policy(
        name=resolved(properties["ManagedPolicyName"], names),
        document=resolved(properties["PolicyDocument"], names),
        reasons=resource["Metadata"]["Reasons"],
    )


def _partition(region: str) -> str:
    partitions = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in partitions.items() if region.startswith(start)), "aws")
