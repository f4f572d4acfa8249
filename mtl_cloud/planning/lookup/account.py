"""The account's resources for a run: the stack of ``mtl-cloud bootstrap``, images, a reservation."""

from __future__ import annotations

import re
from typing import Final

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.aws.stack import stack_outputs
from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import Ec2Compute, SageMakerCompute
from mtl_cloud.runs.plan_facts import Ec2Account, MachineImage, Reservation, SageMakerAccount

__all__ = ["AMI_PARAMETER", "look_up_account", "look_up_identity"]

AMI_PARAMETER: Final = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""The public SSM parameter that names AWS's newest deep learning base image: driver, docker, NVIDIA's container
toolkit. Machines without a GPU use it, too, for its docker."""

_ECR = re.compile(
    r"(?P<repository>\d{12}\.dkr\.ecr\.[\w-]+\.amazonaws\.com(\.cn)?/(?P<name>[^:@]+))(:(?P<tag>[^@]+))?(@(?P<digest>.+))?"
)


def look_up_identity(clients: ClientMaker) -> str:
    """The caller's ARN. Raises ``CloudError``."""
    with translated("sts"):
        return str(clients("sts").get_caller_identity()["Arn"])


def look_up_account(
    clients: ClientMaker, compute: Ec2Compute | SageMakerCompute, *, image_tag: str
) -> Ec2Account | SageMakerAccount:
    """The account's facts for the backend's requests.

    A job without an image uses the one with ``image_tag`` in the stack's repository.

    Raises ``LaunchError`` (``CloudError`` if AWS refuses): a launch needs all of them.
    """
    with translated("cloudformation"):
        stack = stack_outputs(clients("cloudformation"))
    image = _trainer_image(clients, compute.image or f"{stack.repository_uri}:{image_tag}")
    if isinstance(compute, SageMakerCompute):
        return SageMakerAccount(role=compute.role or stack.sagemaker_role_arn, image=image)
    return Ec2Account(
        ami=_machine_image(clients, compute.disk_gib),
        subnets=dict(stack.subnets),
        security_group=stack.security_group,
        instance_profile=stack.instance_profile,
        group_role=stack.group_role_arn,
        image=image,
        reservation=_reservation(clients, compute.capacity_reservation) if compute.capacity_reservation else None,
    )


def _trainer_image(clients: ClientMaker, reference: str) -> str:
    """The image, pinned by digest. Registries other than ECR are not queried."""
    found = _ECR.fullmatch(reference)
    if found is None:
        return reference
    exact = {"imageDigest": found["digest"]} if found["digest"] else {"imageTag": found["tag"] or "latest"}
    with translated("ecr", where="compute.image"):
        answer = clients("ecr").describe_images(repositoryName=found["name"], imageIds=[exact])
    return f"{found['repository']}@{answer['imageDetails'][0]['imageDigest']}"


def _machine_image(clients: ClientMaker, disk_gib: int) -> MachineImage:
    """The machine image, pinned by id, so that replacement machines boot the same one."""
    with translated("ssm", where=AMI_PARAMETER):
        ami = clients("ssm").get_parameter(Name=AMI_PARAMETER)["Parameter"]["Value"]
    with translated("ec2", where=ami):
        (image,) = clients("ec2").describe_images(ImageIds=[ami])["Images"]
    root = image["RootDeviceName"]
    disks = {disk["DeviceName"]: disk.get("Ebs", {}).get("VolumeSize", 0) for disk in image["BlockDeviceMappings"]}
    if disk_gib < disks.get(root, 0):
        raise LaunchError(
            f"compute.disk_gib: {disk_gib} GiB is less than the {disks[root]} GiB of the machine image {ami}",
            hint=f"write disk_gib: {disks[root]} or more",
        )
    return MachineImage(id=ami, name=image.get("Name", ""), root_device=root, parameter=AMI_PARAMETER)


def _reservation(clients: ClientMaker, reservation_id: str) -> Reservation:
    with translated("ec2", where="compute.capacity_reservation"):
        answer = clients("ec2").describe_capacity_reservations(CapacityReservationIds=[reservation_id])
    (found,) = answer["CapacityReservations"]
    if found["State"] != "active":
        raise LaunchError(
            f"compute.capacity_reservation: {reservation_id} is {found['State']}",
            hint="name an active one, or leave it out",
        )
    ends = found.get("EndDate")
    return Reservation(
        zone=found["AvailabilityZone"],
        kind=found.get("ReservationType", "default"),
        free=found["AvailableInstanceCount"],
        ends_at=ends.isoformat() if ends else None,
    )
