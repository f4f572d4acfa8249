"""Every error that a user can meet, and the exit code it ends with.

::

    MtlCloudError                 1   anything of ours
    ├── UsageError                2   the command line asks for something that is not there
    ├── SpecError                 2   the job file is wrong (all its mistakes at once)
    ├── PlanError                 3   the job is valid but cannot be planned
    ├── ImageError                4   the container image cannot be built or found
    ├── LaunchError               5   the backend refused to start the run
    │   ├── EngineError           5   the container engine is absent, does not answer, or refuses
    │   └── CloudError            5   AWS refused a request; with its code and class
    │       └── CapacityError     6   the cloud has no such machine available
    ├── RunFailedError            7   the run ended without success
    ├── StorageError              8   the run record cannot be read or written
    │   ├── NotFoundError         8   no object under that key
    │   ├── AlreadyExistsError    8   a create-only write found the key taken
    │   ├── StorageRefusedError   8   the storage refuses permanently: permission, bucket
    │   ├── RunTakenOverError     8   a later attempt owns the run, and this one must stop
    │   └── RecordError           8   an object is malformed
    ├── DatasetError              9   the dataset is missing, damaged or wrongly labelled
    ├── TrainingError            10   training cannot go on (diverged, out of memory, …)
    │   └── WorkerDiedError      10   a signal ended a loader worker: the machine's fault
    └── MissingExtraError        11   an optional part of mtl-cloud is not installed

A message says what is wrong and where; ``hint`` says what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "AlreadyExistsError",
    "CapacityError",
    "CloudError",
    "DatasetError",
    "EngineError",
    "ImageError",
    "LaunchError",
    "MissingExtraError",
    "MtlCloudError",
    "NotFoundError",
    "PlanError",
    "Problem",
    "RecordError",
    "RunFailedError",
    "RunTakenOverError",
    "SpecError",
    "StorageError",
    "StorageRefusedError",
    "TrainingError",
    "UsageError",
    "WorkerDiedError",
]


class MtlCloudError(Exception):
    """Root of the tree. ``str(error)`` is the message for the user, without the hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def with_hint(self) -> str:
        """The message and, in brackets, the hint: for logs, where both are read on one line."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class UsageError(MtlCloudError):
    """The command line names something that does not exist or is ambiguous."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake (or doubt) about a job, and where it stands."""

    file: str
    """The job file, or the ``--set`` option that brought it."""
    line: int
    """1-based; 0 where lines do not apply."""
    column: int
    path: str
    """The field, as ``training.batch_size`` or ``dataset[1].uri``; empty for the file as a whole."""
    message: str
    hint: str | None = None
    """Allowed values, the nearest valid name, or what to do."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{place}: {self.path}" if self.path else place
        return f"{where}: {self.message}; {self.hint}" if self.hint else f"{where}: {self.message}"


class SpecError(MtlCloudError):
    """A job file is wrong. The message holds every mistake, one a line, each at its place."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=_by_place))
        super().__init__("\n".join(map(str, self.problems)))


def _by_place(problem: Problem) -> tuple[str, int, int, str, str]:
    return problem.file, problem.line, problem.column, problem.path, problem.message


class PlanError(MtlCloudError):
    """A valid job that cannot be planned: unknown price, impossible budget, ..."""

    exit_code = 3


class ImageError(MtlCloudError):
    """The container image cannot be built, found or pushed."""

    exit_code = 4


class LaunchError(MtlCloudError):
    """A backend refused to start the run."""

    exit_code = 5


class EngineError(LaunchError):
    """The container engine of this machine is absent, does not answer, or refuses."""


class CloudError(LaunchError):
    """AWS refused a request, or could not be asked. ``hint`` holds the cause and the next step."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str = "",
        error_class: str = "unknown",
        operation: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        """AWS's code, ``VcpuLimitExceeded``; for a request without an answer, botocore's class."""
        self.error_class = error_class
        """One of ``mtl_cloud.aws.ErrorClass``."""
        self.operation = operation
        """``RunInstances``; empty for a request that was never made."""


class CapacityError(CloudError):
    """The cloud has no such machine free at present. Never a permission or a quota."""

    exit_code = 6


class RunFailedError(MtlCloudError):
    """The run ended, and not well."""

    exit_code = 7


class StorageError(MtlCloudError):
    """The storage of the run record cannot be reached, read or written."""

    exit_code = 8


class NotFoundError(StorageError):
    """No object lies under the key."""


class AlreadyExistsError(StorageError):
    """A create-only write found its key taken."""


class StorageRefusedError(StorageError):
    """The storage refuses the request, and will refuse it again: no permission, no credentials, no bucket."""


class RunTakenOverError(StorageError):
    """A later attempt owns the run: this one may not commit anything any more."""


class RecordError(StorageError):
    """An object of the run record is there but cannot be understood."""


class DatasetError(MtlCloudError):
    """A dataset is missing, damaged or wrongly labelled. The message names the file."""

    exit_code = 9


class TrainingError(MtlCloudError):
    """Training cannot go on: the loss is not a number, the device is out of memory, ..."""

    exit_code = 10


class WorkerDiedError(TrainingError):
    """A signal ended a loader worker. As with the trainer itself, the machine is to blame, and a restart may help."""


class MissingExtraError(MtlCloudError):
    """An optional part of mtl-cloud is not installed."""

    exit_code = 11

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the extra '{extra}', which is not installed",
            hint=f"pip install 'mtl-cloud[{extra}]'",
        )
        self.extra = extra
