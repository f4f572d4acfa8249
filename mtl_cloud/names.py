"""Names that two programs must agree on. Each is defined here, once.

The launchers, the boot script of an instance, the supervisor, the trainer and the AWS stack run on different machines
and find each other by names. Python imports them from here. ``mtl_cloud.launch.ec2.user_data`` renders them into the
boot script. ``infra/mtl-cloud.yaml`` repeats them, because people deploy it by hand too, and
``tests/bootstrap/test_names.py`` compares it with this module. Keys of the run record are in ``mtl_cloud.runs.paths``.

Changing a name cuts off what exists under the old one: containers, groups, stacks, secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final, Literal, TypeAlias

from mtl_cloud.errors import RunFailedError
from mtl_cloud.tasks import Task

PRODUCT: Final = "mtl-cloud"

# --- a run: its container and its resources at AWS -------------------------------------------------------------------


def container_name(run_id: str) -> str:
    """Name of a run's container, on this machine and on an instance."""
    return f"{PRODUCT}-{run_id}"


def aws_name(run_id: str) -> str:
    """Name of a run's launch template, Auto Scaling group and scheduled action, and of its first SageMaker job.

    The policies allow groups whose name begins with the prefix.
    """
    return f"{PRODUCT}-{run_id}"


RUN_LABEL: Final = "mtl-cloud.run-id"
"""Label of a container on this machine: its run."""
STORAGE_LABEL: Final = "mtl-cloud.storage"
"""Label of a container on this machine: URL of the storage that holds the run record."""

RUN_TAG: Final = "mtl-cloud:run"
"""The run's id. The policies allow changes only to resources that have this tag."""
OWNER_TAG: Final = "mtl-cloud:owner"
EXPIRES_TAG: Final = "mtl-cloud:expires-at"
"""ISO 8601 in UTC. After this time nothing of the run may exist; ``gc`` removes what does."""
SPEC_TAG: Final = "mtl-cloud:spec"
"""First 16 hex digits of the resolved job's SHA-256."""
STORAGE_TAG: Final = "mtl-cloud:storage"
"""URL of the storage that holds the run record, so that ``gc`` needs nothing but AWS to start with."""
PURCHASE_TAG: Final = "mtl-cloud:purchase"
"""Set to ``SPOT_THEN_ON_DEMAND`` on groups whose instances may make the group buy on demand."""
SPOT_THEN_ON_DEMAND: Final = "spot_then_on_demand"
KEY_TAG: Final = "mtl-cloud-key"
"""The group's key, on a group and its launch template and on nothing that an instance can describe: a session of the
group role with the same key may close the group. It has no colon, because policies use it within ``${...}``."""
KEY_BYTES: Final = 16
"""Length of the key, which is written in hex digits. The role's trust policy requires as many digits."""

# --- the AWS stack of a region: infra/mtl-cloud.yaml -----------------------------------------------------------------

STACK: Final = PRODUCT
REPOSITORY: Final = PRODUCT
"""The image's name on this machine, and its ECR repository."""
LOG_GROUP: Final = "/mtl-cloud"
STORAGE_PREFIX: Final = PRODUCT
"""Default prefix in the bucket. Runs can reach nothing outside of it."""
PARAMETER_PREFIX: Final = "/mtl-cloud/"
"""Runs may read the SSM parameters below it."""
SECRET_PREFIX: Final = "mtl-cloud/"  # noqa: S105  # a name, and no secret
"""Runs may read the Secrets Manager secrets below it."""

Role: TypeAlias = Literal["instance", "group", "sagemaker"]
Policy: TypeAlias = Literal["run", "instance", "group", "sagemaker", "user-launch", "user"]


def role_name(role: Role, region: str) -> str:
    """Name of an IAM role. IAM is global, so the name holds the region. The instance profile is named as its role."""
    return f"{PRODUCT}-{role}-{region}"


def policy_name(policy: Policy, region: str) -> str:
    """Name of a managed policy."""
    return f"{PRODUCT}-{policy}-{region}"


def bucket_name(account: str, region: str) -> str:
    """Bucket names are global across accounts, so the name holds account and region."""
    return f"{PRODUCT}-{account}-{region}"


class StackParameter(StrEnum):
    """Parameters of the template, beside ``ZONE_PARAMETERS``."""

    PREFIX = "Prefix"
    VPC = "VpcId"
    VPC_SUBNETS = "VpcSubnets"


ZONE_PARAMETERS: Final = tuple(f"Zone{number}" for number in range(1, 7))


class StackOutput(StrEnum):
    """Outputs of the template, beside those of its subnets."""

    SECURITY_GROUP = "SecurityGroup"
    INSTANCE_PROFILE = "InstanceProfile"
    INSTANCE_ROLE_ARN = "InstanceRoleArn"
    GROUP_ROLE_ARN = "GroupRoleArn"
    SAGEMAKER_ROLE_ARN = "SageMakerRoleArn"
    USER_POLICY_ARNS = "UserPolicyArns"
    BUCKET = "Bucket"
    STORAGE = "Storage"
    REPOSITORY_URI = "RepositoryUri"
    LOG_GROUP = "LogGroup"


SUBNET_OUTPUT_PREFIX: Final = "Subnet"
"""``Subnet1`` to ``Subnet6`` hold one ``zone=subnet`` each; ``Subnets`` holds all of them in a VPC of your own."""

# --- names of AWS that the policies and the code must both use -------------------------------------------------------

SAGEMAKER_LOG_GROUP: Final = "/aws/sagemaker/TrainingJobs"
"""Log group of all training jobs, and the namespace of their metrics."""
SSH_DOCUMENT: Final = "AWS-StartSSHSession"
"""Session Manager's document for a tunnel that carries ssh."""
SERVICE_ROLE_OWNERS: Final = ("autoscaling.amazonaws.com", "spot.amazonaws.com")
"""Services whose service-linked roles ``bootstrap`` creates."""

# --- launcher or boot script → supervisor ----------------------------------------------------------------------------

SUPERVISOR_MODULE: Final = "mtl_cloud.supervise"


class SupervisorFlag:
    """Flags of the supervisor, beside those of ``SupervisorOptions``."""

    STORAGE: Final = "--storage"
    RUN_ID: Final = "--run-id"
    ATTEMPT: Final = "--attempt"
    SCRATCH: Final = "--scratch"
    SPOT_NOTICES: Final = "--spot-notices"
    SAGEMAKER: Final = "--sagemaker"
    ECHO: Final = "--echo"


class SupervisorExit(IntEnum):
    """Exit codes of the supervisor, which the boot script reads. Any other code is one of ``mtl_cloud.errors``."""

    DONE = 0
    ENDED = RunFailedError.exit_code
    """The run has ended without success."""
    TAKEN = 73
    """Another process has claimed the attempt (``EX_CANTCREAT`` of sysexits.h)."""
    CONTINUES = 75
    """Another attempt will continue the run (``EX_TEMPFAIL``)."""


class BootPhase(StrEnum):
    """Progress of the boot script, as its record tells it."""

    BOOTING = "booting"
    PULLING = "pulling"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


SAGEMAKER_ROOT: Final = "/opt/ml"
"""Folder in which SageMaker describes a job to its container ("Using your own training container", developer guide)."""
SAGEMAKER_SCRATCH: Final = "/tmp/mtl-cloud"  # noqa: S108  # one job in one container

# --- supervisor → trainer --------------------------------------------------------------------------------------------

ENV_PREFIX: Final = "MTL_CLOUD_"
"""A job may set no variable that begins so."""
ENV_STORAGE: Final = "MTL_CLOUD_STORAGE"
"""URL of the storage. In a user's own shell: where the commands look for runs."""
ENV_RUN_ID: Final = "MTL_CLOUD_RUN_ID"
ENV_ATTEMPT: Final = "MTL_CLOUD_ATTEMPT"
ENV_SCRATCH: Final = "MTL_CLOUD_SCRATCH"
ENV_HANG_S: Final = "MTL_CLOUD_HANG_S"
"""Seconds without progress after which each trainer process writes its stack traces and is killed."""
ENV_INPUTS: Final = "MTL_CLOUD_INPUTS"
"""JSON object that maps URLs of the job to local paths. Absent: nothing was downloaded ahead."""


class TrainerExit(IntEnum):
    """Exit codes of ``python -m mtl_cloud.train``. Any other code is one of ``mtl_cloud.errors``."""

    DONE = 0
    """All rounds are done and committed."""
    STOPPED = 75
    """Stopped on request, with a checkpoint committed (``EX_TEMPFAIL`` of sysexits.h)."""


# --- trainer's log → SageMaker's metrics -----------------------------------------------------------------------------

_NUMBER = "([-+0-9.e]+)"


def metrics_line(round_number: int, task: str, values: Mapping[str, float]) -> str:
    """The line that the trainer logs for each task after a round."""
    words = " ".join(f"{name}={value:.4g}" for name, value in values.items())
    return f"metrics round={round_number} task={task} {words}"


def metric_regex(task: str, metric: str) -> str:
    """Finds one value in a ``metrics_line`` of the task, as its only group."""
    return f"metrics round=[0-9]+ task={task} .*?{metric}={_NUMBER}"


def epoch_line(epoch: int, epochs: int, losses: Mapping[Task, float], *, images_per_s: float, data_wait: float) -> str:
    """The line that the trainer logs after an epoch. ``data_wait`` is a share, 0..1."""
    words = "  ".join(f"{task} {loss:.4g}" for task, loss in losses.items())
    speed = f"{images_per_s:.1f} images/s, waiting for data {100 * data_wait:.0f} %"
    return f"epoch {epoch}/{epochs}  loss {words}  | {speed}"


def loss_regex(task: str) -> str:
    """Finds a task's loss in an ``epoch_line``, as its only group."""
    return f"epoch [0-9]+/[0-9]+  loss .*?{task} {_NUMBER}"


SPEED_REGEX: Final = rf"\| {_NUMBER} images/s"
"""Finds the images per second in an ``epoch_line``, as its only group."""
