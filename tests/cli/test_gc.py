"""``gc`` looks in several regions, and says which it may not look at."""

from __future__ import annotations

import json

import pytest

from mtl_cloud import cli
from mtl_cloud.clock import Clock
from mtl_cloud.testing.ec2 import CloudDouble

TAGS = {"mtl-cloud:run": "digits-1", "mtl-cloud:owner": "ada", "mtl-cloud:expires-at": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, CloudDouble]:
    """Two regions; in one of them a template has outlived its run."""
    there = {region: CloudDouble(Clock(), zones={"subnet-1": f"{region}a"}) for region in ("us-east-1", "eu-west-1")}
    tags = [{"Key": key, "Value": value} for key, value in TAGS.items()]
    there["eu-west-1"].clients("eu-west-1")("ec2").create_launch_template(
        LaunchTemplateName="mtl-cloud-digits-1",
        LaunchTemplateData={},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    monkeypatch.setattr("mtl_cloud.aws.AwsClients", lambda region: there[region].clients(region))
    return there


def gc(*options: str) -> int:
    return cli.main(["gc", "--dry-run", "--region", "us-east-1", "--region", "eu-west-1", *options])


def test_what_is_left_is_found_in_each_region(
    world: dict[str, CloudDouble], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gc("--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "run_id": "digits-1",
        "owner": "ada",
        "reason": "expired at 2026-01-01T00:00:00+00:00",
        "names": ["template mtl-cloud-digits-1"],
        "region": "eu-west-1",
        "removed": False,
    }


def test_one_region_alone_is_looked_at_where_it_is_named(
    world: dict[str, CloudDouble], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gc", "--region", "us-east-1"]) == 0
    assert capsys.readouterr().out == "nothing is left in us-east-1\n"
    assert world["eu-west-1"].calls == ["CreateLaunchTemplate"]


def test_a_region_that_is_closed_is_named_and_the_others_are_looked_at(
    world: dict[str, CloudDouble], capsys: pytest.CaptureFixture[str]
) -> None:
    world["us-east-1"].refuse_next("DescribeAutoScalingGroups", "UnauthorizedOperation", "closed by the organisation")
    assert gc() == 0
    said = capsys.readouterr()
    assert "digits-1" in said.out
    assert "us-east-1: not searched: " in said.err
    assert "closed by the organisation" in said.err


def test_nothing_is_not_said_of_regions_that_were_not_looked_at(
    world: dict[str, CloudDouble], capsys: pytest.CaptureFixture[str]
) -> None:
    for double in world.values():
        double.refuse_next("DescribeAutoScalingGroups", "UnauthorizedOperation", "closed by the organisation")
    assert gc() != 0
    said = capsys.readouterr()
    assert "nothing is left" not in said.out
    assert "closed by the organisation" in said.err


def test_any_other_error_ends_it(world: dict[str, CloudDouble], capsys: pytest.CaptureFixture[str]) -> None:
    world["us-east-1"].refuse_next("DescribeAutoScalingGroups", "ExpiredToken", "the token is over")
    assert gc() != 0
    assert "the token is over" in capsys.readouterr().err
