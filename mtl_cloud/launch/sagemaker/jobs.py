"""SageMaker training jobs, through the SDK's resource class (``sagemaker.core``), with their states mapped to ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count, takewhile
from typing import Any, Self

from mtl_cloud.aws import ClientMaker, ErrorClass, read_reason, translated
from mtl_cloud.errors import CapacityError, CloudError, MissingExtraError
from mtl_cloud.json_types import Json
from mtl_cloud.launch.base import BackendState
from mtl_cloud.launch.sagemaker.request import job_name

__all__ = ["Job", "TrainingJobs", "Transition"]

_ABSENT = re.compile("not found|could not find", re.IGNORECASE)
_OVER = {"Completed", "Failed", "Stopped", "Deleting"}
_WORKING = {"Training", "Uploading", "Stopping", "MaxRuntimeExceeded"}


@dataclass(frozen=True)
class Transition:
    """One status transition of a training job."""

    at: datetime
    status: str
    """SageMaker's ``SecondaryStatus``."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """SageMaker's description of one training job."""

    name: str
    status: str
    secondary: str
    reason: str
    """SageMaker's reason for a failure; empty otherwise."""
    created_at: datetime
    instance_type: str
    """The instance type in use; before one is found, the first preference."""
    instance_count: int
    training_s: int | None
    billable_s: int | None
    """Training seconds of each instance; None before the end."""
    transitions: tuple[Transition, ...]

    @property
    def state(self) -> BackendState:
        if self.status in _OVER:
            return BackendState.ENDED
        return BackendState.RUNNING if self.secondary in _WORKING else BackendState.PENDING

    @property
    def error_class(self) -> ErrorClass:
        """The class of its failure. A job that timed out while waiting found no capacity."""
        if self.secondary == "MaxWaitTimeExceeded":
            return ErrorClass.CAPACITY
        return read_reason(self.reason).error_class

    @property
    def spot_saving(self) -> float | None:
        """Share (0..1) of the training seconds that managed spot did not charge; None before the end."""
        if not self.training_s or self.billable_s is None:
            return None
        return 1 - self.billable_s / self.training_s

    def failure(self, run_id: str) -> CloudError:
        """The error for a job that ended before its run: cause and next step."""
        found, error_class = read_reason(self.reason), self.error_class
        kind = CapacityError if error_class is ErrorClass.CAPACITY else CloudError
        words = f": {self.reason}" if self.reason else ""
        return kind(
            f"{run_id}: SageMaker ended {self.name} as {self.secondary}{words} ({error_class.replace('_', ' ')})",
            hint=f"{found.cause}; {found.action}" if self.reason else "submit it again to continue",
            code=found.code,
            error_class=error_class,
            operation="CreateTrainingJob",
        )

    @classmethod
    def of(cls, answer: Any) -> Self:
        """Convert the SDK's resource."""
        resources = answer.resource_config
        preferences = _or(resources.instance_preferences, [])
        first = preferences[0].instance_type if preferences else _or(resources.instance_type, "")
        return cls(
            name=answer.training_job_name,
            status=answer.training_job_status,
            secondary=answer.secondary_status,
            reason=_or(answer.failure_reason, ""),
            created_at=answer.creation_time,
            instance_type=_or(resources.selected_instance_type, first),
            instance_count=_or(resources.instance_count, 1),
            training_s=_or(answer.training_time_in_seconds, None),
            billable_s=_or(answer.billable_time_in_seconds, None),
            transitions=tuple(
                Transition(step.start_time, step.status, _or(step.status_message, ""))
                for step in _or(answer.secondary_status_transitions, [])
            ),
        )


class TrainingJobs:
    """The training jobs of one account in one region. Every method raises ``CloudError`` when AWS refuses.

    The constructor raises ``MissingExtraError`` without the SDK.
    """

    def __init__(self, clients: ClientMaker) -> None:
        self._resource = _resource()
        self._client = clients("sagemaker")
        self._sdk = {"session": _session(clients), "region": clients.region}

    def create(self, request: dict[str, Json]) -> bool:
        """Start a job. Returns False, and changes nothing, if a job of that name exists."""
        from sagemaker.core.utils.code_injection.codec import transform

        name = str(request["TrainingJobName"])
        try:
            with translated("sagemaker", where=name), self._sent_as_planned(request):
                self._resource.create(**transform(request, "CreateTrainingJobRequest"), **self._sdk)
        except CloudError as error:
            if error.code == "ResourceInUse":
                return False
            raise
        return True

    def of_run(self, run_id: str) -> list[Job]:
        """All jobs of the run, oldest first. Sends one request for each, and one more."""
        found = (self._find(job_name(run_id, number)) for number in count(1))
        return [job for job in takewhile(lambda job: job is not None, found) if job]

    def stop(self, name: str) -> None:
        """Ask SageMaker to stop the job after its grace period. Does nothing if the job has ended."""
        with translated("sagemaker", where=name), self._absence_is_no_error():
            self._resource.get(training_job_name=name, **self._sdk).stop()

    def _find(self, name: str) -> Job | None:
        with translated("sagemaker", where=name), self._absence_is_no_error():
            return Job.of(self._resource.get(training_job_name=name, **self._sdk))
        return None

    @contextmanager
    def _sent_as_planned(self, request: dict[str, Json]) -> Iterator[None]:
        """Send the request unchanged: the SDK would drop empty values and add defaults of its own."""
        events, name = self._client.meta.events, "provide-client-params.sagemaker.CreateTrainingJob"

        def planned(**_: Any) -> dict[str, Json]:
            return request

        events.register(name, planned)
        try:
            yield
        finally:
            events.unregister(name, planned)

    @contextmanager
    def _absence_is_no_error(self) -> Iterator[None]:
        """The API model declares ``ResourceNotFound``, but the service answers with a ``ValidationException``."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            answer = error.response["Error"]
            if answer["Code"] != "ResourceNotFound" and not _ABSENT.search(answer["Message"]):
                raise


def _resource() -> Any:
    try:
        from sagemaker.core.resources import TrainingJob
    except ImportError as error:
        raise MissingExtraError("sagemaker", "submitting to SageMaker") from error
    return TrainingJob


def _session(clients: ClientMaker) -> Any:
    """A session for the SDK that returns our clients, with our timeouts, retries and endpoint."""
    from boto3 import Session

    class OurSession(Session):  # type: ignore[misc]  # boto3 has no types
        def client(self, service_name: str, *_: Any, **__: Any) -> Any:
            return clients(service_name)

    return OurSession(region_name=clients.region)


def _or(value: Any, absent: Any) -> Any:
    """The value, or None for ``Unassigned()``, which the SDK uses for missing fields."""
    return absent if value is None or type(value).__name__ == "Unassigned" else value
