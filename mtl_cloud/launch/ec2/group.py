"""What a run has at AWS: a launch template and a group of one, made, looked at and removed by name.

The two share a key, which is a tag of both and stands in the template's script: with it, and nothing else, the run's
machine may close the group. Whoever makes the group takes the key of the template that is there.

Every method may be repeated after a crash anywhere inside of it: what is made already is adopted, what is gone already
is passed over. Writes go by name and never rest on an earlier look, because a look may be seconds behind; the group
alone names its template by the id, for the key's sake.
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
from mtl_cloud.launch.ec2.names import aws_name, read_tags
from mtl_cloud.launch.ec2.request import PLANNED, Template
from mtl_cloud.launch.tags import KEY_TAG, RUN_TAG

__all__ = ["ALIVE", "Group", "GroupState"]

Requests: TypeAlias = Mapping[str, Mapping[str, Json]]
"""Operation -> its parameters."""

_TAKEN = {"AlreadyExists", "AlreadyExistsFault", "InvalidLaunchTemplateName.AlreadyExistsException"}
_ABSENT = {"InvalidLaunchTemplateName.NotFoundException", "InvalidLaunchTemplateId.NotFound"}
_GROUP_ABSENT = "not found"
_REMOVAL_S = 900.0
_LOOK_S = 5.0
_LOOKS = 12
"""At a template that is said to be there."""
_SETTLED_S = 15.0
"""AWS's looks may be some seconds old."""
ALIVE = ["pending", "running", "shutting-down", "stopping", "stopped"]
"""States of an instance that is not terminated."""


@dataclass(frozen=True)
class GroupState:
    """A look at the group."""

    wanted: int
    instances: tuple[str, ...]
    """Ids of those that are in it, at whatever stage."""
    in_service: bool
    """One of them runs."""

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
        """None when there is none, or it is being deleted."""
        groups = [group for group in self._described() if not group.get("Status")]
        return GroupState.of(groups[0]) if groups else None

    def _described(self) -> list[dict[str, Any]]:
        """As AWS tells it: at most one, which may be on its way out."""
        with translated("autoscaling", where=self._run_id):
            answer = self._clients("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        groups: list[dict[str, Any]] = answer["AutoScalingGroups"]
        return groups

    def activities(self) -> list[dict[str, Any]]:
        """The newest hundred launches and terminations, refused ones too, oldest first; none when there is no group."""
        with translated("autoscaling", where=self._run_id), _passing_over(absent=True):
            answer = self._clients("autoscaling").describe_scaling_activities(AutoScalingGroupName=self.name)
            activities: list[dict[str, Any]] = answer["Activities"][::-1]
            return activities
        return []

    def make(self, requests: Callable[[Template], Requests], *, key: str) -> None:
        """Template and group, the group at size zero. ``key`` is that of a template that is made now.

        A group is bound to the template whose key it has, by its id: if that one is removed meanwhile, AWS refuses the
        group, even if another template has the name by then.
        """
        request = requests(self._template(requests, key))["create_auto_scaling_group"]
        with translated("autoscaling", where=self._run_id), _passing_over(taken=True):
            self._clients("autoscaling").create_auto_scaling_group(**request)

    def _template(self, requests: Callable[[Template], Requests], key: str) -> Template:
        """Made with ``key``; or the one that an earlier submit has made, as soon as AWS tells of it."""
        request = requests(replace(PLANNED, key=key))["create_launch_template"]
        for _ in range(_LOOKS):
            with translated("ec2", where=self._run_id), _passing_over(taken=True):
                made = self._clients("ec2").create_launch_template(**request)
                return Template(id=made["LaunchTemplate"]["LaunchTemplateId"], key=key)
            if found := self._found_template():
                return found
            self._clock.sleep(_LOOK_S)
        raise LaunchError(
            f"{self._run_id}: AWS has a launch template {self.name}, and does not tell its tag {KEY_TAG}",
            hint="submit again in a minute; one that has no such tag is of an older mtl-cloud: gc removes it",
        )

    def _found_template(self) -> Template | None:
        """None while AWS does not tell of it and its key."""
        with translated("ec2", where=self._run_id), _passing_over(absent=True):
            answer = self._clients("ec2").describe_launch_templates(LaunchTemplateNames=[self.name])
            (found,) = answer["LaunchTemplates"]
            key = read_tags(found.get("Tags", [])).get(KEY_TAG)
            return Template(id=found["LaunchTemplateId"], key=key) if key else None
        return None

    def open(self, requests: Requests) -> None:
        """Put up the wall, then ask for the machine. A group whose expiry has passed is refused by AWS."""
        for operation in ("put_scheduled_update_group_action", "update_auto_scaling_group"):
            with translated("autoscaling", where=self._run_id):
                getattr(self._clients("autoscaling"), operation)(**requests[operation])

    def remove(self) -> None:
        """``delete``, and ``finish``."""
        self.delete()
        self.finish()

    def delete(self) -> None:
        """Have AWS delete the group together with its instances, which get the time to shut down."""
        with translated("autoscaling", where=self._run_id), _passing_over(absent=True):
            self._clients("autoscaling").delete_auto_scaling_group(AutoScalingGroupName=self.name, ForceDelete=True)

    def finish(self) -> None:
        """Return when AWS confirms that no group and no instance is left; the template goes last.

        Nothing may be seen for a while: one look alone may be from before the last machine was. An instance that is
        alive without a group is terminated.

        Raises ``LaunchError`` when something is there after fifteen minutes still.
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
        with translated("ec2", where=self._run_id), _passing_over(absent=True):
            self._clients("ec2").delete_launch_template(LaunchTemplateName=self.name)

    def _left(self) -> list[str]:
        """Names of what is there; what AWS is too busy to look for counts as being there."""
        try:
            return [group["AutoScalingGroupName"] for group in self._described()] or self._stray_instances()
        except CloudError as error:
            if ErrorClass(error.error_class).may_pass:
                return [self.name]
            raise

    def _stray_instances(self) -> list[str]:
        """Ids of the run's instances that are not terminated yet; each of them is told to."""
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
def _passing_over(*, taken: bool = False, absent: bool = False) -> Iterator[None]:
    """Swallow AWS's word that what is made is there already, or that what is removed is gone already."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        is_absent = code in _ABSENT or (code == "ValidationError" and _GROUP_ABSENT in message)
        if not (taken and code in _TAKEN) and not (absent and is_absent):
            raise
