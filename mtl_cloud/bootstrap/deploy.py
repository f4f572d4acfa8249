"""Deploying the stack: a change set is made and shown, then executed, or withdrawn. All of it may be repeated.

What was begun by somebody else, or by a bootstrap that died, is waited for and then looked at anew; a first creation
that failed is cleared away, because CloudFormation neither updates nor adopts its remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.aws.stack import Bootstrap, find_stack, stack_outputs
from mtl_cloud.bootstrap.network import network_parameters
from mtl_cloud.bootstrap.template import template_text
from mtl_cloud.clock import Clock
from mtl_cloud.errors import LaunchError
from mtl_cloud.names import SERVICE_ROLE_OWNERS, STACK

__all__ = ["Change", "Deployment", "Proposal"]

_LOOK_S = 3.0
_SETTLED_WITHIN_S = 1800.0
_FAILED_FIRST_TIME = {"CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED"}
_NOTHING_TO_CHANGE = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True)
class Change:
    """One resource that CloudFormation would touch."""

    action: str
    """Add, Modify or Remove, as CloudFormation calls it."""
    resource: str
    kind: str
    """``AWS::S3::Bucket``, ..."""
    replacement: bool = False
    """It would be made anew: what it holds is lost."""


@dataclass(frozen=True)
class Proposal:
    """A change set that waits for a yes. Without changes there is none, and nothing to say yes to."""

    name: str
    creates: bool
    """The stack is not there yet."""
    changes: tuple[Change, ...]


class Deployment:
    """The stack of one region. ``report`` hears of every resource that CloudFormation has dealt with.

    All methods raise ``CloudError`` when AWS refuses, and ``LaunchError`` when CloudFormation fails or does not finish.
    """

    def __init__(self, clients: ClientMaker, clock: Clock, report: Callable[[str], None] = lambda _: None) -> None:
        self._clients = clients
        self._clock = clock
        self._report = report
        self._cloudformation = clients("cloudformation")

    def propose(self, vpc: str | None = None) -> Proposal:
        """Propose changes. ``vpc``: an existing VPC; None keeps that of the stack, or creates one."""
        stack = self._settled()
        if stack and stack["StackStatus"] in _FAILED_FIRST_TIME:
            self._delete(stack)
            stack = None
        creates = stack is None or stack["StackStatus"] == "REVIEW_IN_PROGRESS"
        had = {p["ParameterKey"]: p.get("ParameterValue", "") for p in (stack or {}).get("Parameters", [])}
        with translated("ec2", where=vpc or ""):
            parameters = network_parameters(self._clients("ec2"), had, vpc)
        name = f"bootstrap-{self._clock.now():%Y%m%dT%H%M%S%f}"
        with translated("cloudformation", where=STACK):
            self._cloudformation.create_change_set(
                StackName=STACK,
                ChangeSetName=name,
                ChangeSetType="CREATE" if creates else "UPDATE",
                TemplateBody=template_text(),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
                Capabilities=["CAPABILITY_NAMED_IAM"],
            )
        return Proposal(name, creates, tuple(self._changes(name)))

    def accept(self, proposal: Proposal) -> Bootstrap:
        """Make the service-linked roles, carry the changes out, and read what is there then."""
        self._make_service_roles()
        if proposal.changes:
            past = self._event_ids()
            with translated("cloudformation", where=STACK):
                self._cloudformation.execute_change_set(StackName=STACK, ChangeSetName=proposal.name)
            self._clock.sleep(_LOOK_S)  # a look at once may still see the stack as it was
            self._require_success(self._settled(set(past)), past)
        with translated("cloudformation", where=STACK):
            return stack_outputs(self._cloudformation)

    def withdraw(self, proposal: Proposal) -> None:
        """Leave nothing of a proposal that was declined."""
        with translated("cloudformation", where=STACK):
            if proposal.creates:
                self._cloudformation.delete_stack(StackName=STACK)
            else:
                self._cloudformation.delete_change_set(StackName=STACK, ChangeSetName=proposal.name)

    def destroy(self) -> bool:
        """Delete the stack; False when there is none. The caller has asked ``what_is_left`` before."""
        stack = self._settled()
        if stack is None:
            return False
        self._delete(stack)
        return True

    # --- change sets ---

    def _changes(self, name: str) -> Iterator[Change]:
        described = self._described(name)
        if described["Status"] == "FAILED":
            reason = described.get("StatusReason", "")
            with translated("cloudformation", where=STACK):
                self._cloudformation.delete_change_set(StackName=STACK, ChangeSetName=name)
            if not any(words in reason for words in _NOTHING_TO_CHANGE):
                raise LaunchError(f"the stack {STACK!r}: no change set: {reason}")
            return
        while True:
            yield from (_change(found["ResourceChange"]) for found in described["Changes"])
            if "NextToken" not in described:
                return
            described = self._described(name, NextToken=described["NextToken"])

    def _described(self, name: str, **page: str) -> dict[str, Any]:
        for _ in self._patience(f"the change set of {STACK!r}"):
            with translated("cloudformation", where=STACK):
                found: dict[str, Any] = self._cloudformation.describe_change_set(
                    StackName=STACK, ChangeSetName=name, **page
                )
            if found["Status"] in {"CREATE_COMPLETE", "FAILED"}:
                return found
        raise AssertionError("patience ends in an error")

    # --- stacks ---

    def _settled(self, told: set[str] | None = None) -> dict[str, Any] | None:
        """The stack, once nothing is under way in it."""
        for _ in self._patience(f"the stack {STACK!r}"):
            with translated("cloudformation", where=STACK):
                stack = find_stack(self._cloudformation)
            if stack and told is not None:
                self._tell(told)
            status = stack["StackStatus"] if stack else ""
            if status == "REVIEW_IN_PROGRESS" or not status.endswith("_IN_PROGRESS"):
                return stack
        raise AssertionError("patience ends in an error")

    def _delete(self, stack: dict[str, Any]) -> None:
        past = self._event_ids()
        with translated("cloudformation", where=STACK):
            self._cloudformation.delete_stack(StackName=STACK)
        for _ in self._patience(f"the stack {STACK!r}"):
            with translated("cloudformation", where=STACK):
                # By its id: a deleted stack is not found by name any more.
                (found,) = self._cloudformation.describe_stacks(StackName=stack["StackId"])["Stacks"]
            if found["StackStatus"] == "DELETE_COMPLETE":
                return
            if found["StackStatus"] == "DELETE_FAILED":
                raise self._failure("DELETE_FAILED", past)

    def _require_success(self, stack: dict[str, Any] | None, past: frozenset[str]) -> None:
        status = stack["StackStatus"] if stack else "gone"
        if status not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
            raise self._failure(status, past)

    def _failure(self, status: str, past: frozenset[str]) -> LaunchError:
        """With the reasons that the failed resources gave, oldest first: the last are only cancelled with the first."""
        reasons = [
            f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', event['ResourceStatus'])}"
            for event in self._events()
            if event["ResourceStatus"].endswith("_FAILED") and event["EventId"] not in past
        ]
        shown = "\n".join(f"  {reason}" for reason in reversed(reasons))
        return LaunchError(
            f"the stack {STACK!r} is {status}{':' if shown else ''}\n{shown}".rstrip(),
            hint="making it needs rights to make IAM roles, a VPC and a bucket: let an administrator run bootstrap; "
            "then run it again",
        )

    def _tell(self, told: set[str]) -> None:
        for event in reversed(self._events()):
            if event["EventId"] not in told:
                told.add(event["EventId"])
                self._report(f"{event['LogicalResourceId']}: {event['ResourceStatus'].lower().replace('_', ' ')}")

    def _event_ids(self) -> frozenset[str]:
        return frozenset(event["EventId"] for event in self._events())

    def _events(self) -> list[dict[str, Any]]:
        """The newest hundred, newest first."""
        with translated("cloudformation", where=STACK):
            events: list[dict[str, Any]] = self._cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
        return events

    def _patience(self, what: str) -> Iterator[None]:
        """Turns to look, three seconds apart, for half an hour."""
        end = self._clock.monotonic() + _SETTLED_WITHIN_S
        while self._clock.monotonic() < end:
            yield
            self._clock.sleep(_LOOK_S)
        raise LaunchError(f"{what} has not settled within half an hour", hint="see the CloudFormation console")

    # --- roles of AWS's own ---

    def _make_service_roles(self) -> None:
        from botocore.exceptions import ClientError

        for service in SERVICE_ROLE_OWNERS:
            with translated("iam", where=service):
                try:
                    self._clients("iam").create_service_linked_role(AWSServiceName=service)
                except ClientError as error:
                    if "has been taken" not in str(error):  # IAM's answer where it exists, under a common code
                        raise


def _change(found: dict[str, Any]) -> Change:
    return Change(
        action=found["Action"],
        resource=found["LogicalResourceId"],
        kind=found["ResourceType"],
        replacement=found.get("Replacement") in {"True", "Conditional"},
    )
