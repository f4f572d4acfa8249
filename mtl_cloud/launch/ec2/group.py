"""A run's resources at AWS: a launch template and an Auto Scaling group of one, created, described and removed by name.

The two share a key: a tag of both, which the template's boot script contains. Only with this key may the run's machine
close the group. A group is created with the key of the existing template.

Every method may be repeated after a crash at any point: existing resources are adopted, missing ones are ignored.
Writes go by name and never depend on an earlier read, because reads may be seconds old; only the group refers to its
template by id, because of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from mtl_cloud.aws import ClientMaker, ErrorClass, translated
from mtl_cloud.clock import Clock
from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.json_types import Json
from mtl_cloud.launch.ec2.request import PLANNED, Template
from mtl_cloud.launch.tags import read_tags
from mtl_cloud.names import KEY_TAG, RUN_TAG, aws_name

__all__ = ["ALIVE", "Group", "GroupState"]

Requests: TypeAlias = Mapping[str, Mapping[str, Json]]
"""Operation -> its parameters."""

_TAKEN = {"AlreadyExists", "AlreadyExistsFault", "InvalidLaunchTemplateName.AlreadyExistsException"}
_ABSENT = {"InvalidLaunchTemplateName.NotFoundException", "InvalidLaunchTemplateId.NotFound"}
_GROUP_ABSENT = "not found"
_REMOVAL_S = 900.0
_LOOK_S = 5.0
_LOOKS = 12
"""Attempts to read a template that AWS reports as existing."""
_SETTLED_S = 15.0
"""AWS's reads may be some seconds old."""
ALIVE = ["pending", "running", "shutting-down", "stopping", "stopped"]
"""States of an instance that is not terminated."""


@dataclass(frozen=True)
class GroupState:
    """The state of the group."""

    wanted: int
    instances: tuple[str, ...]
    """Ids of its instances, in any lifecycle state."""
    in_service: bool
    """Whether one of them is in service."""

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Self:
        instances = group["Instances"]
        return cls(
            wanted=group["DesiredCapacity"],
            instances=tuple(instance["InstanceId"] for instance in instances),
            in_service=any(instance["LifecycleState"] == "InService" for instance in instances),
        )


class Group:
    """The run's group in its region."""

    def __init__(self, run_id: str, clients: ClientMaker, clock: Clock) -> None:
        self._run_id = run_id
        self._clients = clients
        self._clock = clock
        self.name = aws_name(run_id)

    def find(self) -> GroupState | None:
        """The state of the group; None if it does not exist or is being deleted."""
        groups = [group for group in self._described() if not group.get("Status")]
        return GroupState.of(groups[0]) if groups else None

    def _described(self) -> list[dict[str, Any]]:
        """AWS's description: at most one group, which may be in deletion."""
        with translated("autoscaling", where=self._run_id):
            answer = self._clients("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        groups: list[dict[str, Any]] = answer["AutoScalingGroups"]
        return groups

    def activities(self) -> list[dict[str, Any]]:
        """The newest hundred launches and terminations, failed ones included, oldest first; empty without a group."""
        with translated("autoscaling", where=self._run_id), _ignoring(absent=True):
            answer = self._clients("autoscaling").describe_scaling_activities(AutoScalingGroupName=self.name)
            activities: list[dict[str, Any]] = answer["Activities"][::-1]
            return activities
        return []

    def make(self, requests: Callable[[Template], Requests], *, key: str) -> None:
        """Template and group, the group at size zero. ``key`` is that of a template that is made now.

        The group refers by id to the template whose key it has: if that template is removed meanwhile, AWS refuses the
        group, even if another template has the same name by then.
        """
        request = requests(self._template(requests, key))["create_auto_scaling_group"]
        with translated("autoscaling", where=self._run_id), _ignoring(taken=True):
            self._clients("autoscaling").create_auto_scaling_group(**request)

    def _template(self, requests: Callable[[Template], Requests], key: str) -> Template:
        """Create the template with ``key``, or wait for AWS to show the one that an earlier submit created."""
        request = requests(replace(PLANNED, key=key))["create_launch_template"]
        for _ in range(_LOOKS):
            with translated("ec2", where=self._run_id), _ignoring(taken=True):
                made = self._clients("ec2").create_launch_template(**request)
                return Template(id=made["LaunchTemplate"]["LaunchTemplateId"], key=key)
            if found := self._found_template():
                return found
            self._clock.sleep(_LOOK_S)
        raise LaunchError(
            f"{self._run_id}: AWS has a launch template {self.name}, but does not show its tag {KEY_TAG}",
            hint="submit again in a minute; one that has no such tag is of an older mtl-cloud: gc removes it",
        )

    def _found_template(self) -> Template | None:
        """The existing template; None while AWS does not show it with its key."""
        with translated("ec2", where=self._run_id), _ignoring(absent=True):
            answer = self._clients("ec2").describe_launch_templates(LaunchTemplateNames=[self.name])
            (found,) = answer["LaunchTemplates"]
            key = read_tags(found.get("Tags", [])).get(KEY_TAG)
            return Template(id=found["LaunchTemplateId"], key=key) if key else None
        return None

    def open(self, requests: Requests) -> None:
        """Schedule scale-to-zero, then set capacity to 1. AWS refuses a schedule in the past."""
        for operation in ("put_scheduled_update_group_action", "update_auto_scaling_group"):
            with translated("autoscaling", where=self._run_id):
                getattr(self._clients("autoscaling"), operation)(**requests[operation])

    def remove(self) -> None:
        """``delete``, then ``finish``."""
        self.delete()
        self.finish()

    def delete(self) -> None:
        """Delete the group with its instances, which have time to shut down."""
        with translated("autoscaling", where=self._run_id), _ignoring(absent=True):
            self._clients("autoscaling").delete_auto_scaling_group(AutoScalingGroupName=self.name, ForceDelete=True)

    def finish(self) -> None:
        """Wait until AWS confirms that no group and no instance is left, then delete the template.

        Several reads must show nothing, since one may be from before the last launch. An instance without a group is
        terminated.

        Raises ``LaunchError`` when something still exists after fifteen minutes.
        """
        start = clear_since = self._clock.monotonic()
        while (now := self._clock.monotonic()) - clear_since < _SETTLED_S:
            self._clock.sleep(_LOOK_S)
            if left := self._left():
                clear_since = self._clock.monotonic()
            if left and now - start > _REMOVAL_S:
                raise LaunchError(
                    f"{self._run_id}: AWS has not removed {', '.join(left)} within {_REMOVAL_S / 60:.0f} minutes",
                    hint=f"mtl-cloud cancel {self._run_id} tries again; gc removes it past its expiry",
                )
        with translated("ec2", where=self._run_id), _ignoring(absent=True):
            self._clients("ec2").delete_launch_template(LaunchTemplateName=self.name)

    def _left(self) -> list[str]:
        """Names of what still exists; if AWS is too busy to answer, the group counts as existing."""
        try:
            return [group["AutoScalingGroupName"] for group in self._described()] or self._stray_instances()
        except CloudError as error:
            if ErrorClass(error.error_class).may_pass:
                return [self.name]
            raise

    def _stray_instances(self) -> list[str]:
        """Ids of the run's instances that are not terminated yet, after asking AWS to terminate them."""
        filters = [
            {"Name": f"tag:{RUN_TAG}", "Values": [self._run_id]},
            {"Name": "instance-state-name", "Values": ALIVE},
        ]
        with translated("ec2", where=self._run_id):
            answer = self._clients("ec2").describe_instances(Filters=filters)
            found = [instance for held in answer["Reservations"] for instance in held["Instances"]]
            running = [one["InstanceId"] for one in found if one["State"]["Name"] != "shutting-down"]
            if running:
                self._clients("ec2").terminate_instances(InstanceIds=running)
        return [instance["InstanceId"] for instance in found]


@contextmanager
def _ignoring(*, taken: bool = False, absent: bool = False) -> Iterator[None]:
    """Ignore AWS's error that a new resource exists already, or that a removed one does not exist."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        is_absent = code in _ABSENT or (code == "ValidationError" and _GROUP_ABSENT in message)
        if not (taken and code in _TAKEN) and not (absent and is_absent):
            raise
