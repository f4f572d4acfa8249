"""News of a run's machines: phases and refusals in their order, and the ends that AWS itself would never come to."""

from __future__ import annotations

import pytest
from ec2_harness import World, ec2_plan, end_run

from mtl_cloud.errors import CapacityError, CloudError, LaunchError
from mtl_cloud.launch.base import RunHandle
from mtl_cloud.runs.events import Finished, MachineNews
from mtl_cloud.runs.follow import follow
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import BootRecord, PlanRecord
from mtl_cloud.testing.ec2 import Pool

ICE = "InsufficientInstanceCapacity"
NO_SPOT = "There is no Spot capacity available that matches your request."
MAX_SPOT = "Max spot instance count exceeded."
NOT_HERE = "InvalidFleetConfiguration - Your requested instance type (p3.8xlarge) is not supported in your requested "
NOT_HERE += "Availability Zone (us-east-1a)."


def boot(instance: str, phase: str, message: str = "", at: str = "2026-01-01T00:02:00+00:00") -> bytes:
    return BootRecord(
        instance=instance,
        instance_type="p4d.24xlarge",
        zone="us-east-1b",
        market="on-demand",
        phase=phase,
        message=message,
        started_at="2026-01-01T00:01:30+00:00",
        at=at,
    ).encode()


def watched(world: World, plan: PlanRecord, minutes: float = 30) -> list[tuple[str, str]]:
    """Submit, and look every ten seconds; what was told."""
    if not RunRecord(world.storage, plan.run_id).exists():
        world.make_run(plan)
    launcher = world.launcher()
    launcher.submit(launcher.prepare(plan))
    watch, told = launcher.watch(RunHandle.of(plan)), []
    for _ in range(int(minutes * 6)):
        told += [(news.phase, news.message) for news in watch.look()]
        world.pass_time(seconds=10)
    return told


def test_zone_a_refuses_twice_and_b_accepts() -> None:
    world = World(script={"us-east-1a": [ICE, ICE]})
    told = watched(world, ec2_plan())
    assert [phase for phase, _ in told] == ["requesting", "refused", "launched"]
    assert told[0] == ("requesting", "p4d.24xlarge, on demand, in us-east-1")
    assert told[1][1].startswith(
        "in us-east-1a: Could not launch On-Demand Instances. InsufficientInstanceCapacity - We"
    )
    assert told[1][1].endswith("(capacity)")
    assert told[2][1] == "i-00000000000000001 in us-east-1b"


def test_a_dry_pool_is_passed_over_for_the_next_zone_and_an_interruption_brings_a_replacement() -> None:
    pools = {Pool("p4d.24xlarge", "us-east-1a", "spot"): 0}
    world = World(capacity=pools)
    plan = ec2_plan(purchase="spot")
    watched(world, plan, minutes=5)
    (first,) = world.cloud.alive()
    world.cloud.end(first)
    told = watched(world, plan, minutes=5)
    assert [phase for phase, _ in told] == ["requesting", "refused", "launched", "gone", "launched"]
    assert f"{first}: At 2026-01-01T00:05:00Z it was taken out of service" in told[3][1]


def test_a_refusal_is_news_again_once_a_machine_has_come_and_gone() -> None:
    world = World(capacity={Pool("p4d.24xlarge", "us-east-1a", "spot"): 0}, tries_per_zone=1)
    scarce = {zone: ["UnfulfillableCapacity"] for zone in ("us-east-1b", "us-east-1c")}

    def interrupt() -> None:
        world.cloud._script.update(scarce)
        world.cloud.end(world.cloud.alive()[0])

    world.fake_clock.at(600, interrupt)
    told = watched(world, ec2_plan(purchase="spot"), minutes=30)
    zones = [message[3:13] for phase, message in told if phase == "refused"]
    assert [phase for phase, _ in told] == ["requesting", "refused", "launched", "gone", *["refused"] * 3, "launched"]
    assert zones == ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1a"]


def test_a_pool_that_dries_up_for_ever_ends_with_every_zones_reason_when_the_patience_is_over() -> None:
    world = World(
        script={"us-east-1a": [ICE + "*"], "us-east-1b": ["UnfulfillableCapacity*"], "us-east-1c": [NOT_HERE + "*"]}
    )
    with pytest.raises(CapacityError, match="digits-1: AWS found no machine within 20 minutes") as caught:
        watched(world, ec2_plan(capacity_timeout_minutes=20))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert 20 * 60 <= world.fake_clock.seconds < 23 * 60
    assert world.cloud.what_is_left() == []


def test_without_a_limit_to_the_patience_aws_goes_on_looking() -> None:
    world = World(script={zone: [ICE] * 200 for zone in ("us-east-1a", "us-east-1b", "us-east-1c")})
    told = watched(world, ec2_plan(capacity_timeout_minutes=None), minutes=120)
    assert [phase for phase, _ in told] == ["requesting", "refused", "refused", "refused"]


@pytest.mark.parametrize(
    ("refusal", "error_class"),
    [
        ("VcpuLimitExceeded", "quota"),
        (MAX_SPOT, "quota"),
        ("You are not authorized to perform this operation.", "permission"),
        ("UnauthorizedOperation", "permission"),
        ("InvalidAMIID.NotFound", "permanent"),
        ("AuthFailure", "credentials"),
    ],
)
def test_what_waiting_does_not_help_stops_at_once_and_leaves_nothing(refusal: str, error_class: str) -> None:
    world = World(script={"us-east-1a": [refusal + "*"]})
    with pytest.raises(CloudError, match="digits-1: refused in us-east-1a: ") as caught:
        watched(world, ec2_plan())
    assert caught.value.error_class == error_class
    assert not isinstance(caught.value, CapacityError)
    assert caught.value.hint
    assert world.fake_clock.seconds < 300
    assert world.cloud.what_is_left() == []


@pytest.mark.parametrize(
    "refusal", [ICE, "UnfulfillableCapacity", NO_SPOT, NOT_HERE, "InsufficientFreeAddressesInSubnet"]
)
def test_what_another_zone_may_have_is_waited_for(refusal: str) -> None:
    world = World(script={"us-east-1a": [refusal] * 2})
    watched(world, ec2_plan())
    assert len(world.cloud.alive()) == 1


def test_a_quota_of_the_account_is_met_as_aws_says_it() -> None:
    world = World(quota_vcpus={"on-demand": 64})
    with pytest.raises(CloudError, match="your current vCPU limit of 64") as caught:
        watched(world, ec2_plan())
    assert (caught.value.code, caught.value.error_class) == ("VcpuLimitExceeded", "quota")


def test_an_error_that_nobody_knows_is_shown_as_it_is_and_never_as_capacity() -> None:
    world = World(script={zone: ["The stars were not right.*"] for zone in ("us-east-1a", "us-east-1b", "us-east-1c")})
    with pytest.raises(CloudError, match="us-east-1a: The stars were not right") as caught:
        watched(world, ec2_plan(capacity_timeout_minutes=10))
    assert not isinstance(caught.value, CapacityError)


def test_a_refusal_from_before_the_group_was_opened_again_is_past() -> None:
    world = World(script={"us-east-1a": ["VcpuLimitExceeded"]})
    plan = ec2_plan()
    world.make_run(plan)
    world.submit(plan)
    closed = {"AutoScalingGroupName": "mtl-cloud-digits-1", "MinSize": 0, "MaxSize": 0, "DesiredCapacity": 0}
    world.pass_time(seconds=1)
    world.cloud.clients("us-east-1")("autoscaling").update_auto_scaling_group(**closed)
    world.pass_time(minutes=10)  # the quota is raised
    told = watched(world, plan, minutes=3)
    assert [phase for phase, _ in told] == ["requesting", "launched"]


def test_a_machine_tells_its_own_phases_and_where_its_boot_log_is_when_the_group_has_given_up() -> None:
    world, plan = World(), ec2_plan()
    run = world.make_run(plan)
    world.storage.write(run.paths.boot("i-1"), boot("i-1", "pulling", "image:1"))
    told = watched(world, plan, minutes=1)
    assert ("pulling", "i-1 (p4d.24xlarge, on-demand, us-east-1b): image:1") in told
    world.storage.write(run.paths.boot("i-1"), boot("i-1", "failed", "docker pull failed", "2026-01-01T00:03:00+00:00"))
    closed = {"AutoScalingGroupName": "mtl-cloud-digits-1", "MinSize": 0, "MaxSize": 0, "DesiredCapacity": 0}
    world.cloud.clients("us-east-1")("autoscaling").update_auto_scaling_group(**closed)
    watch = world.launcher().watch(RunHandle.of(plan))
    watch.look()
    world.pass_time(minutes=3)
    with pytest.raises(LaunchError, match="i-1 failed: docker pull failed") as caught:
        watch.look()
    assert str(caught.value.hint).endswith("runs/digits-1/boots/i-1.log")


def test_following_a_run_tells_its_machines_news_beside_its_record_and_ends_with_it() -> None:
    world, plan = World(), ec2_plan()
    run = world.make_run(plan)
    launcher = world.launcher()
    handle = launcher.submit(launcher.prepare(plan))
    world.fake_clock.at(3600, lambda: end_run(run))
    events = list(follow(run, clock=world.clock, machine=launcher.watch(handle)))
    assert [event.phase for event in events if isinstance(event, MachineNews)] == ["requesting", "launched"]
    assert isinstance(events[-1], Finished)
