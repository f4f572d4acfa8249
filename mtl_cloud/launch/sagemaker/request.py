"""The ``CreateTrainingJob`` request of a run on SageMaker, as a pure function of its plan.

It contains no secrets (the container resolves references itself), no checkpoint paths of ours (the run record has
manifests; SageMaker's copying has none), and no hyperparameters except the URL of each channel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Self

from mtl_cloud import catalog
from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import SageMakerCompute
from mtl_cloud.json_types import Json
from mtl_cloud.launch.sagemaker.metrics import metric_definitions
from mtl_cloud.launch.tags import run_tags
from mtl_cloud.names import SAGEMAKER_ROOT, SAGEMAKER_SCRATCH, SUPERVISOR_MODULE, SupervisorFlag, aws_name
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.paths import RunPaths
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions

__all__ = ["SageMakerFacts", "job_name", "request"]

GRACE_S = 105
"""The trainer's share of the 120 s between SageMaker's SIGTERM and SIGKILL; the rest is for log and exit record."""
_MAX_RUNTIME = timedelta(days=28)
_SLACK = timedelta(minutes=30)
"""Time between the run's deadline, at which it saves and stops, and SageMaker's limit."""
_MOST_RETRIES = 30
_NAME_LENGTH = 63
_NAME = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9])*")  # TrainingJobName in the API model
_NUMBERED = re.compile(r".*--\d+")
_ARGUMENT_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class SageMakerFacts:
    """Role, image and owner of the training job: the job's own fields, or else ``facts.sagemaker`` of ``plan.json``."""

    role: str
    image: str
    owner: str

    @classmethod
    def of(cls, plan: PlanRecord, compute: SageMakerCompute) -> Self:
        """Raises ``LaunchError`` naming the first missing fact."""
        facts = plan.parsed_facts
        role = compute.role or (facts.sagemaker and facts.sagemaker.role)
        image = plan.image or (facts.sagemaker and facts.sagemaker.image)
        if not role:
            raise _unknown(plan, "role")
        if not image:
            raise _unknown(plan, "image")
        return cls(role=role, image=image, owner=facts.owner)


def _unknown(plan: PlanRecord, field: str) -> LaunchError:
    return LaunchError(
        f"{plan.run_id}: compute.{field} is not given, and the plan was made without querying the account",
        hint=f"set compute.{field}, or plan with credentials where `mtl-cloud bootstrap` has run",
    )


def job_name(run_id: str, number: int = 1) -> str:
    """The name of the run's training job ``number`` (1, 2, ...). SageMaker never reuses names.

    The digest replaces a run id that SageMaker does not accept, or that looks like another run's second job.
    """
    suffix = "" if number == 1 else f"--{number}"
    name = aws_name(run_id)
    if _NAME.fullmatch(name) and not _NUMBERED.fullmatch(name) and len(name) + 5 <= _NAME_LENGTH:
        return name + suffix
    digest = sha256(run_id.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name)[: _NAME_LENGTH - len(digest) - 6].strip("-")
    return f"{plain}-{digest}{suffix}"


def request(plan: PlanRecord) -> dict[str, Json]:
    """Parameters of ``CreateTrainingJob`` for the run's first job.

    Raises ``LaunchError`` where the plan lacks what SageMaker needs.
    """
    compute = compute_of(plan, SageMakerCompute)
    facts, channels = SageMakerFacts.of(plan, compute), _channels(plan, compute)
    return {
        "TrainingJobName": job_name(plan.run_id),
        "RoleArn": facts.role,
        "AlgorithmSpecification": {
            "TrainingImage": facts.image,
            "TrainingInputMode": "File" if compute.input_mode == "file" else "FastFile",
            "ContainerEntrypoint": ["python", "-m", SUPERVISOR_MODULE],
            "ContainerArguments": _arguments(plan),
            "MetricDefinitions": metric_definitions(),
        },
        "ResourceConfig": _resources(compute),
        "StoppingCondition": _stopping(plan, compute),
        "OutputDataConfig": _output(plan, compute),
        "EnableManagedSpotTraining": compute.purchase == "spot",
        "EnableInterContainerTrafficEncryption": False,  # it may halve the bandwidth; a VPC isolates the traffic
        "Environment": dict(plan.env),
        "Tags": _tags(plan, compute, facts),
        **({"HyperParameters": {**channels}} if channels else {}),
        **({"InputDataConfig": [_channel(name, url, compute) for name, url in channels.items()]} if channels else {}),
        **_vpc(compute),
        **_retries(compute),
        **_declared_checkpoints(plan, compute),
    }


# --- the container ---------------------------------------------------------------------------------------------------


def _arguments(plan: PlanRecord) -> list[Json]:
    arguments = [SupervisorFlag.STORAGE, plan.storage, SupervisorFlag.RUN_ID, plan.run_id]
    arguments += [SupervisorFlag.SAGEMAKER, SAGEMAKER_ROOT, SupervisorFlag.SCRATCH, SAGEMAKER_SCRATCH]
    arguments += [SupervisorFlag.ECHO, *SupervisorOptions(grace_s=GRACE_S).to_flags()]
    for argument in arguments:
        if len(argument) > _ARGUMENT_LENGTH:
            message = f"{plan.run_id}: SageMaker takes arguments of {_ARGUMENT_LENGTH} characters: {argument[:80]}…"
            raise LaunchError(message, hint="use a shorter storage URL")
    return list(arguments)


def _channels(plan: PlanRecord, compute: SageMakerCompute) -> dict[str, str]:
    """Channel -> URL of the inputs that SageMaker provides. Folders end in a slash: a bare prefix matches more."""
    if compute.input_mode == "s3":
        return {}
    urls = [url for url in plan.inputs if url.startswith("s3://")]
    return {f"input-{number}": url for number, url in enumerate(urls, 1)}


def _channel(name: str, url: str, compute: SageMakerCompute) -> Json:
    is_file = "." in url.rpartition("/")[2]
    return {
        "ChannelName": name,
        "InputMode": "File" if compute.input_mode == "file" else "FastFile",
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": url if is_file else f"{url.rstrip('/')}/",
                "S3DataDistributionType": "FullyReplicated",
            }
        },
    }


# --- the machines ----------------------------------------------------------------------------------------------------


def _resources(compute: SageMakerCompute) -> dict[str, Json]:
    types = compute.instance_types
    preferences: list[Json] = [{"InstanceType": name} for name in types]
    chosen: dict[str, Json] = {"InstanceType": types[0]} if len(types) == 1 else {"InstancePreferences": preferences}
    warm: dict[str, Json] = {"KeepAlivePeriodInSeconds": 60 * compute.keep_alive_minutes}
    return {
        **chosen,
        "InstanceCount": compute.instance_count,
        "VolumeSizeInGB": min([compute.disk_gib, *_own_disks_gb(types)]),
        **({"VolumeKmsKeyId": compute.kms_key} if compute.kms_key and not any(_own_disks_gb(types)) else {}),
        **(warm if compute.keep_alive_minutes else {}),
    }


def _own_disks_gb(types: tuple[str, ...]) -> list[int]:
    """Size of the local NVMe disks of each type that has them.

    They encrypt by themselves; SageMaker refuses a key (API model, ``VolumeKmsKeyId``) or additional volumes for them.
    """
    machines = map(catalog.instance_type, types)
    return [machine.nvme_count * machine.nvme_gb for machine in machines if machine.nvme_count]


def _stopping(plan: PlanRecord, compute: SageMakerCompute) -> dict[str, Json]:
    runtime = _runtime(plan)
    wait = runtime + timedelta(hours=compute.max_wait_hours)
    accelerated = any(catalog.instance_type(name).gpu_count for name in compute.instance_types)
    spot: dict[str, Json] = {"MaxWaitTimeInSeconds": round(wait.total_seconds())}
    pending: dict[str, Json] = {"MaxPendingTimeInSeconds": round(3600 * compute.max_pending_hours)}
    return {
        "MaxRuntimeInSeconds": round(runtime.total_seconds()),
        **(spot if compute.purchase == "spot" else {}),
        **(pending if accelerated else {}),  # it applies to accelerated types only
    }


def _runtime(plan: PlanRecord) -> timedelta:
    if plan.deadline_s is None:
        raise LaunchError(f"{plan.run_id}: the plan has no deadline", hint="set compute.max_hours")
    return min(timedelta(seconds=plan.deadline_s) + _SLACK, _MAX_RUNTIME)


def _retries(compute: SageMakerCompute) -> dict[str, Json]:
    """Retries for SageMaker's internal failures; the supervisor handles those of the run."""
    attempts = min(compute.max_restarts, _MOST_RETRIES)
    return {"RetryStrategy": {"MaximumRetryAttempts": attempts}} if attempts else {}


def _vpc(compute: SageMakerCompute) -> dict[str, Json]:
    if not compute.subnets:
        return {}
    return {"VpcConfig": {"Subnets": list(compute.subnets), "SecurityGroupIds": list(compute.security_groups)}}


# --- places and tags -------------------------------------------------------------------------------------------------


def _output(plan: PlanRecord, compute: SageMakerCompute) -> dict[str, Json]:
    key: dict[str, Json] = {"KmsKeyId": compute.kms_key} if compute.kms_key else {}
    return {"S3OutputPath": _backend_url(plan), "CompressionType": "NONE", **key}


def _declared_checkpoints(plan: PlanRecord, compute: SageMakerCompute) -> dict[str, Json]:
    """An empty folder: SageMaker limits the wait for spot capacity to an hour for jobs without checkpoints
    ("Managed Spot Training", SageMaker developer guide)."""
    return {"CheckpointConfig": {"S3Uri": f"{_backend_url(plan)}checkpoints/"}} if compute.purchase == "spot" else {}


def _backend_url(plan: PlanRecord) -> str:
    return f"{plan.storage.rstrip('/')}/{RunPaths(plan.run_id).backend}"


def _tags(plan: PlanRecord, compute: SageMakerCompute, facts: SageMakerFacts) -> list[Json]:
    waiting = timedelta(hours=compute.max_wait_hours if compute.purchase == "spot" else compute.max_pending_hours)
    expires_at = datetime.fromisoformat(plan.created_at) + _runtime(plan) + waiting
    tags = run_tags(plan, owner=facts.owner, expires_at=expires_at)
    return list(_pairs(tags))


def _pairs(tags: dict[str, str]) -> Iterator[dict[str, Any]]:
    for key, value in tags.items():
        yield {"Key": key, "Value": value}
