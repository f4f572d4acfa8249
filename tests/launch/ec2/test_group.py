"""A run's Auto Scaling group and what is left of it: answers that are rare, in the double's account and in moto."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from aws_harness import moto_clients
from ec2_harness import START, World, ec2_plan

from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.launch.ec2.group import Group
from mtl_cloud.launch.ec2.request import requests
from mtl_cloud.launch.ec2.sweep import enabled_regions, find_leftovers
from mtl_cloud.names import EXPIRES_TAG, RUN_TAG

PLAN = ec2_plan()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def group(world: World) -> Group:
    """Of a submitted run."""
    world.make_run(PLAN)
    world.submit(PLAN)
    return Group(PLAN.run_id, world.cloud.clients("us-east-1"), world.clock)


def test_a_group_that_is_gone_has_no_activities(world: World, group: Group) -> None:
    assert group.activities()
    group.delete()
    assert group.activities() == []


def test_a_removal_that_may_not_be_watched_is_an_error_and_a_busy_aws_is_asked_again(
    world: World, group: Group
) -> None:
    group.delete()
    world.cloud.refuse_next("DescribeAutoScalingGroups", "AccessDenied", "not authorized")
    with pytest.raises(CloudError, match="not authorized"):
        group.finish()
    world.cloud.refuse_next("DescribeAutoScalingGroups", "RequestLimitExceeded")
    group.finish()
    assert world.cloud.what_is_left() == []


def test_a_boot_script_that_is_longer_than_ec2_takes_is_refused_before_anything_is_made() -> None:
    with pytest.raises(LaunchError, match=r"digits-1: the boot script has \d+ bytes, and EC2 takes 16384"):
        requests(replace(PLAN, storage="s3://b/" + 17_000 * "x"))


def _reasons(world: World, hours: float) -> list[str]:
    now = START + timedelta(hours=hours)
    found = find_leftovers(world.cloud.clients("us-east-1"), now=now, is_over=lambda *_: False)
    return [leftover.reason for leftover in found]


def test_a_machine_whose_group_is_gone_is_a_leftover_after_an_hour(world: World, group: Group) -> None:
    assert _reasons(world, 2) == []
    del world.cloud.state.groups[group.name]
    assert _reasons(world, 0.9) == []
    assert _reasons(world, 1.1) == ["its group is gone"]


def test_what_bears_a_run_s_tag_and_no_expiry_is_a_leftover(world: World) -> None:
    tags = [{"Key": RUN_TAG, "Value": "digits-9"}]
    world.cloud.clients("us-east-1")("ec2").create_launch_template(
        LaunchTemplateName="mtl-cloud-digits-9",
        LaunchTemplateData={},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    assert _reasons(world, 0) == ["has no expiry"]
    tags.append({"Key": EXPIRES_TAG, "Value": (START + timedelta(hours=1)).isoformat()})
    world.cloud.state.templates["mtl-cloud-digits-9"]["Tags"] = tags
    assert _reasons(world, 0) == []
    assert _reasons(world, 1) == [f"expired at {(START + timedelta(hours=1)).isoformat()}"]


def test_the_regions_to_search_are_those_that_the_account_has() -> None:
    with moto_clients() as clients:
        regions = enabled_regions(clients)
    assert regions == sorted(regions)
    assert {"us-east-1", "eu-central-1"} <= set(regions)
