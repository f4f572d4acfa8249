"""Bootstrap as a story: propose, accept, again, decline, destroy; and after a death at any request."""

from __future__ import annotations

from typing import Any

import pytest
from run_harness import FakeClock
from stack_double import Account, Clients, Killed

from mtl_cloud.aws.stack import Bootstrap, stack_outputs
from mtl_cloud.bootstrap.deploy import Deployment
from mtl_cloud.bootstrap.remains import what_is_left
from mtl_cloud.errors import CloudError, LaunchError

ROLES = ["autoscaling.amazonaws.com", "spot.amazonaws.com"]


def bootstrap(clients: Clients, vpc: str | None = None, **options: Any) -> Bootstrap:
    deployment = Deployment(clients, FakeClock(), **options)
    return deployment.accept(deployment.propose(vpc))


def test_the_changes_are_shown_before_anything_is_made() -> None:
    account = Account()
    proposal = Deployment(account.clients(), FakeClock()).propose()
    assert [(change.action, change.resource) for change in proposal.changes] == [("Add", "R"), ("Add", "R2")]
    assert (proposal.creates, account.made, account.service_roles) == (True, 0, [])


def test_bootstrap_makes_the_stack_and_the_roles_that_aws_itself_needs_and_tells_of_progress() -> None:
    account, told = Account(), list[str]()
    made = bootstrap(account.clients(), report=told.append)
    assert made.subnets == {f"us-east-1{zone}": f"subnet-{zone}" for zone in "abc"}
    assert (account.made, account.service_roles) == (1, ROLES)
    assert told == ["Bucket: create complete"]


def test_again_it_finds_nothing_to_change_and_leaves_no_change_set() -> None:
    account = Account()
    first = bootstrap(account.clients())
    deployment = Deployment(account.clients(), FakeClock())
    proposal = deployment.propose()
    assert (proposal.changes, account.change_sets) == ((), {})
    assert deployment.accept(proposal) == first
    assert account.made == 1


def test_a_stack_of_an_older_mtl_cloud_is_named_as_such_and_mended_by_the_next_bootstrap() -> None:
    account = Account()
    made = bootstrap(account.clients())
    assert account.stack is not None
    account.stack["Outputs"] = [one for one in account.stack["Outputs"] if one["OutputKey"] != "GroupRoleArn"]
    account.stack["wanted"] = {}
    with pytest.raises(LaunchError, match=r"us-east-1: .* is of an older mtl-cloud: it has no GroupRoleArn") as caught:
        stack_outputs(account.clients()("cloudformation"))
    assert caught.value.hint == "mtl-cloud bootstrap --region us-east-1"
    assert bootstrap(account.clients()) == made


def test_a_zone_keeps_its_subnet_when_another_one_opens_or_closes() -> None:
    account = Account(zones="bd")
    bootstrap(account.clients())
    account.zones = "abc"
    made = bootstrap(account.clients())
    assert account.stack is not None
    assert [account.stack["wanted"][f"Zone{number}"][-1:] for number in range(1, 7)] == ["b", "d", "a", "c", "", ""]
    assert len(made.subnets) == 4


def test_of_ones_own_vpc_each_zone_gives_its_best_subnet_and_it_stays_the_stacks() -> None:
    account = Account()
    made = bootstrap(account.clients(), "vpc-1")
    assert made.subnets == {"us-east-1a": "subnet-2", "us-east-1b": "subnet-4"}
    assert Deployment(account.clients(), FakeClock()).propose().changes == ()
    with pytest.raises(LaunchError, match="vpc-empty: this VPC has no subnet"):
        Deployment(Account().clients(), FakeClock()).propose("vpc-empty")


def test_what_was_declined_leaves_nothing() -> None:
    account = Account()
    deployment = Deployment(account.clients(), FakeClock())
    deployment.withdraw(deployment.propose())
    assert account.stack is not None
    assert account.stack["StackStatus"].startswith("DELETE")
    bootstrap(account.clients())
    account.zones = "abcd"
    deployment.withdraw(deployment.propose())
    assert (account.change_sets, account.stack["StackStatus"]) == ({}, "CREATE_COMPLETE")


def test_a_failure_tells_each_resources_reason_and_the_next_bootstrap_clears_it_away() -> None:
    account = Account(fails_with="mtl-cloud-123456789012-us-east-1 already exists")
    with pytest.raises(LaunchError) as caught:
        bootstrap(account.clients())
    assert str(caught.value) == (
        "the stack 'mtl-cloud' is ROLLBACK_COMPLETE:\n  Bucket: mtl-cloud-123456789012-us-east-1 already exists"
    )
    assert bootstrap(account.clients()).bucket == "the-bucket"
    assert account.made == 2


def test_a_failed_update_leaves_the_old_outputs_and_is_told() -> None:
    account = Account(zones="ab")
    bootstrap(account.clients())
    account.zones, account.fails_with = "abc", "no more addresses"
    with pytest.raises(LaunchError, match="UPDATE_ROLLBACK_COMPLETE:\n  Bucket: no more addresses"):
        bootstrap(account.clients())
    assert len(bootstrap(account.clients()).subnets) == 3


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ({"groups": ["mtl-cloud-a-1"]}, "the group mtl-cloud-a-1"),
        ({"instances": ["i-1"]}, "the instance i-1"),
        ({"jobs": ["a-1"]}, "the SageMaker job a-1"),
        ({"bucket_holds": 3}, "data in the bucket the-bucket"),
    ],
)
def test_what_stands_in_the_way_of_destroying_is_named(what: dict[str, Any], line: str) -> None:
    account = Account()
    bootstrap(account.clients())
    assert what_is_left(account.clients()) == []
    vars(account).update(what)
    assert what_is_left(account.clients()) == [line]


def test_who_may_not_look_does_not_learn_that_nothing_is_left() -> None:
    account = Account()
    bootstrap(account.clients())

    def denied(**_: Any) -> None:
        from stack_double import error

        raise error("AccessDenied", "not authorized", "DescribeAutoScalingGroups")

    account.describe_auto_scaling_groups = denied  # type: ignore[method-assign,assignment]
    with pytest.raises(CloudError):
        what_is_left(account.clients())


def test_destroy_takes_the_stack_away_and_says_when_there_was_none() -> None:
    account = Account()
    bootstrap(account.clients())
    deployment = Deployment(account.clients(), FakeClock())
    assert [deployment.destroy(), deployment.destroy()] == [True, False]
    assert bootstrap(account.clients()).bucket == "the-bucket"


def calls_of(act: Any) -> int:
    clients = Account().clients()
    act(clients)
    return len(clients.calls)


def destroy(clients: Clients) -> None:
    bootstrap(clients)
    Deployment(clients, FakeClock()).destroy()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", [bootstrap, destroy])
def test_a_death_at_any_request_is_mended_by_the_next_bootstrap(act: Any, after: bool) -> None:
    whole = Account()
    expected = bootstrap(whole.clients())
    for last in range(1, calls_of(act) + 1):
        account = Account()
        with pytest.raises(Killed):
            act(account.clients(last, after=after))
        again = bootstrap(account.clients())
        assert again.subnets == expected.subnets, last
        assert account.stack is not None
        assert (account.stack["StackStatus"], account.service_roles) == ("CREATE_COMPLETE", ROLES)
        assert account.made <= 2 if act is destroy else account.made == 1
