"""Every error that AWS can give a run has a class; what no table knows stays as it is, and is never "no capacity"."""

from __future__ import annotations

from collections.abc import Iterator

import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.aws import CODES, ErrorClass, diagnose, read_reason

# What Karpenter's errors.go, ParallelCluster's EC2_ICE_ERROR_CODES, meadowrun, dstack and EC2's reference know.
EC2 = {
    ErrorClass.CAPACITY: "InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity "
    "InsufficientCapacityOnHost ReservationCapacityExceeded UnfulfillableCapacity SpotMaxPriceTooLow "
    "LimitedInstanceCapacity Server.InsufficientInstanceCapacity Server.SpotInstanceTermination "
    "Server.SpotInstanceShutdown",
    ErrorClass.NOT_OFFERED: "Unsupported InvalidAvailabilityZone",
    ErrorClass.QUOTA: "VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded MaxFleetCountExceeded "
    "AddressLimitExceeded VolumeLimitExceeded InsufficientVolumeCapacity Client.VolumeLimitExceeded",
    ErrorClass.SUBNET: "InsufficientFreeAddressesInSubnet",
    ErrorClass.THROTTLE: "RequestLimitExceeded Throttling ThrottlingException TooManyRequestsException",
    ErrorClass.SERVER: "InternalError ServerInternal ServiceUnavailable Unavailable Server.InternalError",
    ErrorClass.CREDENTIALS: "ExpiredToken RequestExpired InvalidClientTokenId AuthFailure UnrecognizedClientException",
    ErrorClass.PERMISSION: "UnauthorizedOperation AccessDenied AuthFailure.ServiceLinkedRoleCreationNotPermitted "
    "OptInRequired Client.InternalError",
    ErrorClass.PERMANENT: "InvalidAMIID.NotFound InvalidAMIID.Malformed InvalidParameterValue "
    "InvalidParameterCombination InvalidSubnetID.NotFound InvalidGroup.NotFound InvalidKeyPair.NotFound "
    "InvalidUserData.Malformed InvalidCapacityReservationId.NotFound IdempotentParameterMismatch "
    "Client.InstanceInitiatedShutdown Client.UserInitiatedShutdown Client.InvalidSnapshot.NotFound",
}
SAGEMAKER = {"ResourceLimitExceeded": "quota", "CapacityError": "capacity", "ClientError": "permanent"}
USED = {
    "autoscaling": None,
    "sagemaker": ("CreateTrainingJob", "StopTrainingJob", "DescribeTrainingJob"),
    "ssm": ("GetParameter",),
    "ecr": ("DescribeImages", "GetAuthorizationToken"),
    "service-quotas": ("GetServiceQuota", "GetAWSDefaultServiceQuota", "ListServiceQuotas"),
    "pricing": ("GetProducts",),
    "secretsmanager": ("GetSecretValue",),
    "cloudformation": ("CreateChangeSet", "ExecuteChangeSet", "DescribeStacks", "DeleteStack"),
    "ec2-instance-connect": ("SendSSHPublicKey",),
}
OURS = [(code, error_class) for error_class, codes in EC2.items() for code in codes.split()]


def declared() -> Iterator[str]:
    """The errors that the API models of botocore declare for the operations that runs need (EC2's declares none)."""
    for service, operations in USED.items():
        model = botocore.session.get_session().get_service_model(service)
        for operation in operations or model.operation_names:
            for shape in model.operation_model(operation).error_shapes:
                yield shape.metadata.get("error", {}).get("code", shape.name)


@pytest.mark.parametrize(("code", "error_class"), OURS)
def test_each_code_of_the_reference_has_its_class(code: str, error_class: ErrorClass) -> None:
    found = diagnose(code)
    assert (found.code, found.error_class) == (code, error_class)
    assert found.cause
    assert found.action


def test_each_error_that_a_used_operation_declares_is_known() -> None:
    assert [code for code in sorted(set(declared())) if diagnose(code).error_class is ErrorClass.UNKNOWN] == []


@pytest.mark.parametrize(("code", "error_class"), SAGEMAKER.items())
def test_sagemaker_s_own_words_have_their_class(code: str, error_class: str) -> None:
    assert diagnose(code).error_class == error_class


# As users quote them in public threads.
ACTIVITIES = {
    "We currently do not have sufficient p4d.24xlarge capacity in the Availability Zone you requested (us-east-1c). "
    "Our system will be working on provisioning additional capacity. Launching EC2 instance failed.": "capacity",
    "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient "
    "t3.xlarge capacity in the Availability Zone you requested (us-west-1c).": "capacity",
    "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
    "configuration. Launching EC2 instance failed.": "capacity",
    "There is no Spot capacity available that matches your request. Launching EC2 instance failed.": "capacity",
    "The requested configuration is currently not supported. Please check the documentation for supported "
    "configurations. Launching EC2 instance failed.": "not_offered",
    "Your requested instance type (p4d.24xlarge) is not supported in your requested Availability Zone (us-east-1e). "
    "Launching EC2 instance failed.": "not_offered",
    "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than your current "
    "vCPU limit of 0 allows for the instance bucket that the specified instance type belongs to.": "quota",
    "You have requested more instances (2) than your current instance limit of 1 allows for the specified instance "
    "type. Launching EC2 instance failed.": "quota",
    "You've reached your quota for maximum Fleet Requests for this account. Launching EC2 instance failed.": "quota",
    "Max spot instance count exceeded. Launching EC2 instance failed.": "quota",
    "Could not launch On-Demand Instances. InvalidParameterCombination - The specified instance type is not eligible "
    "for Free Tier. Launching EC2 instance failed.": "quota",
    "You are not authorized to perform this operation. Launching EC2 instance failed.": "permission",
    "The provided credentials do not have permission to create the service-linked role for EC2 Spot Instances. "
    "Launching EC2 instance failed.": "permission",
    "This account is currently blocked and not recognized as a valid account. Launching EC2 instance failed.": (
        "permission"
    ),
    "Client.InternalError: Client error on launch.": "permission",
    "Authentication Failure. Launching EC2 instance failed.": "server",
    "Could not launch On-Demand Instances. InvalidAMIID.NotFound - The image id '[ami-02c7e84c65fcfecee]' does not "
    "exist. Launching EC2 instance failed.": "permanent",
    "The security group gone does not exist. Launching EC2 instance failed.": "permanent",
    "There is not enough free addresses in subnet subnet-1. Launching EC2 instance failed.": "subnet",
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance "
    "type.": "capacity",
    "AlgorithmError: ExecuteUserScriptError, exit code: 1": "permanent",
    "Server.SpotInstanceTermination: Instance terminated due to Spot interruption": "capacity",
    "The stars were not right. Launching EC2 instance failed.": "unknown",
}


@pytest.mark.parametrize(("text", "error_class"), ACTIVITIES.items(), ids=lambda value: value[:50])
def test_the_reason_of_a_scaling_activity_is_read(text: str, error_class: str) -> None:
    assert read_reason(text).error_class == error_class


def test_a_general_code_is_read_by_its_message() -> None:
    wrapped = "You must use a valid fully-formed launch template. You are not authorized to use launch template: lt-1"
    assert diagnose("ValidationError", wrapped).error_class is ErrorClass.PERMISSION
    assert diagnose("ValidationError", "The default device is missing").error_class is ErrorClass.PERMANENT


def test_a_fresh_instance_profile_is_worth_a_wait() -> None:
    message = "Value (mtl-cloud) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    assert diagnose("InvalidParameterValue", message).error_class.may_pass
    assert not diagnose("InvalidParameterValue", "Value (x) for parameter y is invalid.").error_class.may_pass


@pytest.mark.parametrize(("status", "error_class"), [(500, "server"), (429, "throttle"), (400, "unknown")])
def test_an_unknown_code_keeps_its_name_and_gets_what_http_says(status: int, error_class: str) -> None:
    found = diagnose("NovelTrouble", "something new", http_status=status)
    assert (found.code, found.error_class) == ("NovelTrouble", error_class)


def test_capacity_answered_with_http_500_is_still_capacity() -> None:
    assert diagnose("InsufficientInstanceCapacity", http_status=500).error_class is ErrorClass.CAPACITY


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.text(), st.sampled_from([None, 400, 403, 429, 500, 503]))
def test_only_known_codes_are_ever_called_capacity(code: str, message: str, status: int | None) -> None:
    if code not in CODES:
        assert diagnose(code, message, http_status=status).error_class is not ErrorClass.CAPACITY


def test_quota_and_permission_never_pass_by_themselves() -> None:
    passing = {error_class for error_class in ErrorClass if error_class.may_pass}
    assert passing == {ErrorClass.CAPACITY, ErrorClass.THROTTLE, ErrorClass.SERVER}
