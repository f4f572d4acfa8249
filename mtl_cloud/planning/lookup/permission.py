"""Check whether the launch is permitted, by EC2's dry run of the whole request."""

from __future__ import annotations

import base64
from typing import Any

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.planning.lookup.checks import tried
from mtl_cloud.runs.plan_facts import Check, Ec2Account
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["check_permission"]


def check_permission(clients: ClientMaker, plan: PlanRecord) -> Check:
    """Ask EC2 to run the planned machine with ``DryRun``: permissions and parameters are checked, capacity is not."""
    template, account = plan.requests.get("create_launch_template"), plan.parsed_facts.ec2
    if account is None or not isinstance(template, dict):
        return Check("permission", "unknown", f"the requests of {plan.backend} have no dry run")
    return tried("permission", lambda: _dry_run(clients, _request(plan, account, template)))


def _dry_run(clients: ClientMaker, request: dict[str, Any]) -> str:
    try:
        with translated("ec2", where="compute"):
            clients("ec2", retries="none").run_instances(**request, DryRun=True)
    except CloudError as error:
        if error.code == "DryRunOperation":
            return f"ec2:RunInstances of {request['InstanceType']} would be allowed"
        raise
    raise LaunchError("ec2 RunInstances: the dry run was answered as a real request", hint="check AWS_ENDPOINT_URL")


def _request(plan: PlanRecord, account: Ec2Account, template: dict[str, Any]) -> dict[str, Any]:
    """The template as parameters of RunInstances, where boto3 encodes the user data itself."""
    machine, offers = template["LaunchTemplateData"], plan.parsed_facts.offers
    offered = [account.subnets[offer.zone] for offer in offers if offer.zone and offer.zone in account.subnets]
    return {
        "InstanceType": offers[0].machine,
        **machine,
        "UserData": base64.b64decode(machine["UserData"]).decode(),
        "SubnetId": (offered or list(account.subnets.values()))[0],
        "MinCount": 1,
        "MaxCount": 1,
    }
