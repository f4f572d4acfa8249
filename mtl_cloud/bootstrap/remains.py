"""Obstacles to destroying the stack: live runs and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.aws.stack import find_stack
from mtl_cloud.names import RUN_TAG, StackOutput

__all__ = ["what_is_left"]

_ALIVE = ["pending", "running", "shutting-down", "stopping", "stopped"]
_JOB_ALIVE = ("InProgress", "Stopping")


def what_is_left(clients: ClientMaker) -> list[str]:
    """One line for each group, instance and job of a run, and one for a bucket that is not empty. By tags and names:
    run records are not read. Raises ``CloudError`` if AWS refuses to list."""
    return [*_groups(clients), *_instances(clients), *_jobs(clients), *_data(clients)]


def _groups(clients: ClientMaker) -> Iterator[str]:
    filters = [{"Name": "tag-key", "Values": [RUN_TAG]}]
    for page in _pages(clients, "autoscaling", "describe_auto_scaling_groups", Filters=filters):
        yield from (f"the group {group['AutoScalingGroupName']}" for group in page["AutoScalingGroups"])


def _instances(clients: ClientMaker) -> Iterator[str]:
    filters = [{"Name": "tag-key", "Values": [RUN_TAG]}, {"Name": "instance-state-name", "Values": _ALIVE}]
    for page in _pages(clients, "ec2", "describe_instances", Filters=filters):
        for reservation in page["Reservations"]:
            yield from (f"the instance {instance['InstanceId']}" for instance in reservation["Instances"])


def _jobs(clients: ClientMaker) -> Iterator[str]:
    """Jobs of any origin: a job that uses our role or bucket need not have our name."""
    for status in _JOB_ALIVE:
        for page in _pages(clients, "sagemaker", "list_training_jobs", StatusEquals=status):
            yield from (f"the SageMaker job {job['TrainingJobName']}" for job in page["TrainingJobSummaries"])


def _data(clients: ClientMaker) -> Iterator[str]:
    with translated("cloudformation"):
        stack = find_stack(clients("cloudformation")) or {}
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    bucket = outputs.get(StackOutput.BUCKET)
    if bucket:
        with translated("s3", where=bucket):
            if clients("s3").list_objects_v2(Bucket=bucket, MaxKeys=1).get("KeyCount"):
                yield f"data in the bucket {bucket}"


def _pages(clients: ClientMaker, service: str, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    with translated(service):
        yield from clients(service).get_paginator(operation).paginate(**parameters)
