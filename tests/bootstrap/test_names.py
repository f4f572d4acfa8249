"""``infra/mtl-cloud.yaml`` and ``mtl_cloud.names`` agree.

The template is compared whole: a name that it introduces fails here until ``names`` has it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from iam_evaluator import ACCOUNT, REGION, arn, as_list, decide

from mtl_cloud.bootstrap.policies import policies
from mtl_cloud.bootstrap.template import resolved, template
from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.jobspec.load import parse_job
from mtl_cloud.names import (
    KEY_BYTES,
    KEY_TAG,
    LOG_GROUP,
    PARAMETER_PREFIX,
    PRODUCT,
    PURCHASE_TAG,
    REPOSITORY,
    RUN_TAG,
    SAGEMAKER_LOG_GROUP,
    SECRET_PREFIX,
    SERVICE_ROLE_OWNERS,
    SPOT_THEN_ON_DEMAND,
    SSH_DOCUMENT,
    STACK,
    STORAGE_PREFIX,
    SUBNET_OUTPUT_PREFIX,
    ZONE_PARAMETERS,
    StackOutput,
    StackParameter,
    aws_name,
    bucket_name,
    policy_name,
    role_name,
)
from mtl_cloud.planning.lookup.account import AMI_PARAMETER
from mtl_cloud.runs.paths import RUNS, RunPaths

PROSE = {"Description", "GroupDescription", "Reasons"}


class Symbols(dict[str, str]):
    """What the template refers to, and its value: a parameter or resource stands for itself."""

    def __missing__(self, name: str) -> str:
        return f"<{name}>"


RESOURCES: dict[str, Any] = resolved(
    template()["Resources"], Symbols({"AWS::AccountId": ACCOUNT, "AWS::Region": REGION, "AWS::Partition": "aws"})
)


def role(name: str) -> str:
    return arn("iam", f"role/{name}", region="")


def words(value: Any) -> Iterator[str]:
    """Every key and every value below, but for prose."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key not in PROSE:
                yield key
                yield from words(below)
    elif isinstance(value, list):
        for below in value:
            yield from words(below)
    else:
        yield str(value)


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    """``Resource.Sid`` and the statement, of all policies."""
    for name, resource in RESOURCES.items():
        for document in ("PolicyDocument", "AssumeRolePolicyDocument"):
            for statement in resource["Properties"].get(document, {}).get("Statement", []):
                yield f"{name}.{statement['Sid']}", statement


# --- the stack's resources, parameters and outputs ---

RESOURCE_NAMES = {
    "Bucket": bucket_name(ACCOUNT, REGION),
    "Repository": REPOSITORY,
    "LogGroup": LOG_GROUP,
    "RunPolicy": policy_name("run", REGION),
    "InstancePolicy": policy_name("instance", REGION),
    "InstanceRole": role_name("instance", REGION),
    "InstanceProfile": role_name("instance", REGION),
    "GroupPolicy": policy_name("group", REGION),
    "GroupRole": role_name("group", REGION),
    "SageMakerPolicy": policy_name("sagemaker", REGION),
    "SageMakerRole": role_name("sagemaker", REGION),
    "UserLaunchPolicy": policy_name("user-launch", REGION),
    "UserPolicy": policy_name("user", REGION),
}


def test_every_resource_has_the_name_by_which_it_is_found() -> None:
    named = {
        name: value
        for name, resource in RESOURCES.items()
        for key, value in resource["Properties"].items()
        if key.endswith("Name") and key != "ServiceName"  # of S3, which the endpoint leads to
    }
    assert named == RESOURCE_NAMES


def test_parameters_have_the_names_that_bootstrap_gives() -> None:
    assert set(template()["Parameters"]) == {*StackParameter, *ZONE_PARAMETERS}
    assert template()["Parameters"][StackParameter.PREFIX]["Default"] == STORAGE_PREFIX


def test_outputs_have_the_names_that_the_stack_is_read_by() -> None:
    subnets = {f"{SUBNET_OUTPUT_PREFIX}{end}" for end in (*range(1, len(ZONE_PARAMETERS) + 1), "s")}
    assert set(template()["Outputs"]) == {*StackOutput} | subnets


def test_the_buckets_rules_name_prefixes_of_the_run_record() -> None:
    prefixes = {rule.get("Prefix") for rule in RESOURCES["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert prefixes == {None, f"<Prefix>/{RUNS}"}


# --- the policies ---

BUCKET = arn("s3", "<Bucket>", region="", account="")
GROUPS = arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{aws_name('*')}")
LOGS = arn("logs", f"log-group:{LOG_GROUP}:*")
SAGEMAKER_LOGS = arn("logs", f"log-group:{SAGEMAKER_LOG_GROUP}:*")
NAMED_RESOURCES = {
    "BucketPolicy.TlsOnly": ["<Bucket.Arn>", "<Bucket.Arn>/*"],
    "BucketPolicy.NoOldTls": ["<Bucket.Arn>", "<Bucket.Arn>/*"],
    "RunPolicy.ListRecord": [BUCKET],
    "RunPolicy.WriteRecord": [f"{BUCKET}/<Prefix>/*"],
    "RunPolicy.DeleteOldCheckpoints": [f"{BUCKET}/<Prefix>/{RunPaths('*').checkpoints}*"],
    "RunPolicy.PullImage": [arn("ecr", f"repository/{REPOSITORY}")],
    "RunPolicy.ReadParameters": [arn("ssm", f"parameter{PARAMETER_PREFIX}*")],
    "RunPolicy.ReadSecrets": [arn("secretsmanager", f"secret:{SECRET_PREFIX}*")],
    "InstancePolicy.TakeGroupRole": [role(role_name("group", REGION))],
    "InstancePolicy.BootLog": [LOGS],
    "GroupPolicy.StopGroup": [GROUPS],
    "GroupPolicy.BuyOnDemand": [GROUPS],
    "SageMakerPolicy.JobLog": [SAGEMAKER_LOGS],
    "UserLaunchPolicy.ImageOfTheMachine": [arn("ssm", "parameter/aws/service/*", account="")],
    "UserLaunchPolicy.MakeGroup": [GROUPS],
    "UserLaunchPolicy.ChangeGroup": [GROUPS],
    "UserLaunchPolicy.HandRoles": [role(role_name("instance", REGION)), role(role_name("sagemaker", REGION))],
    "UserPolicy.Stack": [arn("cloudformation", f"stack/{STACK}/*")],
    "UserPolicy.ServiceRoles": [role("aws-service-role/*")],
    "UserPolicy.ListRecord": [BUCKET],
    "UserPolicy.Record": [f"{BUCKET}/<Prefix>/*"],
    "UserPolicy.PushImage": [arn("ecr", f"repository/{REPOSITORY}")],
    "UserPolicy.Logs": [LOGS, SAGEMAKER_LOGS],
    "UserPolicy.TunnelKind": [arn("ssm", f"document/{SSH_DOCUMENT}", account="")],
    "UserPolicy.CloseTunnel": [arn("ssm", "session/${aws:userid}-*")],
}
ALL_OF_A_KIND = re.compile(r"\*|arn:aws:\w+:[\w-]+:\d*:[\w*-]+/\*")
CONDITIONS = {
    (f"aws:RequestTag/{RUN_TAG}", "?*"),
    (f"aws:ResourceTag/{RUN_TAG}", "?*"),
    (f"ssm:resourceTag/{RUN_TAG}", "?*"),
    (f"aws:RequestTag/{KEY_TAG}", 2 * KEY_BYTES * "?"),
    (f"aws:ResourceTag/{KEY_TAG}", f"${{aws:PrincipalTag/{KEY_TAG}}}"),
    (f"aws:ResourceTag/{PURCHASE_TAG}", SPOT_THEN_ON_DEMAND),
    ("autoscaling:MaxSize", "0"),
    ("autoscaling:MaxSize", "1"),
    ("aws:ResourceAccount", ACCOUNT),
    ("aws:SourceAccount", ACCOUNT),
    ("aws:SecureTransport", "false"),
    ("cloudwatch:namespace", SAGEMAKER_LOG_GROUP),
    ("ec2:CreateAction", "CreateLaunchTemplate"),
    ("ec2:CreateAction", "RunInstances"),
    ("ec2:MetadataHttpTokens", "required"),
    *(("iam:AWSServiceName", service) for service in SERVICE_ROLE_OWNERS),
    ("iam:PassedToService", "ec2.amazonaws.com"),
    ("iam:PassedToService", "sagemaker.amazonaws.com"),
    ("s3:TlsVersion", "1.2"),
    ("s3:prefix", "<Prefix>"),
    ("s3:prefix", "<Prefix>/*"),
}
PRINCIPALS = {role(role_name("instance", REGION)), "ec2.amazonaws.com", "sagemaker.amazonaws.com", "*"}


def test_statements_name_resources_as_they_are_called() -> None:
    named = {
        name: found
        for name, statement in statements()
        if (found := [one for one in as_list(statement.get("Resource", [])) if not ALL_OF_A_KIND.fullmatch(one)])
    }
    assert named == NAMED_RESOURCES


def test_conditions_name_the_tags_and_values_that_are_sent() -> None:
    found = {
        (key, value)
        for _, statement in statements()
        for keys in statement.get("Condition", {}).values()
        for key, values in keys.items()
        for value in as_list(values)
    }
    assert found == CONDITIONS


def test_roles_are_assumed_by_who_is_named_so() -> None:
    principals = (statement["Principal"] for _, statement in statements() if "Principal" in statement)
    assert {who for one in principals for who in (one.values() if isinstance(one, dict) else [one])} == PRINCIPALS


def test_no_other_name_of_ours_is_in_the_template() -> None:
    known = {*RESOURCE_NAMES.values(), *PRINCIPALS, *(one for found in NAMED_RESOURCES.values() for one in found)}
    known |= {word for condition in CONDITIONS for word in condition}
    known |= {PRODUCT, *(f"{PRODUCT}-<{zone}>" for zone in ZONE_PARAMETERS)}  # what a person sees in the console
    assert {word for word in words(RESOURCES) if PRODUCT in word} - known == set()


# --- what is named elsewhere too ---


def test_the_tag_that_allows_on_demand_has_the_value_of_the_job_file() -> None:
    assert SPOT_THEN_ON_DEMAND in get_args(Ec2Compute.model_fields["purchase"].annotation)


def test_who_submits_may_read_the_parameter_of_the_machine_image() -> None:
    documents = [policy.document for policy in policies("user", account=ACCOUNT, region=REGION)]
    assert decide(documents, "ssm:GetParameter", arn("ssm", f"parameter{AMI_PARAMETER}", account="")) == "allowed"


READS = {
    "ssm": ("ssm:GetParameter", "parameter{}"),
    "secretsmanager": ("secretsmanager:GetSecretValue", "secret:{}-AbCdEf"),
}
"""Field of the job file → the action and the resource that IAM is asked for."""


@pytest.mark.parametrize("by_arn", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ssm", f"{PARAMETER_PREFIX}wandb"),
        ("ssm", "/other/wandb"),
        ("secretsmanager", f"{SECRET_PREFIX}wandb"),
        ("secretsmanager", f"/{SECRET_PREFIX}wandb"),
        ("secretsmanager", "wandb"),
    ],
)
def test_a_job_is_warned_of_the_secrets_that_a_run_may_not_read(kind: str, name: str, by_arn: bool) -> None:
    documents = [policy.document for policy in policies("instance", account=ACCOUNT, region=REGION)]
    action, resource = READS[kind][0], arn(kind, READS[kind][1].format(name))
    job = f"""
name: digits
dataset: {{name: embedded}}
storage: s3://bucket/runs
compute: {{backend: ec2, instance_type: g5.xlarge}}
env: {{WANDB: {{{kind}: "{resource if by_arn else name}"}}}}
"""
    warned = [str(warning) for warning in parse_job(job.encode(), source="f", base=Path("/")).warnings]
    assert (warned == []) == (decide(documents, action, resource) == "allowed"), warned
