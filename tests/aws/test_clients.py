"""The maker of clients decides region, retries and timeouts, and botocore's errors come out as ours."""

from __future__ import annotations

import sys

import boto3
import pytest
from botocore.stub import Stubber

from mtl_cloud import __version__
from mtl_cloud.aws import AwsClients, translated
from mtl_cloud.errors import CapacityError, CloudError, MissingExtraError


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def test_a_client_has_our_region_timeouts_retries_and_name(credentials: None) -> None:
    ec2 = AwsClients("eu-west-1")("ec2")
    config = ec2.meta.config
    assert ec2.meta.region_name == "eu-west-1"
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}
    assert f"mtl-cloud/{__version__}" in config.user_agent


def test_each_client_is_made_once_and_asks_once_where_told_to(credentials: None) -> None:
    clients = AwsClients("eu-west-1")
    assert clients("sts") is clients("sts")
    assert clients("sts", retries="none").meta.config.retries["total_max_attempts"] == 1
    assert clients("sts", retries="adaptive").meta.config.retries["mode"] == "adaptive"


def test_prices_are_asked_where_they_are_served(credentials: None) -> None:
    assert AwsClients("eu-west-1")("pricing").meta.region_name == "us-east-1"


def test_the_endpoint_comes_from_the_environment(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:8")
    clients = AwsClients("eu-west-1")
    assert clients("sts").meta.endpoint_url == "http://127.0.0.1:9"
    assert clients("ec2").meta.endpoint_url == "http://127.0.0.1:8"


def test_a_profile_that_does_not_exist_is_a_matter_of_credentials() -> None:
    with pytest.raises(CloudError) as caught:
        AwsClients("eu-west-1", profile="nobody")
    assert (caught.value.code, caught.value.error_class) == ("ProfileNotFound", "credentials")
    assert "aws configure list-profiles" in str(caught.value.hint)


def test_no_credentials_are_an_error_that_says_how_to_log_in() -> None:
    clients = AwsClients("eu-west-1")
    with pytest.raises(CloudError, match="NoCredentialsError: credentials") as caught, translated("sts"):
        clients("sts").get_caller_identity()
    assert "aws sso login" in str(caught.value.hint)


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(MissingExtraError, match="the extra 'aws'"), translated("ec2"):
        pass


def refuse(code: str, message: str, status: int = 400, where: str = "") -> CloudError:
    """Our error for an answer of EC2."""
    ec2 = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    stub = Stubber(ec2)
    stub.add_client_error("run_instances", code, message, http_status_code=status)
    with stub, pytest.raises(CloudError) as caught, translated("ec2", where=where):
        ec2.run_instances(MinCount=1, MaxCount=1)
    return caught.value


def test_an_error_says_place_aws_s_words_code_class_cause_and_next_step() -> None:
    error = refuse("VcpuLimitExceeded", "You have requested more vCPU capacity.", where="compute.instance_type")
    assert str(error) == (
        "compute.instance_type: ec2 RunInstances: You have requested more vCPU capacity. (VcpuLimitExceeded: quota)"
    )
    assert error.hint
    assert error.hint.startswith("the account may run fewer vCPUs of this family and market than the machine has; ask")
    assert (error.code, error.error_class, error.operation) == ("VcpuLimitExceeded", "quota", "RunInstances")


def test_capacity_is_an_error_of_its_own_and_nothing_else_is() -> None:
    assert isinstance(refuse("InsufficientInstanceCapacity", "no p4d here", status=500), CapacityError)
    for code in ("UnauthorizedOperation", "VcpuLimitExceeded", "Unsupported", "NovelTrouble", "InternalError"):
        assert not isinstance(refuse(code, "no"), CapacityError)


def test_a_denial_without_words_still_names_the_action() -> None:
    error = refuse("UnauthorizedOperation", "You are not authorized to perform this operation.", status=403)
    assert error.error_class == "permission"
    assert 'add to the policy: {"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": "*"}' in str(error.hint)


def test_an_unknown_error_is_shown_as_it_is() -> None:
    error = refuse("NovelTrouble", "The stars were not right.")
    assert "The stars were not right. (NovelTrouble: unknown)" in str(error)
