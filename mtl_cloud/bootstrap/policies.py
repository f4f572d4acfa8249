"""The policies of the stack as IAM will see them, and each statement's reason. The template is their only source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mtl_cloud.bootstrap.template import resolved, template
from mtl_cloud.names import STORAGE_PREFIX, StackParameter

__all__ = ["POLICIES", "ROLES", "Policy", "policies", "trust_policy"]

POLICIES: Final = {
    "user": ("UserLaunchPolicy", "UserPolicy"),
    "instance": ("RunPolicy", "InstancePolicy"),
    "group": ("GroupPolicy",),
    "sagemaker": ("RunPolicy", "SageMakerPolicy"),
}
"""Principal -> the template's resources of its policies."""
ROLES: Final = {"instance": "InstanceRole", "group": "GroupRole", "sagemaker": "SageMakerRole"}
"""Principal that is a role -> its resource in the template."""


@dataclass(frozen=True)
class Policy:
    """One managed policy, or the trust policy of a role."""

    name: str
    """Name of the managed policy, or of the role."""
    document: dict[str, Any]
    """Ready for IAM."""
    reasons: dict[str, str]
    """Sid of a statement -> why it is there."""


def policies(who: str, *, account: str, region: str, prefix: str = STORAGE_PREFIX) -> list[Policy]:
    """The policies of one of ``POLICIES`` in an account's region, for a stack with that ``Prefix``."""
    names = _names(account, region, prefix)
    return [_policy(resource, "ManagedPolicyName", "PolicyDocument", names) for resource in POLICIES[who]]


def trust_policy(who: str, *, account: str, region: str) -> Policy:
    """The trust policy of one of ``ROLES``: who may assume it."""
    return _policy(ROLES[who], "RoleName", "AssumeRolePolicyDocument", _names(account, region))


def _policy(resource: str, name: str, document: str, names: dict[str, str]) -> Policy:
    found = template()["Resources"][resource]
    properties = found["Properties"]
    return Policy(
        name=resolved(properties[name], names),
        document=resolved(properties[document], names),
        reasons=found["Metadata"]["Reasons"],
    )


def _names(account: str, region: str, prefix: str = "") -> dict[str, str]:
    """Values of the references in the policies."""
    names = {
        "AWS::AccountId": account,
        "AWS::Partition": _partition(region),
        "AWS::Region": region,
        StackParameter.PREFIX: prefix,
    }
    return {**names, "Bucket": resolved(template()["Resources"]["Bucket"]["Properties"]["BucketName"], names)}


def _partition(region: str) -> str:
    partitions = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in partitions.items() if region.startswith(start)), "aws")
