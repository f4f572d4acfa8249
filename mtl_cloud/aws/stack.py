"""The stack that ``mtl-cloud bootstrap`` made in a region, as its CloudFormation outputs describe it.

The stack's template (``infra/mtl-cloud.yaml``) is the only source: its outputs are read here, its policies by
``mtl_cloud.bootstrap.policies``, and ``mtl_cloud.bootstrap.deploy`` deploys it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtl_cloud.errors import LaunchError
from mtl_cloud.names import STACK, SUBNET_OUTPUT_PREFIX, StackOutput

__all__ = ["Bootstrap", "find_stack", "stack_outputs"]

_READY = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE"}
"""States of a stack with valid outputs (after a rolled back update, those from before it)."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The stack's outputs."""

    region: str
    account: str
    subnets: Mapping[str, str]
    """Zone → id of the subnet in it. The subnet decides whether instances get a public address."""
    security_group: str
    """Id of the security group, which has no inbound rule."""
    instance_profile: str
    """Name of the instance profile."""
    instance_role_arn: str
    group_role_arn: str
    """ARN of the role that instances assume to close the group whose key they have."""
    sagemaker_role_arn: str
    user_policy_arns: tuple[str, ...]
    """Policies for users who submit; attach both."""
    bucket: str
    storage: str
    """``s3://<bucket>/<prefix>``: the location for run records and datasets."""
    repository_uri: str
    """``<account>.dkr.ecr.<region>.amazonaws.com/mtl-cloud``."""
    log_group: str


def stack_outputs(client: Any) -> Bootstrap:
    """The outputs of the region's stack, through a CloudFormation client of that region.

    Raises ``LaunchError`` if there is no stack, or it is incomplete or outdated.
    """
    stack = find_stack(client)
    region = client.meta.region_name
    hint = f"mtl-cloud bootstrap --region {region}"
    if stack is None:
        raise LaunchError(f"{region}: mtl-cloud has no stack in this region", hint=hint)
    if stack["StackStatus"] not in _READY:
        raise LaunchError(f"{region}: the stack {STACK!r} is {stack['StackStatus']}", hint=hint)
    try:
        return _bootstrap({output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}, stack["StackId"])
    except KeyError as error:
        raise LaunchError(
            f"{region}: the stack {STACK!r} is of an older mtl-cloud: it has no {error.args[0]}", hint=hint
        ) from error


def find_stack(client: Any) -> dict[str, Any] | None:
    """CloudFormation's description of the stack; None if it does not exist."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = client.describe_stacks(StackName=STACK)["Stacks"][0]
    except ClientError as error:
        # CloudFormation has no specific code for this.
        if error.response["Error"]["Code"] == "ValidationError" and "does not exist" in str(error):
            return None
        raise
    return found


def _bootstrap(outputs: Mapping[str, str], stack_id: str) -> Bootstrap:
    region, account = stack_id.split(":")[3:5]
    zones = ",".join(value for name, value in sorted(outputs.items()) if name.startswith(SUBNET_OUTPUT_PREFIX))
    return Bootstrap(
        region=region,
        account=account,
        subnets=dict(zone.split("=") for zone in zones.split(",")),
        security_group=outputs[StackOutput.SECURITY_GROUP],
        instance_profile=outputs[StackOutput.INSTANCE_PROFILE],
        instance_role_arn=outputs[StackOutput.INSTANCE_ROLE_ARN],
        group_role_arn=outputs[StackOutput.GROUP_ROLE_ARN],
        sagemaker_role_arn=outputs[StackOutput.SAGEMAKER_ROLE_ARN],
        user_policy_arns=tuple(outputs[StackOutput.USER_POLICY_ARNS].split(",")),
        bucket=outputs[StackOutput.BUCKET],
        storage=outputs[StackOutput.STORAGE],
        repository_uri=outputs[StackOutput.REPOSITORY_URI],
        log_group=outputs[StackOutput.LOG_GROUP],
    )
