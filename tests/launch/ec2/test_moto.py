"""The launcher against moto, which is nobody's double of ours: from the stack and the plan to nothing left.

moto brings an interrupted instance's replacement at the next look at the group. It gives instances no type of a mixed
group's, and runs neither scheduled actions nor user data: the container's word is written into the record here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aws_stack import make_stack
from ec2_harness import ec2_plan, end_run
from moto import mock_aws
from run_harness import FakeClock

from mtl_cloud.aws import AwsClients
from mtl_cloud.launch.base import BackendState
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.ec2.sweep import find_leftovers
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import MemoryStorage


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsClients]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield AwsClients("us-east-1")


def planned(aws: AwsClients) -> PlanRecord:
    """What looking at the account gives, out of the stack's own outputs."""
    stack = make_stack(aws("cloudformation"))
    facts = {
        "ami": {
            "id": aws("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
            "root_device": "/dev/xvda",
        },
        "subnets": dict(stack.subnets),
        "security_group": stack.security_group,
        "instance_profile": stack.instance_profile,
        "group_role": stack.group_role_arn,
        "image": f"{stack.repository_uri}:1",
    }
    plan = ec2_plan(purchase="spot", instance_type=["c5.9xlarge"], gpu_count=0, facts=facts)
    return replace(plan, created_at=datetime.now(UTC).isoformat())


def instances(aws: AwsClients) -> list[dict[str, Any]]:
    alive = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    held = aws("ec2").describe_instances(Filters=alive)["Reservations"]
    return [instance for one in held for instance in one["Instances"]]


def test_from_the_plan_to_nothing_left(aws: AwsClients) -> None:
    plan, storage, clock = planned(aws), MemoryStorage("bucket"), FakeClock(datetime.now(UTC))
    launcher = Ec2Launcher(clients=lambda _: aws, storages=lambda _: storage, clock=clock)
    handle, _ = (submit_run(plan, spec_yaml=b"", spec_json=b"{}", storage=storage, launcher=launcher) for _ in range(2))
    (first,) = instances(aws)
    assert {tag["Key"]: tag["Value"] for tag in first["Tags"]}["mtl-cloud:run"] == plan.run_id
    (wall,) = aws("autoscaling").describe_scheduled_actions()["ScheduledUpdateGroupActions"]
    assert (wall["MaxSize"], wall["DesiredCapacity"]) == (0, 0)
    assert launcher.describe(handle) is BackendState.RUNNING

    aws("ec2").terminate_instances(InstanceIds=[first["InstanceId"]])
    assert launcher.describe(handle) is BackendState.RUNNING
    (second,) = instances(aws)
    assert second["InstanceId"] != first["InstanceId"]

    end_run(launcher._record(handle))
    assert find_leftovers(aws, now=clock.now(), is_over=lambda *_: True)[0].reason == "the run is over"
    launcher.stop(handle)
    assert instances(aws) == []
    assert find_leftovers(aws, now=clock.now(), is_over=lambda *_: True) == []
    assert aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert aws("ec2").describe_launch_templates()["LaunchTemplates"] == []
