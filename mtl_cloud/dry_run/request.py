"""Validate the request of the job's launcher against AWS's model of the API. Nothing is sent.

Ids that only the account knows are replaced by placeholders of the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from mtl_cloud.errors import LaunchError, MissingExtraError, PlanError
from mtl_cloud.jobspec.job import Ec2Compute, JobSpec, SageMakerCompute
from mtl_cloud.json_types import Json
from mtl_cloud.launch import get_launcher
from mtl_cloud.names import REPOSITORY, role_name
from mtl_cloud.planning.facts import Facts, gather_facts
from mtl_cloud.planning.plan import plan_run
from mtl_cloud.runs.plan_facts import Ec2Account, MachineImage, Reservation, SageMakerAccount

__all__ = ["RequestCheck", "check_request"]

_SERVICES: Final = {"create_launch_template": "ec2", "create_training_job": "sagemaker"}
"""Operation -> service, in boto3's names; all others belong to Auto Scaling."""


@dataclass(frozen=True)
class RequestCheck:
    fits: bool | None
    """None: not checked."""
    words: str


def check_request(job: JobSpec, *, now: datetime) -> RequestCheck:
    """Whether botocore accepts the requests that the job's launcher makes."""
    if not isinstance(job.compute, Ec2Compute | SageMakerCompute):
        return RequestCheck(None, "no machine is rented")
    try:
        plan = plan_run(job, _with_account(gather_facts(job), job.compute), run_id=f"{job.name}-000000", now=now)
        requests = get_launcher(plan.backend).prepare(plan).request
        misfits = list(_misfits(requests))
    except (LaunchError, PlanError) as error:
        return RequestCheck(False, str(error))
    except MissingExtraError as error:
        return RequestCheck(None, str(error))
    return RequestCheck(not misfits, "; ".join(misfits) or f"AWS's model of the API accepts {', '.join(requests)}")


def _with_account(facts: Facts, compute: Ec2Compute | SageMakerCompute) -> Facts:
    """The facts, with an account as `mtl-cloud bootstrap` and `image push` would make it."""
    image = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/{REPOSITORY}@sha256:{64 * '0'}"
    roles = "arn:aws:iam::123456789012:role"
    if isinstance(compute, SageMakerCompute):
        role = f"{roles}/{role_name('sagemaker', compute.region)}"
        return replace(facts, sagemaker=SageMakerAccount(role=role, image=image))
    zone = f"{compute.region}a"
    account = Ec2Account(
        ami=MachineImage(id="ami-0123456789abcdef0", root_device="/dev/sda1"),
        subnets={zone: "subnet-0123456789abcdef0"},
        security_group="sg-0123456789abcdef0",
        instance_profile=role_name("instance", compute.region),
        group_role=f"{roles}/{role_name('group', compute.region)}",
        image=image,
        reservation=Reservation(zone=zone, kind="default"),
    )
    return replace(facts, ec2=account)


def _misfits(requests: Mapping[str, Json]) -> Iterator[str]:
    """Mistakes that botocore finds in the requests. Raises ``MissingExtraError`` without botocore."""
    try:
        from botocore.session import get_session
        from botocore.validate import ParamValidator
    except ImportError as error:
        raise MissingExtraError("aws", "checking the request") from error
    session = get_session()
    for method, parameters in requests.items():
        model = session.get_service_model(_SERVICES.get(method, "autoscaling"))
        operation = "".join(word.capitalize() for word in method.split("_"))
        report = ParamValidator().validate(parameters, model.operation_model(operation).input_shape)
        if report.has_errors():
            yield f"{operation}: {' '.join(report.generate_report().split())}"
