"""A fake of EC2 and Auto Scaling, for rehearsals and tests. Public: your tests may use it, too.

It replaces boto3's clients, and validates every request against botocore's model of the API. It simulates what real
launches meet: exhausted capacity pools, quotas, stale reads, throttling, interruptions. Its time is the given clock, so
a test can let hours pass at once.

It implements launch templates; groups with their instances, scheduled actions and activities; spot and on-demand. It
launches as Auto Scaling does: one zone at a time, retried after a refusal, replaced after a termination. It runs no
user data; ``on_running`` is called with the id of each running instance.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from functools import cache
from typing import Any

from mtl_cloud.aws.clients import Retries
from mtl_cloud.testing.ec2_account import ALIVE, Account, Group, Pool

__all__ = ["CloudDouble", "Pool"]


class CloudDouble(Account):
    """An account that answers requests. Takes the parameters of ``Account``."""

    # --- for tests ---

    def clients(self, region: str) -> _Clients:
        """A maker of clients, for ``Ec2Launcher(clients=...)``."""
        return _Clients(self, region)

    def refuse_next(self, operation: str, code: str, message: str = "as the test requests") -> None:
        """Answer the next ``operation`` (``CreateAutoScalingGroup``) with an error."""
        self._refused_next[operation] = (code, message)

    def alive(self) -> list[str]:
        """Ids of instances that are pending or running."""
        self.advance()
        return [name for name, one in self.state.instances.items() if one["State"]["Name"] in ALIVE]

    def what_is_left(self) -> list[str]:
        """Names of all resources in the account, without terminated instances."""
        self.advance()
        there = [name for name, one in self.state.instances.items() if one["State"]["Name"] != "terminated"]
        return [*self.state.templates, *self.state.groups, *there]

    def end(self, instance: str, code: str = "Server.SpotInstanceTermination") -> None:
        """Terminate the instance: a spot interruption, or its own shutdown (``Client.InstanceInitiatedShutdown``)."""
        self.advance()
        self.terminate(instance, code, self.clock.now(), f"it was taken out of service: {code}")
        self.note(self.clock.now())

    # --- requests ---

    def ask(self, service: str, method: str, parameters: dict[str, Any]) -> Any:
        """Answer one request of a client, after all events that are due."""
        operation = "".join(word.capitalize() for word in method.split("_"))
        self.advance()
        self.calls.append(operation)
        _validate(service, operation, parameters)
        if self._throttle_every and len(self.calls) % self._throttle_every == 0:
            raise _error(operation, "Throttling", "Rate exceeded")
        if operation in self._refused_next:
            raise _error(operation, *self._refused_next.pop(operation))
        answer = getattr(self, f"_{method}")(parameters)
        self.advance()
        self.note(self.clock.now())
        return answer or {}

    def _create_launch_template(self, p: dict[str, Any]) -> dict[str, Any]:
        name = p["LaunchTemplateName"]
        if name in self.state.templates:
            raise _error("CreateLaunchTemplate", "InvalidLaunchTemplateName.AlreadyExistsException", f"{name} in use")
        tags = [tag for held in p.get("TagSpecifications", []) for tag in held["Tags"]]
        self._templates_made += 1
        made = {
            "LaunchTemplateId": f"lt-{self._templates_made:017x}",
            "LaunchTemplateName": name,
            "CreateTime": self.clock.now(),
            "Tags": tags,
            "data": p["LaunchTemplateData"],
        }
        self.state.templates[name] = made
        return {"LaunchTemplate": _without_data(made)}

    def _delete_launch_template(self, p: dict[str, Any]) -> None:
        if self.state.templates.pop(p["LaunchTemplateName"], None) is None:
            code = "InvalidLaunchTemplateName.NotFoundException"
            raise _error("DeleteLaunchTemplate", code, "At least one of the launch templates specified does not exist.")

    def _describe_launch_templates(self, p: dict[str, Any]) -> dict[str, Any]:
        seen = self.seen().templates
        names = p.get("LaunchTemplateNames", seen)
        if not seen.keys() >= set(names):
            code = "InvalidLaunchTemplateName.NotFoundException"
            raise _error(
                "DescribeLaunchTemplates", code, "At least one of the launch templates specified does not exist."
            )
        found = [seen[name] for name in names if _matches(seen[name]["Tags"], p.get("Filters", []))]
        return {"LaunchTemplates": [_without_data(one) for one in found]}

    def _create_auto_scaling_group(self, p: dict[str, Any]) -> None:
        name, now = p["AutoScalingGroupName"], self.clock.now()
        if name in self.state.groups:
            raise _error("CreateAutoScalingGroup", "AlreadyExists", "AutoScalingGroup by this name already exists")
        if self.template(p) is None:
            message = "You must use a valid fully-formed launch template. The specified launch template does not exist."
            raise _error("CreateAutoScalingGroup", "ValidationError", message)
        self.state.groups[name] = Group(deepcopy(p), now, now)

    def _update_auto_scaling_group(self, p: dict[str, Any]) -> None:
        group = self._group("UpdateAutoScalingGroup", p)
        policy = p.pop("MixedInstancesPolicy", {})
        group.request.update(p)
        for part, values in policy.items():
            group.request["MixedInstancesPolicy"][part].update(values)
        group.next_try = self.clock.now()

    def _put_scheduled_update_group_action(self, p: dict[str, Any]) -> None:
        self._group("PutScheduledUpdateGroupAction", p)
        at = datetime.fromisoformat(str(p["StartTime"]))
        if at <= self.clock.now():
            raise _error("PutScheduledUpdateGroupAction", "ValidationError", "Given start time is in the past")
        self.state.actions[p["AutoScalingGroupName"]] = {**p, "at": at}

    def _delete_auto_scaling_group(self, p: dict[str, Any]) -> None:
        group, name = self._group("DeleteAutoScalingGroup", p), p["AutoScalingGroupName"]
        members = self.members(name)
        if members and not p.get("ForceDelete"):
            raise _error("DeleteAutoScalingGroup", "ResourceInUse", "You cannot delete a group with instances in it")
        group.request["DesiredCapacity"] = 0
        for instance in members:
            self.terminate(instance, "User initiated", self.clock.now(), "the group was deleted")
        del self.state.groups[name]
        self.state.actions.pop(name, None)

    def _describe_auto_scaling_groups(self, p: dict[str, Any]) -> dict[str, Any]:
        seen, names = self.seen(), p.get("AutoScalingGroupNames")
        found = [
            _described(name, group, [one for one in seen.instances.values() if one["group"] == name])
            for name, group in seen.groups.items()
            if (names is None or name in names) and _matches(group.request["Tags"], p.get("Filters", []))
        ]
        return {"AutoScalingGroups": found}

    def _describe_scaling_activities(self, p: dict[str, Any]) -> dict[str, Any]:
        seen, name = self.seen(), p["AutoScalingGroupName"]
        if name not in seen.groups:
            raise _group_absent("DescribeScalingActivities", name)
        return {"Activities": [one for one in reversed(seen.activities) if one["AutoScalingGroupName"] == name]}

    def _describe_instances(self, p: dict[str, Any]) -> dict[str, Any]:
        found = [
            one
            for one in self.seen().instances.values()
            if _matches(one["Tags"], p.get("Filters", []), state=one["State"]["Name"])
        ]
        return {"Reservations": [{"Instances": [one]} for one in found]}

    def _terminate_instances(self, p: dict[str, Any]) -> None:
        for instance in p["InstanceIds"]:
            if instance not in self.state.instances:
                raise _error("TerminateInstances", "InvalidInstanceID.NotFound", f"The instance ID '{instance}' ...")
            self.terminate(instance, "Client.UserInitiatedShutdown", self.clock.now(), "it was taken out of service")

    def _group(self, operation: str, p: dict[str, Any]) -> Group:
        name = p["AutoScalingGroupName"]
        if name not in self.state.groups:
            raise _group_absent(operation, name)
        return self.state.groups[name]


class _Clients:
    """A ``ClientMaker`` for the fake."""

    def __init__(self, double: CloudDouble, region: str) -> None:
        self._double = double
        self.region = region

    def __call__(self, service: str, *, retries: Retries = "standard") -> _Client:  # noqa: ARG002  (botocore's concern)
        return _Client(self._double, service)


class _Client:
    """Methods of boto3's client, made from its names of operations."""

    def __init__(self, double: CloudDouble, service: str) -> None:
        self._double = double
        self._service = service

    def get_paginator(self, method: str) -> _Pages:
        return _Pages(getattr(self, method))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda **parameters: self._double.ask(self._service, method, deepcopy(parameters))


class _Pages:
    """A paginator; every answer of the fake fits one page."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def paginate(self, **parameters: Any) -> list[Any]:
        return [self._ask(**parameters)]


@cache
def _model(service: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def _validate(service: str, operation: str, parameters: dict[str, Any]) -> None:
    from botocore.exceptions import ParamValidationError
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(parameters, _model(service).operation_model(operation).input_shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


def _error(operation: str, code: str, message: str) -> Exception:
    from botocore.exceptions import ClientError

    refusal: Exception = ClientError({"Error": {"Code": code, "Message": message}}, operation)
    return refusal


def _group_absent(operation: str, name: str) -> Exception:
    return _error(operation, "ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup {name} not found")


def _without_data(template: dict[str, Any]) -> dict[str, Any]:
    return {key: template[key] for key in template if key != "data"}


def _described(name: str, group: Group, instances: list[dict[str, Any]]) -> dict[str, Any]:
    states = {"pending": "Pending", "running": "InService", "shutting-down": "Terminating"}
    return {
        **{key: group.request[key] for key in ("MinSize", "MaxSize", "DesiredCapacity", "Tags")},
        "AutoScalingGroupName": name,
        "CreatedTime": group.created_at,
        "Instances": [
            {"InstanceId": one["InstanceId"], "LifecycleState": states[one["State"]["Name"]]}
            for one in instances
            if one["State"]["Name"] in states
        ],
    }


def _matches(tags: list[dict[str, str]], filters: list[dict[str, Any]], *, state: str = "") -> bool:
    """EC2's and Auto Scaling's filters: ``tag:KEY``, ``tag-key`` and ``instance-state-name``."""
    have = {tag["Key"]: tag["Value"] for tag in tags}
    answers = (
        bool(have.keys() & set(wanted["Values"]))
        if wanted["Name"] == "tag-key"
        else state in wanted["Values"]
        if wanted["Name"] == "instance-state-name"
        else have.get(wanted["Name"].removeprefix("tag:")) in wanted["Values"]
        for wanted in filters
    )
    return all(answers)
