"""The template, deployed by moto, and what everyone reads of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_stack import make_stack
from moto import mock_aws

from mtl_cloud.aws.stack import stack_outputs
from mtl_cloud.bootstrap.template import template, template_text
from mtl_cloud.errors import LaunchError
from mtl_cloud.names import STACK


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield


def client(service: str, region: str = "us-east-1") -> Any:
    return boto3.client(service, region_name=region)


def properties(resource: str) -> dict[str, Any]:
    """Of the template itself."""
    found: dict[str, Any] = template()["Resources"][resource]["Properties"]
    return found


def test_cfn_lint_finds_nothing_in_any_of_the_kinds_of_region() -> None:
    from cfnlint.api import lint
    from cfnlint.core import get_rules

    rules = get_rules([], [], ["W", "E"])
    regions = ["us-east-1", "eu-west-1", "ap-southeast-2", "us-gov-west-1"]
    assert lint(template_text(), rules, regions) == []


@pytest.mark.parametrize("zones", [2, 3, 6])
def test_every_zone_gets_a_subnet_and_the_routes_lead_out_and_to_s3(zones: int) -> None:
    stack = make_stack(client("cloudformation"), zones=zones)
    ec2 = client("ec2")
    found = ec2.describe_subnets(SubnetIds=list(stack.subnets.values()))["Subnets"]
    assert {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in found} == dict(stack.subnets)
    assert len(found) == zones
    (endpoint,) = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert endpoint["ServiceName"] == "com.amazonaws.us-east-1.s3"
    tables = ec2.describe_route_tables(RouteTableIds=endpoint["RouteTableIds"])["RouteTables"]
    assert any(route.get("GatewayId", "").startswith("igw-") for table in tables for route in table["Routes"])


def test_every_subnet_is_public_and_on_the_one_route_table() -> None:
    """As the template says it: moto's CloudFormation passes over both."""
    for number in range(1, 7):
        assert properties(f"Subnet{number}")["MapPublicIpOnLaunch"] is True
        association = {"SubnetId": {"Ref": f"Subnet{number}"}, "RouteTableId": {"Ref": "Routes"}}
        assert properties(f"Subnet{number}Routes") == association


def test_nothing_may_call_in() -> None:
    stack = make_stack(client("cloudformation"))
    (group,) = client("ec2").describe_security_groups(GroupIds=[stack.security_group])["SecurityGroups"]
    assert group["IpPermissions"] == []


def test_a_vpc_of_ones_own_is_used_as_it_is() -> None:
    ec2 = client("ec2")
    (subnet, *_) = ec2.describe_subnets()["Subnets"]
    own = f"{subnet['AvailabilityZone']}={subnet['SubnetId']}"
    before = len(ec2.describe_vpcs()["Vpcs"])
    stack = make_stack(client("cloudformation"), zones=0, VpcId=subnet["VpcId"], VpcSubnets=own)
    assert stack.subnets == {subnet["AvailabilityZone"]: subnet["SubnetId"]}
    assert len(ec2.describe_vpcs()["Vpcs"]) == before


def test_the_bucket_is_private_encrypted_and_tidies_up() -> None:
    stack = make_stack(client("cloudformation"))
    assert client("s3").get_bucket_encryption(Bucket=stack.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    bucket = properties("Bucket")  # moto's CloudFormation passes over these
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert {rule["Id"] for rule in bucket["LifecycleConfiguration"]["Rules"]} == {"unfinished-uploads", "old-records"}


def test_the_outputs_name_what_was_made() -> None:
    stack = make_stack(client("cloudformation", "eu-west-1"))
    assert (stack.region, stack.account) == ("eu-west-1", "123456789012")
    assert stack.storage == f"s3://{stack.bucket}/mtl-cloud"
    profile = client("iam").get_instance_profile(InstanceProfileName=stack.instance_profile)["InstanceProfile"]
    assert [role["Arn"] for role in profile["Roles"]] == [stack.instance_role_arn]
    assert client("iam").get_role(RoleName="mtl-cloud-group-eu-west-1")["Role"]["Arn"] == stack.group_role_arn
    (repository,) = client("ecr", "eu-west-1").describe_repositories()["repositories"]
    assert repository["repositoryUri"] == stack.repository_uri
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert properties("Repository")["ImageScanningConfiguration"] == {"ScanOnPush": True}
    (group,) = client("logs", "eu-west-1").describe_log_groups()["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == (stack.log_group, 30)


def test_policies_fit_iams_limit_of_6144_characters() -> None:
    stack = make_stack(client("cloudformation", "ap-southeast-1"))
    iam = client("iam")
    for policy in iam.list_policies(Scope="Local")["Policies"]:
        version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
        assert len(json.dumps(version["PolicyVersion"]["Document"], separators=(",", ":"))) <= 6144
    assert len(stack.user_policy_arns) == 2


def test_a_region_without_a_stack_is_told_how_to_get_one() -> None:
    with pytest.raises(LaunchError, match="us-east-1: mtl-cloud has no stack") as caught:
        stack_outputs(client("cloudformation"))
    assert caught.value.hint == "mtl-cloud bootstrap --region us-east-1"


def test_a_stack_that_is_being_changed_is_not_read() -> None:
    cloudformation = client("cloudformation")
    cloudformation.create_change_set(
        StackName=STACK, ChangeSetName="first", ChangeSetType="CREATE", TemplateBody=template_text()
    )
    with pytest.raises(LaunchError, match="REVIEW_IN_PROGRESS"):
        stack_outputs(cloudformation)


def test_the_wheel_brings_the_template(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("mtl_cloud/bootstrap/mtl-cloud.yaml").decode() == template_text()
