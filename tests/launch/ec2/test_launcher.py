"""The EC2 launcher in the double's account: what it makes, adopts, refuses and removes."""

from __future__ import annotations

import pytest
from ec2_harness import World, ec2_plan, end_run

from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CancelRecord

PLAN = ec2_plan()
HANDLE = RunHandle.of(PLAN)
GROUP = "mtl-cloud-digits-1"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def run(world: World) -> RunRecord:
    return world.make_run(PLAN)


def test_a_new_run_takes_five_requests_and_gets_one_machine(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    assert world.cloud.calls == [
        "DescribeAutoScalingGroups",
        "CreateLaunchTemplate",
        "CreateAutoScalingGroup",
        "PutScheduledUpdateGroupAction",
        "UpdateAutoScalingGroup",
    ]
    assert len(world.cloud.alive()) == 1


def test_the_groups_key_is_at_aws_alone_and_nowhere_in_the_record_or_on_the_machine(world: World) -> None:
    submit_run(PLAN, spec_yaml=b"", spec_json=b"{}", storage=world.storage, launcher=world.launcher())
    key, same = world.keys()
    assert key == same
    record = {entry.key: world.storage.read(entry.key) for entry in world.storage.list("")}
    assert b"made-by-submit" in record["runs/digits-1/plan.json"]
    assert not any(key in name or key.encode() in data for name, data in record.items())
    (machine,) = world.cloud.state.instances.values()
    assert key not in str(machine)


def test_no_two_runs_have_one_key(world: World, run: RunRecord) -> None:
    """With the randomness that the commands use."""
    keys = set()
    for number in range(3):
        plan = ec2_plan(f"digits-{number + 2}")
        world.make_run(plan)
        launcher = Ec2Launcher(clients=world.cloud.clients, storages=lambda _: world.storage, clock=world.clock)
        launcher.submit(launcher.prepare(plan))
        keys |= set(world.keys(plan.run_id))
    assert sorted(map(len, keys)) == [32, 32, 32]


def test_submitting_again_looks_and_changes_nothing(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    made = len(world.cloud.calls)
    for _ in range(3):
        world.submit(PLAN)
        world.pass_time(minutes=5)
    assert world.cloud.calls[made:] == ["DescribeAutoScalingGroups"] * 3
    assert len(world.cloud.alive()) == 1


def test_a_run_goes_from_pending_to_running_and_its_replacement_as_well(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    launcher = world.launcher()
    assert launcher.describe(HANDLE) is BackendState.PENDING
    world.pass_time(minutes=1)
    assert launcher.describe(HANDLE) is BackendState.RUNNING
    (first,) = world.cloud.alive()
    world.cloud.end(first)
    assert launcher.describe(HANDLE) is BackendState.PENDING
    world.pass_time(minutes=1)
    assert launcher.describe(HANDLE) is BackendState.RUNNING
    assert world.cloud.alive() != [first]


def test_the_wall_takes_the_machine_when_everything_of_ours_is_dead(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    world.pass_time(hours=11, minutes=29)
    assert len(world.cloud.alive()) == 1
    world.pass_time(minutes=2)
    assert world.cloud.alive() == []
    assert world.launcher().describe(HANDLE) is BackendState.ENDED


def test_stopping_leaves_nothing_and_may_be_repeated(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    world.pass_time(minutes=1)
    for _ in range(2):
        world.launcher().stop(HANDLE)
        assert world.cloud.what_is_left() == []
        assert world.launcher().describe(HANDLE) is BackendState.ENDED


def test_stopping_waits_until_aws_confirms_even_where_looks_are_old_and_refused() -> None:
    world = World(lag_s=12)
    world.make_run(PLAN)
    world.submit(PLAN)
    world.cloud.refuse_next("DescribeInstances", "RequestLimitExceeded")
    world.launcher().stop(HANDLE)
    assert world.cloud.what_is_left() == []
    assert world.fake_clock.seconds >= 60  # the time that the double's machines take to go


def test_a_run_that_is_over_is_left_alone(world: World, run: RunRecord) -> None:
    end_run(run)
    world.submit(PLAN)
    assert world.cloud.calls == []


def test_a_run_that_was_cancelled_gets_no_machine(world: World, run: RunRecord) -> None:
    run.request_cancel(CancelRecord(at="2026-01-01T00:00:00+00:00", by="ada"))
    world.submit(PLAN)
    assert world.cloud.calls == []


def test_a_group_that_was_closed_is_opened_again_behind_a_new_wall(world: World, run: RunRecord) -> None:
    world.submit(PLAN)
    sizes = {"AutoScalingGroupName": GROUP, "MinSize": 0, "MaxSize": 0, "DesiredCapacity": 0}
    world.cloud.clients("us-east-1")("autoscaling").update_auto_scaling_group(**sizes)
    assert world.cloud.alive() == []
    world.submit(PLAN)
    assert len(world.cloud.alive()) == 1
    world.pass_time(hours=12)
    assert world.cloud.alive() == []


def test_a_run_whose_time_is_over_is_refused_with_what_to_do(world: World, run: RunRecord) -> None:
    world.pass_time(hours=12)
    with pytest.raises(LaunchError, match="digits-1: the run expired at 2026-01-01 11:30 UTC") as caught:
        world.submit(PLAN)
    assert "new run" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("operation", "code", "error_class"),
    [
        ("CreateLaunchTemplate", "UnauthorizedOperation", "permission"),
        ("CreateAutoScalingGroup", "LimitExceeded", "quota"),
        ("PutScheduledUpdateGroupAction", "ResourceContention", "throttle"),
        ("UpdateAutoScalingGroup", "ExpiredToken", "credentials"),
        ("DescribeAutoScalingGroups", "NovelTrouble", "unknown"),
    ],
)
def test_a_refused_request_is_named_and_submitting_again_goes_on_from_there(
    world: World, run: RunRecord, operation: str, code: str, error_class: str
) -> None:
    world.cloud.refuse_next(operation, code)
    with pytest.raises(CloudError, match=f"digits-1: .*{operation}") as caught:
        world.submit(PLAN)
    assert (caught.value.code, caught.value.error_class) == (code, error_class)
    assert world.cloud.alive() == []
    world.submit(PLAN)
    assert len(world.cloud.alive()) == 1


def test_two_runs_do_not_touch_each_other(world: World, run: RunRecord) -> None:
    other = ec2_plan("digits-2")
    world.make_run(other)
    world.submit(PLAN)
    world.submit(other)
    world.launcher().stop(HANDLE)
    assert len(world.cloud.alive()) == 1
    assert world.launcher().describe(RunHandle.of(other)) is BackendState.RUNNING
