"""Whether the launch would be allowed: EC2's dry run of the whole request."""

from __future__ import annotations

import base64
from typing import Any, cast

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.planning.facts import Check
from mtl_cloud.planning.lookup.checks import tried
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["check_permission"]


def check_permission(clients: ClientMaker, plan: PlanRecord) -> Check:
    """Ask EC2 to run the planned machine with ``DryRun``: permissions and parameters are checked, capacity is not."""
    template = plan.requests.get("create_launch_template")
    if not isinstance(template, dict):
        return Check("permission", "unknown", f"the requests of {plan.backend} have no dry run")
    return tried("permission", lambda: _dry_run(clients, plan, template))


def _dry_run(clients: ClientMaker, plan: PlanRecord, template: dict[str, Any]) -> str:
    request = _request(plan, template["LaunchTemplateData"])
    try:
        with translated("ec2", where="compute"):
            clients("ec2", retries="none").run_instances(**request, DryRun=True)
    except CloudError as error:
        if error.code == "DryRunOperation":
            return f"ec2:RunInstances of {request['InstanceType']} would be allowed"
        raise
    raise LaunchError("ec2 RunInstances: a dry run was answered as if it were none", hint="check AWS_ENDPOINT_URL")


def _request(plan: PlanRecord, machine: dict[str, Any]) -> dict[str, Any]:
    """The template as RunInstances takes it: boto3 encodes its user data by itself."""
    account = cast("dict[str, Any]", plan.facts[plan.backend])
    offers = cast("list[dict[str, Any]]", plan.facts["offers"])
    zones = [offer["zone"] for offer in offers if offer["zone"] in account["subnets"]] or list(account["subnets"])
    return {
        "InstanceType": offers[0]["machine"],
        **machine,
        "UserData": base64.b64decode(machine["UserData"]).decode(),
        "SubnetId": account["subnets"][zones[0]],
        "MinCount": 1,
        "MaxCount": 1,
    }
