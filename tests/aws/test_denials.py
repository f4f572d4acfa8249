"""A denial names its action, the policy to blame, and the statement that would allow it."""

from __future__ import annotations

import json

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from mtl_cloud.aws import Denial, decode_denial, diagnose, encoded_denial, read_denial, translated
from mtl_cloud.errors import CloudError

USER = "arn:aws:iam::111122223333:user/ada"
INSTANCE = "arn:aws:ec2:us-east-1:111122223333:instance/*"
STEM = f"User: {USER} is not authorized to perform: ec2:RunInstances on resource: {INSTANCE}"


@pytest.mark.parametrize(
    ("rest", "policy", "explicit"),
    [
        ("because no identity-based policy allows the ec2:RunInstances action", "identity-based policy", False),
        ("because no permissions boundary allows the ec2:RunInstances action", "permissions boundary", False),
        ("with an explicit deny in a service control policy", "service control policy", True),
        ("with an explicit deny in an identity-based policy", "identity-based policy", True),
        ("because no service control policy allows the action", "service control policy", False),
        ("", None, False),
    ],
)
def test_who_what_and_which_policy_are_read(rest: str, policy: str | None, explicit: bool) -> None:
    message = f"You are not authorized to perform this operation. {STEM} {rest}"
    assert read_denial(message) == Denial("ec2:RunInstances", INSTANCE, USER, policy, explicit)


def test_the_statement_that_would_allow_it_is_valid_iam() -> None:
    denial = read_denial(f"{STEM} because no identity-based policy allows the ec2:RunInstances action")
    assert denial
    assert denial.statement == {"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": INSTANCE}
    assert '"Action": "ec2:RunInstances"' in denial.action_to_take


def test_an_organisation_s_policy_sends_to_its_administrators_and_offers_no_statement() -> None:
    found = diagnose("UnauthorizedOperation", f"{STEM} with an explicit deny in a service control policy")
    assert found.action == "only the organisation's administrators can change its service control policy"
    assert found.cause == f"a statement of the service control policy forbids ec2:RunInstances to {USER}"


def test_an_explicit_deny_is_not_answered_with_an_allow() -> None:
    denial = read_denial(f"{STEM} with an explicit deny in an identity-based policy")
    assert denial
    assert "an Allow elsewhere does not help" in denial.action_to_take


def test_where_aws_names_no_action_the_operation_does() -> None:
    denial = read_denial("Access denied.", service="service-quotas", operation="GetServiceQuota")
    assert denial == Denial("servicequotas:GetServiceQuota")
    assert read_denial("Access denied.") is None


def test_an_encoded_message_is_decoded_by_sts() -> None:
    sts = boto3.client("sts", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    context = {"principal": {"arn": USER}, "action": "iam:PassRole", "resource": "arn:aws:iam::111122223333:role/r"}
    told = json.dumps({"allowed": False, "explicitDeny": True, "context": context})
    with Stubber(sts) as stub:
        stub.add_response("decode_authorization_message", {"DecodedMessage": told}, {"EncodedMessage": "8tQwz"})
        encoded = encoded_denial("You are not authorized. Encoded authorization failure message: 8tQwz")
        denial = decode_denial(str(encoded), sts)
    assert denial == Denial("iam:PassRole", "arn:aws:iam::111122223333:role/r", USER, explicit=True)
    assert encoded_denial("Access denied.") is None


def test_an_error_that_hides_more_says_how_to_have_it_told() -> None:
    message = "You are not authorized to perform this operation. Encoded authorization failure message: 8tQwz"
    hidden = ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": message}}, "RunInstances")
    with pytest.raises(CloudError) as caught, translated("ec2"):
        raise hidden
    assert str(caught.value.hint).startswith("no policy allows ec2:RunInstances; add to the policy")
    assert "`mtl-cloud explain` with the whole of it" in str(caught.value.hint)
