"""What the roles may do and what they may not, by an evaluator that is itself held against AWS's own examples."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import s3_servers
from hypothesis import given, settings
from hypothesis import strategies as st
from iam_evaluator import ACCOUNT, REGION, Context, Decision, arn, decide
from moto.iam.access_control import IAMPolicy, PermissionResult
from run_harness import make_run, supervisor_argv
from stack_double import Account
from waiting import PATIENCE_S

from mtl_cloud import cli
from mtl_cloud.bootstrap.policies import POLICIES, ROLES, policies, trust_policy
from mtl_cloud.names import KEY_TAG, PURCHASE_TAG, RUN_TAG, aws_name
from mtl_cloud.storage import open_storage

BUCKET = f"arn:aws:s3:::mtl-cloud-{ACCOUNT}-{REGION}"
OURS = {"aws:ResourceAccount": ACCOUNT}
TAG = f"aws:ResourceTag/{RUN_TAG}"
ASKED = f"aws:RequestTag/{RUN_TAG}"


def group(name: str) -> str:
    return arn("autoscaling", f"autoScalingGroup:5f0e:autoScalingGroupName/{name}")


def ask(who: str, action: str, resource: str = "*", context: Context | None = None) -> Decision:
    documents = [policy.document for policy in policies(who, account=ACCOUNT, region=REGION)]
    return decide(documents, action, resource, context)


def take(role: str, principal: str, context: Context, action: str = "sts:AssumeRole") -> Decision:
    """Whether the role's trust policy lets the principal take it on."""
    document = trust_policy(role, account=ACCOUNT, region=REGION).document
    return decide([document], action, "", context, principal=principal)


# --- the evaluator ---

HOME = {
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::mybucket"],
         "Condition": {"StringLike": {"s3:prefix": ["${aws:username}/*"]}}},
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"],
         "Resource": ["arn:aws:s3:::mybucket/${aws:username}/*"]},
    ]
}  # fmt: skip
"""From the IAM User Guide, "Policy variables"."""
REGION_LOCK = {
    "Statement": [
        {"Effect": "Allow", "Action": "*", "Resource": "*"},
        {"Effect": "Deny", "NotAction": ["iam:*", "organizations:*", "s3:*"], "Resource": "*",
         "Condition": {"StringNotEquals": {"aws:RequestedRegion": ["eu-central-1", "eu-west-1"]}}},
    ]
}  # fmt: skip
"""After the IAM User Guide, "AWS: denies access to AWS based on the requested Region"."""
OWNED = {
    "Statement": {"Effect": "Allow", "Action": ["ec2:StartInstances", "ec2:StopInstances"],
                  "Resource": "arn:aws:ec2:*:*:instance/*",
                  "Condition": {"StringEquals": {"aws:ResourceTag/Owner": "${aws:username}"}}}
}  # fmt: skip
"""From the IAM User Guide, "Amazon EC2: starts or stops instances based on matching principal and resource tags"."""
SECURE = {
    "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*",
                  "Condition": {"Bool": {"aws:SecureTransport": "true"}, "Null": {"aws:TokenIssueTime": "false"}}}
}  # fmt: skip
NOT_OWNED = {
    "Statement": {"Effect": "Deny", "Action": "*", "Resource": "*",
                  "Condition": {"StringNotEquals": {"aws:ResourceTag/Owner": "${aws:username}"}}}
}  # fmt: skip
"""After the same guide, "Policy variables with no value": they equal nothing, and the inverted operators hold."""
INSTANCE = "arn:aws:ec2:us-east-1:1:instance/i-1"


@pytest.mark.parametrize(
    ("document", "action", "resource", "context", "expected"),
    [
        (HOME, "s3:GetObject", "arn:aws:s3:::mybucket/jane/x", {"aws:username": "jane"}, "allowed"),
        (HOME, "s3:getobject", "arn:aws:s3:::mybucket/jane/x", {"AWS:UserName": "jane"}, "allowed"),
        (HOME, "s3:GetObject", "arn:aws:s3:::mybucket/john/x", {"aws:username": "jane"}, "denied"),
        (HOME, "s3:GetObject", "arn:aws:s3:::mybucket/jane/x", {}, "denied"),
        (HOME, "s3:ListBucket", "arn:aws:s3:::mybucket", {"aws:username": "jane", "s3:prefix": "jane/a"}, "allowed"),
        (HOME, "s3:ListBucket", "arn:aws:s3:::mybucket", {"aws:username": "jane"}, "denied"),
        (HOME, "s3:DeleteObject", "arn:aws:s3:::mybucket/jane/x", {"aws:username": "jane"}, "denied"),
        (REGION_LOCK, "ec2:RunInstances", "*", {"aws:RequestedRegion": "us-east-1"}, "explicitly denied"),
        (REGION_LOCK, "ec2:RunInstances", "*", {"aws:RequestedRegion": "eu-west-1"}, "allowed"),
        (REGION_LOCK, "ec2:RunInstances", "*", {}, "explicitly denied"),
        (REGION_LOCK, "s3:GetObject", "*", {"aws:RequestedRegion": "us-east-1"}, "allowed"),
        (OWNED, "ec2:StopInstances", INSTANCE, {"aws:username": "ann", "aws:ResourceTag/Owner": "ann"}, "allowed"),
        (OWNED, "ec2:StopInstances", INSTANCE, {"aws:username": "ann", "aws:ResourceTag/Owner": "bob"}, "denied"),
        (OWNED, "ec2:StopInstances", INSTANCE, {"aws:ResourceTag/Owner": "${aws:username}"}, "denied"),
        (NOT_OWNED, "ec2:StopInstances", INSTANCE, {"aws:ResourceTag/Owner": "ann"}, "explicitly denied"),
        (SECURE, "s3:GetObject", "*", {"aws:SecureTransport": "true", "aws:TokenIssueTime": "2026"}, "allowed"),
        (SECURE, "s3:GetObject", "*", {"aws:SecureTransport": "true"}, "denied"),
    ],
)
def test_the_evaluator_decides_aws_own_examples_as_aws_says(
    document: dict[str, Any], action: str, resource: str, context: dict[str, str], expected: str
) -> None:
    assert decide([document], action, resource, context) == expected


actions = st.sampled_from(["s3:Get", "s3:GetObject", "s3:PutObject", "s3:*", "s3:Get*", "*", "iam:PassRole"])
resources = st.sampled_from(["arn:aws:s3:::b", "arn:aws:s3:::b/*", "*", "arn:aws:s3:::b/key"])
statements = st.builds(
    lambda effect, action, resource: {"Effect": effect, "Action": action, "Resource": resource},
    st.sampled_from(["Allow", "Deny"]), st.lists(actions, min_size=1, max_size=3), resources,
)  # fmt: skip


@given(
    st.lists(statements, min_size=1, max_size=4),
    actions.filter(lambda a: "*" not in a),
    st.sampled_from(["b", "b/key", "c"]),
)
@settings(max_examples=150, deadline=None)
def test_without_conditions_it_decides_as_motos(found: list[Any], action: str, where: str) -> None:
    document, resource = {"Version": "2012-10-17", "Statement": found}, f"arn:aws:s3:::{where}"
    expected = IAMPolicy(json.dumps(document)).is_action_permitted(action, resource)
    words = {PermissionResult.PERMITTED: "allowed", PermissionResult.DENIED: "explicitly denied"}
    assert decide([document], action, resource) == words.get(expected, "denied")


# --- what an instance does: user_data.sh, the supervisor, the trainer, the SSM agent ---

RECORD = f"{BUCKET}/mtl-cloud/runs/voc-3fa9c1"
ZERO = {TAG: "voc-3fa9c1", "autoscaling:MinSize": "0", "autoscaling:MaxSize": "0"}
ONE_ON_DEMAND = {**ZERO, "autoscaling:MaxSize": "1", f"aws:ResourceTag/{PURCHASE_TAG}": "spot_then_on_demand"}
REPOSITORY = arn("ecr", "repository/mtl-cloud")
RUN_DOES = [
    ("s3:ListBucket", BUCKET, {**OURS, "s3:prefix": "mtl-cloud/runs/voc-3fa9c1/boots/"}),
    ("s3:ListBucket", BUCKET, OURS),  # S3's own look, whether an absent object is to be a 404
    ("s3:GetObject", f"{RECORD}/plan.json", OURS),
    ("s3:GetObject", f"{BUCKET}/mtl-cloud/datasets/voc.tar", OURS),
    ("s3:PutObject", f"{RECORD}/attempts/0001.json", OURS),
    ("s3:PutObject", f"{RECORD}/boots/i-1.log", OURS),
    ("s3:PutObject", f"{RECORD}/checkpoints/0000000100-0001/manifest.json", OURS),
    ("s3:AbortMultipartUpload", f"{RECORD}/checkpoints/0000000100-0001/part-0", OURS),
    ("s3:DeleteObject", f"{RECORD}/checkpoints/0000000100-0001/manifest.json", OURS),
    ("ecr:GetAuthorizationToken", "*", {}),
    ("ecr:BatchCheckLayerAvailability", REPOSITORY, {}),
    ("ecr:BatchGetImage", REPOSITORY, {}),
    ("ecr:GetDownloadUrlForLayer", REPOSITORY, {}),
    ("ssm:GetParameter", arn("ssm", "parameter/mtl-cloud/wandb"), {}),
    ("secretsmanager:GetSecretValue", arn("secretsmanager", "secret:mtl-cloud/deploy-AbCdEf"), {}),
]
GROUP_ROLE = f"arn:aws:iam::{ACCOUNT}:role/mtl-cloud-group-{REGION}"
INSTANCE_DOES = [
    *RUN_DOES,
    ("sts:AssumeRole", GROUP_ROLE, {}),
    ("sts:TagSession", GROUP_ROLE, {}),
    ("logs:PutLogEvents", arn("logs", "log-group:/mtl-cloud:log-stream:i-1"), {}),
    ("ssm:UpdateInstanceInformation", "*", {}),
    ("ssmmessages:CreateControlChannel", "*", {}),
    ("ssmmessages:OpenDataChannel", "*", {}),
]
JOB_DOES = [
    *RUN_DOES,
    ("logs:CreateLogStream", arn("logs", "log-group:/aws/sagemaker/TrainingJobs:log-stream:voc/algo-1"), {}),
    ("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "/aws/sagemaker/TrainingJobs"}),
]


@pytest.mark.parametrize(("action", "resource", "context"), INSTANCE_DOES)
def test_an_instance_may_do_what_it_does(action: str, resource: str, context: Context) -> None:
    assert ask("instance", action, resource, context) == "allowed"


@pytest.mark.parametrize(("action", "resource", "context"), JOB_DOES)
def test_a_sagemaker_job_may_do_what_it_does(action: str, resource: str, context: Context) -> None:
    assert ask("sagemaker", action, resource, context) == "allowed"


def test_every_request_of_a_real_supervisor_to_s3_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_servers.moto() as url:
        for name, value in {**s3_servers.CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        run = make_run(open_storage(f"s3://{s3_servers.BUCKET}/mtl-cloud"), "print('hello')")
        with caplog.at_level(logging.INFO, "werkzeug"):
            subprocess.run(supervisor_argv(run, tmp_path), check=True, timeout=PATIENCE_S)
    requests = re.findall(rf'"(\w+) /{s3_servers.BUCKET}/?(\S*) HTTP', caplog.text)
    assert len(requests) > 10
    for request in requests:
        assert ask("instance", *_asked(*request)) == "allowed", request


def _asked(method: str, path: str) -> tuple[str, str, Context]:
    """The action, resource and context that S3 has IAM decide about a request."""
    key, _, query = path.partition("?")
    if key:
        return f"s3:{ {'HEAD': 'Get', 'POST': 'Put'}.get(method, method.title()) }Object", f"{BUCKET}/{key}", OURS
    (prefix,) = parse_qs(query, keep_blank_values=True)["prefix"]
    return "s3:ListBucket", BUCKET, {**OURS, "s3:prefix": prefix}


KEY = 16 * "0a"
OWN, SESSION = f"aws:ResourceTag/{KEY_TAG}", f"aws:PrincipalTag/{KEY_TAG}"
HAS_KEY = {SESSION: KEY}
ROLE = f"arn:aws:iam::{ACCOUNT}:role/mtl-cloud"
INSTANCE_ROLE = f"{ROLE}-instance-{REGION}"
GROUP = group(aws_name("voc-3fa9c1"))
GROUP_VERBS = (
    "SetDesiredCapacity", "DeleteAutoScalingGroup", "TerminateInstanceInAutoScalingGroup", "CreateOrUpdateTags",
    "DeleteTags", "PutScheduledUpdateGroupAction", "DeleteScheduledAction", "CreateAutoScalingGroup",
)  # fmt: skip
LOOKS = (
    "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeTags", "ec2:DescribeInstanceAttribute",
    "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeTags",
    "ec2:GetLaunchTemplateData", "tag:GetResources", "cloudtrail:LookupEvents", "iam:GetRole",
)  # fmt: skip
"""Each tells the key of a group, or what leads to it."""
WEB = group("web-frontend")
OTHER = group(aws_name("other-1"))
FORBIDDEN = [
    ("s3:GetObject", f"{BUCKET}/private/x", OURS),
    ("s3:PutObject", f"{BUCKET}/mtl-cloud-other/x", OURS),
    ("s3:ListBucket", BUCKET, {**OURS, "s3:prefix": "private/"}),
    ("s3:GetObject", f"{RECORD}/plan.json", {"aws:ResourceAccount": "999999999999"}),
    ("s3:GetObject", "arn:aws:s3:::another-bucket/mtl-cloud/x", OURS),
    ("s3:DeleteObject", f"{RECORD}/plan.json", OURS),
    ("s3:DeleteObject", f"{RECORD}/attempts/0001/log/000001", OURS),
    ("s3:DeleteBucket", BUCKET, OURS),
    ("s3:PutBucketPolicy", BUCKET, OURS),
    *(("autoscaling:UpdateAutoScalingGroup", of, {**asked, **HAS_KEY}) for of in (WEB, OTHER, GROUP) for asked in (
        ZERO, ONE_ON_DEMAND,
    )),
    *((f"autoscaling:{verb}", of, {TAG: "x", **HAS_KEY}) for verb in GROUP_VERBS for of in (OTHER, GROUP)),
    *((action, "*", {}) for action in LOOKS),
    *((f"ec2:{verb}", arn("ec2", "instance/i-1"), {TAG: "other-1"}) for verb in (
        "RunInstances", "TerminateInstances", "CreateTags", "ModifyInstanceAttribute",
    )),
    *((f"iam:{verb}", f"arn:aws:iam::{ACCOUNT}:role/mtl-cloud-instance-{REGION}", {}) for verb in (
        "PassRole", "CreateRole", "PutRolePolicy", "AttachRolePolicy", "CreatePolicyVersion", "CreateAccessKey",
    )),
    ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/admin", {}),
    ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/mtl-cloud-group-us-east-1", {}),
    ("ssm:GetParameter", arn("ssm", "parameter/other/secret"), {}),
    ("ssm:SendCommand", arn("ec2", "instance/i-1"), {TAG: "other-1"}),
    ("ssm:StartSession", arn("ec2", "instance/i-1"), {TAG: "other-1"}),
    ("secretsmanager:GetSecretValue", arn("secretsmanager", "secret:prod/db-AbCdEf"), {}),
    ("ecr:PutImage", REPOSITORY, {}),
    ("ecr:BatchGetImage", arn("ecr", "repository/other"), {}),
    ("sagemaker:CreateTrainingJob", arn("sagemaker", "training-job/x"), {ASKED: "x"}),
]  # fmt: skip


@pytest.mark.parametrize("who", ["instance", "sagemaker"])
@pytest.mark.parametrize(("action", "resource", "context"), FORBIDDEN)
def test_a_run_may_do_nothing_else(who: str, action: str, resource: str, context: Context) -> None:
    """Nothing to any group, its own either, and no look at what tells another group's key."""
    assert ask(who, action, resource, context) != "allowed"


# --- what the key of a group opens: the role of groups, and in it that group alone ---


def test_an_instance_takes_on_the_groups_role_with_a_key_and_nobody_else_does() -> None:
    asked = {f"aws:RequestTag/{KEY_TAG}": KEY}
    for action in ("sts:AssumeRole", "sts:TagSession"):
        assert take("group", INSTANCE_ROLE, asked, action) == "allowed"
        for principal in (f"{ROLE}-sagemaker-{REGION}", f"{ROLE}-group-{REGION}", f"{ROLE}-instance-us-east-1",
                          f"arn:aws:iam::{ACCOUNT}:user/ada", "ec2.amazonaws.com"):  # fmt: skip
            assert take("group", principal, asked, action) == "denied"


@pytest.mark.parametrize("asked", [{}, {f"aws:RequestTag/{RUN_TAG}": KEY}, *(
    {f"aws:RequestTag/{KEY_TAG}": key} for key in ("", "*", "?", KEY[1:], KEY + "0")
)])  # fmt: skip
def test_without_a_whole_key_it_is_not_taken_on(asked: Context) -> None:
    assert take("group", INSTANCE_ROLE, asked) == "denied"


def test_the_other_roles_are_taken_on_by_their_services_alone() -> None:
    of_account = {"aws:SourceAccount": ACCOUNT}
    assert take("instance", "ec2.amazonaws.com", {}) == "allowed"
    assert take("sagemaker", "sagemaker.amazonaws.com", of_account) == "allowed"
    assert take("sagemaker", "sagemaker.amazonaws.com", {"aws:SourceAccount": "999999999999"}) == "denied"
    for role in ("instance", "sagemaker"):
        assert take(role, INSTANCE_ROLE, of_account) == "denied"


@pytest.mark.parametrize("asked", [ZERO, ONE_ON_DEMAND])
def test_with_its_key_a_run_changes_its_own_group(asked: Context) -> None:
    assert ask("group", "autoscaling:UpdateAutoScalingGroup", GROUP, {**asked, **HAS_KEY, OWN: KEY}) == "allowed"


@pytest.mark.parametrize("asked", [ZERO, ONE_ON_DEMAND])
@pytest.mark.parametrize("session", [
    {}, *({SESSION: key} for key in (KEY, "", "*", 32 * "?", "${aws:ResourceTag/mtl-cloud-key}"))
])  # fmt: skip
@pytest.mark.parametrize("held", [{OWN: 32 * "b"}, {}])
def test_another_runs_group_it_changes_with_no_key_that_it_can_have(
    held: Context, session: Context, asked: Context
) -> None:
    """Nor a group that has none."""
    context = {**asked, **session, **held}
    assert ask("group", "autoscaling:UpdateAutoScalingGroup", OTHER, context) == "denied"


@pytest.mark.parametrize(("action", "resource", "context"), [
    ("autoscaling:UpdateAutoScalingGroup", WEB, ZERO),
    ("autoscaling:UpdateAutoScalingGroup", GROUP, {"autoscaling:MaxSize": "0"}),  # without our tag
    ("autoscaling:UpdateAutoScalingGroup", GROUP, {TAG: "x", "autoscaling:MaxSize": "1"}),  # its job did not ask for it
    ("autoscaling:UpdateAutoScalingGroup", GROUP, {TAG: "x", "autoscaling:DesiredCapacity": "1"}),
    ("autoscaling:UpdateAutoScalingGroup", GROUP, {**ONE_ON_DEMAND, "autoscaling:MaxSize": "2"}),
    *((f"autoscaling:{verb}", GROUP, ZERO) for verb in GROUP_VERBS),
    *((action, "*", {}) for action in LOOKS),
    ("s3:GetObject", f"{RECORD}/plan.json", OURS),
    ("sts:AssumeRole", INSTANCE_ROLE, {}),
])  # fmt: skip
def test_the_groups_role_does_nothing_else_even_with_the_key(action: str, resource: str, context: Context) -> None:
    assert ask("group", action, resource, {**context, **HAS_KEY, OWN: KEY}) == "denied"


# --- what a person does ---

TEMPLATE = arn("ec2", "launch-template/lt-1")
MACHINE = arn("ec2", "instance/i-1")
JOB = arn("sagemaker", "training-job/voc-3fa9c1-1")
OF_RUN = {TAG: "voc-3fa9c1"}
STACK_ARN = arn("cloudformation", "stack/mtl-cloud/5f0e")
USER_DOES = [
    *((action, "*", {}) for action in (
        "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities",
        "ec2:DescribeAvailabilityZones", "ec2:DescribeCapacityReservations", "ec2:DescribeImages",
        "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates",
        "ec2:DescribeRegions", "ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets", "pricing:GetProducts",
        "sagemaker:ListTrainingJobs", "servicequotas:GetServiceQuota",
    )),
    ("ssm:GetParameter", arn("ssm", "parameter/aws/service/deeplearning/ami/x86_64/x/latest/ami-id", account=""), {}),
    ("ec2:CreateLaunchTemplate", TEMPLATE, {ASKED: "voc-3fa9c1"}),
    ("ec2:CreateTags", TEMPLATE, {"ec2:CreateAction": "CreateLaunchTemplate"}),
    ("ec2:CreateTags", MACHINE, {"ec2:CreateAction": "RunInstances"}),
    ("ec2:DeleteLaunchTemplate", TEMPLATE, OF_RUN),
    ("ec2:RunInstances", TEMPLATE, OF_RUN),
    ("ec2:RunInstances", MACHINE, {ASKED: "voc-3fa9c1", "ec2:MetadataHttpTokens": "required"}),
    *(("ec2:RunInstances", arn("ec2", part), {}) for part in (
        "subnet/subnet-1", "security-group/sg-1", "volume/*", "network-interface/*", "spot-instances-request/*",
    )),
    ("ec2:RunInstances", arn("ec2", "image/ami-1", account=""), {}),
    ("ec2:TerminateInstances", MACHINE, OF_RUN),
    ("autoscaling:CreateAutoScalingGroup", GROUP, {ASKED: "voc-3fa9c1"}),
    ("autoscaling:PutScheduledUpdateGroupAction", GROUP, OF_RUN),
    ("autoscaling:UpdateAutoScalingGroup", GROUP, OF_RUN),
    ("autoscaling:DeleteAutoScalingGroup", GROUP, OF_RUN),
    ("iam:PassRole", f"{ROLE}-instance-{REGION}", {"iam:PassedToService": "ec2.amazonaws.com"}),
    ("iam:PassRole", f"{ROLE}-sagemaker-{REGION}", {"iam:PassedToService": "sagemaker.amazonaws.com"}),
    ("iam:CreateServiceLinkedRole", f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/spot.amazonaws.com/x",
     {"iam:AWSServiceName": "spot.amazonaws.com"}),
    ("sagemaker:CreateTrainingJob", JOB, {ASKED: "voc-3fa9c1"}),
    ("sagemaker:DescribeTrainingJob", JOB, {}),
    ("sagemaker:StopTrainingJob", JOB, OF_RUN),
    ("s3:ListBucket", BUCKET, {**OURS, "s3:prefix": "mtl-cloud/runs/"}),
    *((f"s3:{verb}Object", f"{RECORD}/plan.json", OURS) for verb in ("Get", "Put", "Delete")),
    *((f"ecr:{verb}", REPOSITORY, {}) for verb in (
        "BatchCheckLayerAvailability", "CompleteLayerUpload", "DescribeImages", "DescribeRepositories",
        "InitiateLayerUpload", "PutImage", "UploadLayerPart",
    )),
    ("ssm:StartSession", MACHINE, {f"ssm:resourceTag/{RUN_TAG}": "voc-3fa9c1"}),
    ("ssm:StartSession", arn("ssm", "document/AWS-StartSSHSession", account=""), {}),
    ("ssm:TerminateSession", arn("ssm", "session/AIDA:ann-0a1b"), {"aws:userid": "AIDA:ann"}),
    ("ec2-instance-connect:SendSSHPublicKey", MACHINE, OF_RUN),
    ("ec2:GetConsoleOutput", MACHINE, OF_RUN),
    ("sts:DecodeAuthorizationMessage", "*", {}),
    ("logs:GetLogEvents", arn("logs", "log-group:/aws/sagemaker/TrainingJobs:log-stream:voc/algo-1"), {}),
]  # fmt: skip


@pytest.mark.parametrize(("action", "resource", "context"), USER_DOES)
def test_who_submits_may_do_what_the_commands_do(action: str, resource: str, context: Context) -> None:
    assert ask("user", action, resource, context) == "allowed"


def test_every_call_of_bootstrap_itself_is_allowed_to_who_submits() -> None:
    """What CloudFormation makes in its course is not: that takes an administrator."""
    from run_harness import FakeClock

    from mtl_cloud.bootstrap.deploy import Deployment
    from mtl_cloud.bootstrap.remains import what_is_left

    clients = Account().clients()
    deployment = Deployment(clients, FakeClock())
    deployment.accept(deployment.propose())
    what_is_left(clients)
    deployment.destroy()
    on = {
        "cloudformation": (STACK_ARN, {}),
        "iam": (f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/x", {"iam:AWSServiceName": "spot.amazonaws.com"}),
        "s3": (BUCKET, OURS),
    }
    names = {"s3:ListObjectsV2": "s3:ListBucket"}
    for call in clients.calls:
        resource, context = on.get(call.partition(":")[0], ("*", {}))
        assert ask("user", names.get(call, call), resource, context) == "allowed", call


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("ec2:RunInstances", MACHINE, {"ec2:MetadataHttpTokens": "required"}),
        ("ec2:RunInstances", MACHINE, {ASKED: "voc-3fa9c1", "ec2:MetadataHttpTokens": "optional"}),
        ("ec2:TerminateInstances", MACHINE, {}),
        ("ec2:CreateTags", MACHINE, {}),
        ("autoscaling:CreateAutoScalingGroup", GROUP, {}),
        ("autoscaling:DeleteAutoScalingGroup", WEB, OF_RUN),
        ("autoscaling:UpdateAutoScalingGroup", GROUP, {}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", f"{ROLE}-group-{REGION}", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("sts:AssumeRole", f"{ROLE}-group-{REGION}", {}),
        ("iam:CreateRole", f"{ROLE}-instance-{REGION}", {}),
        ("iam:CreateServiceLinkedRole", f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/x", {"iam:AWSServiceName": "x"}),
        ("ssm:StartSession", MACHINE, {}),
        ("ssm:StartSession", arn("ssm", "document/SSM-SessionManagerRunShell"), {}),
        ("ssm:TerminateSession", arn("ssm", "session/AIDA:bob-0a1b"), {"aws:userid": "AIDA:ann"}),
        ("ssm:GetParameter", arn("ssm", "parameter/mtl-cloud/wandb"), {}),
        ("secretsmanager:GetSecretValue", arn("secretsmanager", "secret:mtl-cloud/deploy-AbCdEf"), {}),
        ("s3:GetObject", f"{BUCKET}/private/x", OURS),
        ("sagemaker:StopTrainingJob", JOB, {}),
    ],
)
def test_who_submits_may_not(action: str, resource: str, context: Context) -> None:
    assert ask("user", action, resource, context) != "allowed"


# --- how they are told ---


@pytest.mark.parametrize("who", POLICIES)
def test_every_statement_has_a_reason_and_every_reason_a_statement(who: str) -> None:
    trust = [trust_policy(who, account=ACCOUNT, region=REGION)] if who in ROLES else []
    for policy in [*policies(who, account=ACCOUNT, region=REGION), *trust]:
        assert [statement["Sid"] for statement in policy.document["Statement"]] == list(policy.reasons)
        assert all(len(reason) > 20 for reason in policy.reasons.values())


def test_what_is_printed_is_what_cloudformation_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from aws_stack import make_stack
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        make_stack(boto3.client("cloudformation", region_name=REGION))
        iam = boto3.client("iam", region_name=REGION)
        for policy in (policy for who in POLICIES for policy in policies(who, account=ACCOUNT, region=REGION)):
            found = iam.get_policy_version(PolicyArn=f"arn:aws:iam::{ACCOUNT}:policy/{policy.name}", VersionId="v1")
            assert found["PolicyVersion"]["Document"] == policy.document
        for policy in (trust_policy(who, account=ACCOUNT, region=REGION) for who in ROLES):
            role = iam.get_role(RoleName=policy.name)["Role"]
            assert role["AssumeRolePolicyDocument"] == policy.document


def test_iam_prints_each_statement_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["iam", "instance", "--region", REGION]) == 0
    words = capsys.readouterr().out
    assert "mtl-cloud-run-eu-west-1\n" in words
    assert "  TakeGroupRole (allow)\n    To close its own group the instance assumes the groups' role" in words
    assert "the role mtl-cloud-instance-eu-west-1: who may assume it\n" in words
    assert "      by ec2.amazonaws.com" in words
    assert cli.main(["iam", "group"]) == 0
    words = capsys.readouterr().out
    assert "      if autoscaling:MaxSize NumericEquals 0" in words
    assert "      if aws:ResourceTag/mtl-cloud-key StringEquals ${aws:PrincipalTag/mtl-cloud-key}" in words
    assert "      by arn:aws:iam::ACCOUNT_ID:role/mtl-cloud-instance-us-east-1" in words


def test_iam_as_json_is_ready_for_iam(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["iam", "--account", ACCOUNT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(POLICIES)
    assert found["user"][0]["document"]["Version"] == "2012-10-17"
    assert set(re.findall(r"\$\{[^}]*\}", json.dumps(found))) == {"${aws:userid}", f"${{aws:PrincipalTag/{KEY_TAG}}}"}
    assert found["group"][-1]["document"]["Statement"][0]["Principal"]
