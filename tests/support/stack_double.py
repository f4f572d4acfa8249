"""A fake of CloudFormation, written from its API reference, for features that moto lacks.

moto executes change sets in no time, gives a first one no outputs, and never fails. Here a change set needs a look
until it is ready, stacks need some until they are settled, one that fails first time can only be deleted, an unchanged
one gives a FAILED change set, and what is under way refuses others. Requests are checked against botocore's shapes.
"""

# ruff: noqa: N803  # AWS's own names of parameters

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

from mtl_cloud.bootstrap.template import template

ACCOUNT = "123456789012"
REGION = "us-east-1"


class Killed(BaseException):
    """Simulates SIGKILL, which no code can catch."""


class Account:
    """The state at AWS. ``clients()`` returns the clients of a process that is killed at call ``last``."""

    region = REGION

    def __init__(self, zones: str = "abc", fails_with: str = "") -> None:
        self.zones = zones
        self.fails_with = fails_with
        """The reason for which the next create or update fails."""
        self.stack: dict[str, Any] | None = None
        self.change_sets: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.service_roles: list[str] = []
        self.groups: list[str] = []
        self.instances: list[str] = []
        self.jobs: list[str] = []
        self.bucket_holds = 0
        self.made = 0
        """The number of stack creations."""

    def clients(self, last: int | None = None, *, after: bool = False) -> Clients:
        return Clients(self, last, after=after)

    # --- CloudFormation ---

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        if self.stack:
            self._settle(self.stack)
        if not self.stack or StackName not in self._names_of(self.stack):
            raise error("ValidationError", f"Stack with id {StackName} does not exist", "DescribeStacks")
        return {"Stacks": [dict(self.stack)]}

    def _names_of(self, stack: dict[str, Any]) -> set[str]:
        """A deleted stack is found by its id alone."""
        is_deleted = stack["StackStatus"] == "DELETE_COMPLETE"
        return {stack["StackId"], *([] if is_deleted else [stack["StackName"]])}

    def create_change_set(self, **request: Any) -> dict[str, Any]:
        status = self.stack["StackStatus"] if self.stack else "DELETE_COMPLETE"
        exists = status not in {"DELETE_COMPLETE", "REVIEW_IN_PROGRESS"}
        name = request["StackName"]
        if exists != (request["ChangeSetType"] == "UPDATE") or (exists and not status.endswith("_COMPLETE")):
            raise error("ValidationError", f"Stack:{name} is in {status} state", "CreateChangeSet")
        if status == "DELETE_COMPLETE":
            self.stack = {"StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{name}/{self.made}"}
            self.stack.update(StackName=name, StackStatus="REVIEW_IN_PROGRESS", looks=0)
            self.change_sets.clear()
        wanted = {p["ParameterKey"]: p["ParameterValue"] for p in request["Parameters"]}
        self.change_sets[request["ChangeSetName"]] = {"wanted": wanted, "looks": 0, "type": request["ChangeSetType"]}
        return {}

    def describe_change_set(self, StackName: str, ChangeSetName: str, NextToken: str = "") -> dict[str, Any]:
        found = self.change_sets[ChangeSetName]
        found["looks"] += 1
        if found["looks"] == 1:
            return {"Status": "CREATE_PENDING", "Changes": []}
        if found["type"] == "UPDATE" and self.stack and found["wanted"] == self.stack["wanted"]:
            reason = "The submitted information didn't contain changes. Submit different information."
            return {"Status": "FAILED", "StatusReason": reason, "Changes": []}
        change = {"Action": "Add", "LogicalResourceId": f"R{NextToken}", "ResourceType": "AWS::S3::Bucket"}
        more = {} if NextToken else {"NextToken": "2"}
        return {"Status": "CREATE_COMPLETE", "Changes": [{"ResourceChange": change}], **more}

    def execute_change_set(self, StackName: str, ChangeSetName: str) -> dict[str, Any]:
        assert self.stack is not None
        found = self.change_sets[ChangeSetName]
        creates = self.stack["StackStatus"] == "REVIEW_IN_PROGRESS"
        self.made += creates
        self.change_sets.clear()
        self._begin("CREATE" if creates else "UPDATE")
        if self.fails_with:
            self._tell("Bucket", "CREATE_FAILED", self.fails_with)
            self.stack["next"] = "ROLLBACK_COMPLETE" if creates else "UPDATE_ROLLBACK_COMPLETE"
            self.fails_with = ""
        else:
            self._tell("Bucket", "CREATE_COMPLETE")
            self.stack["wanted"] = found["wanted"]
            self.stack["Outputs"] = outputs(found["wanted"])
            parameters = [{"ParameterKey": k, "ParameterValue": v} for k, v in found["wanted"].items()]
            self.stack["Parameters"] = parameters
        return {}

    def delete_change_set(self, StackName: str, ChangeSetName: str) -> dict[str, Any]:
        self.change_sets.pop(ChangeSetName, None)
        return {}

    def delete_stack(self, StackName: str) -> dict[str, Any]:
        if self.stack and self.stack["StackStatus"] != "DELETE_COMPLETE":
            self._begin("DELETE")
        return {}

    def describe_stack_events(self, StackName: str) -> dict[str, Any]:
        return {"StackEvents": [dict(event) for event in reversed(self.events)]}

    def _begin(self, verb: str) -> None:
        assert self.stack is not None
        self.stack.update(StackStatus=f"{verb}_IN_PROGRESS", next=f"{verb}_COMPLETE", looks=2)

    def _settle(self, stack: dict[str, Any]) -> None:
        if stack["looks"] == 1:
            stack["StackStatus"] = stack["next"]
        stack["looks"] = max(0, stack["looks"] - 1)

    def _tell(self, resource: str, status: str, reason: str = "") -> None:
        event = {"EventId": str(len(self.events)), "LogicalResourceId": resource, "ResourceStatus": status}
        self.events.append({**event, **({"ResourceStatusReason": reason} if reason else {})})

    # --- the others ---

    def describe_availability_zones(self, Filters: list[Any]) -> dict[str, Any]:
        return {"AvailabilityZones": [{"ZoneName": f"{REGION}{zone}"} for zone in self.zones]}

    def describe_subnets(self, Filters: list[Any]) -> dict[str, Any]:
        def subnet(number: int, zone: str, room: int, *, public: bool) -> dict[str, Any]:
            facts = {"MapPublicIpOnLaunch": public, "AvailableIpAddressCount": room}
            return {"SubnetId": f"subnet-{number}", "AvailabilityZone": f"{REGION}{zone}", **facts}

        if Filters[0]["Values"] == ["vpc-empty"]:
            return {"Subnets": []}
        private, public = subnet(1, "a", 900, public=False), subnet(2, "a", 5, public=True)
        return {"Subnets": [public, private, subnet(3, "b", 7, public=False), subnet(4, "b", 9, public=False)]}

    def create_service_linked_role(self, AWSServiceName: str) -> dict[str, Any]:
        if AWSServiceName in self.service_roles:
            words = (
                f"Service role name for {AWSServiceName} has been taken in this account, please try a different suffix."
            )
            raise error("InvalidInput", words, "CreateServiceLinkedRole")
        self.service_roles.append(AWSServiceName)
        return {}

    def describe_auto_scaling_groups(self, Filters: list[Any]) -> dict[str, Any]:
        return {"AutoScalingGroups": [{"AutoScalingGroupName": name} for name in self.groups]}

    def describe_instances(self, Filters: list[Any]) -> dict[str, Any]:
        return {"Reservations": [{"Instances": [{"InstanceId": name}]} for name in self.instances]}

    def list_training_jobs(self, StatusEquals: str) -> dict[str, Any]:
        return {
            "TrainingJobSummaries": [{"TrainingJobName": name} for name in self.jobs if StatusEquals == "InProgress"]
        }

    def list_objects_v2(self, Bucket: str, MaxKeys: int) -> dict[str, Any]:
        return {"KeyCount": min(self.bucket_holds, MaxKeys)}


class Clients:
    """A ``ClientMaker``: every request is a call, and the process is killed before or after call ``last``."""

    region = REGION

    def __init__(self, account: Account, last: int | None, *, after: bool) -> None:
        self._account = account
        self._last = last
        self._after = after
        self.calls: list[str] = []
        """As IAM names them: ``cloudformation:CreateChangeSet``."""

    def __call__(self, service: str, *, retries: str = "standard") -> Client:
        return Client(service, self.call)

    def call(self, service: str, operation: str, request: dict[str, Any]) -> Any:
        model = service_model(service)
        api = next(name for name in model.operation_names if botocore.xform_name(name) == operation)
        validate_parameters(request, model.operation_model(api).input_shape)
        self.calls.append(f"{service}:{api}")
        dies = len(self.calls) == self._last
        if dies and not self._after:
            raise Killed
        try:
            return getattr(self._account, operation)(**request)
        finally:
            if dies:
                raise Killed


class Client:
    def __init__(self, service: str, call: Callable[[str, str, dict[str, Any]], Any]) -> None:
        self._service = service
        self._call = call
        self.meta = self
        self.region_name = REGION

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda **request: self._call(self._service, operation, request)

    def get_paginator(self, operation: str) -> Client:
        return Client(self._service, lambda service, _, request: iter([self._call(service, operation, request)]))

    def paginate(self, **request: Any) -> Iterator[Any]:
        return iter(self._call(self._service, "", request))


@cache
def service_model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


def outputs(parameters: dict[str, str]) -> list[dict[str, str]]:
    zones = [value for key, value in parameters.items() if key.startswith("Zone") and value]
    found = {f"Subnet{index + 1}": f"{zone}=subnet-{zone[-1]}" for index, zone in enumerate(zones)}
    if parameters.get("VpcId"):
        found = {"Subnets": parameters["VpcSubnets"]}
    found |= {name: name.lower() for name, output in template()["Outputs"].items() if "Condition" not in output}
    found["Bucket"] = "the-bucket"
    return [{"OutputKey": key, "OutputValue": value} for key, value in found.items()]


def error(code: str, message: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)
