"""The translation of botocore's errors to ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from mtl_cloud.aws.codes import ErrorClass
from mtl_cloud.aws.denials import encoded_denial, read_denial
from mtl_cloud.aws.diagnosis import Diagnosis, diagnose
from mtl_cloud.errors import CapacityError, CloudError, MissingExtraError

__all__ = ["translated"]

_DENIALS = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_MORE = "; AWS has hidden more in its message: `mtl-cloud explain` with the whole of it, in quotes, has it decoded"


@contextmanager
def translated(service: str, *, where: str = "") -> Iterator[None]:
    """A context manager: requests inside raise ``CloudError`` (``CapacityError`` for capacity), not botocore's errors.

    ``service`` is boto3's name of it; ``where`` is the field, ARN or name that the request is about, if one is.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingExtraError("aws", "talking to AWS") from error
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise _ours(error, service, where) from error


def _ours(error: Exception, service: str, where: str) -> CloudError:
    answer = _Answer.of(error)
    diagnosis = _diagnosis(answer, service)
    kind = CapacityError if diagnosis.error_class is ErrorClass.CAPACITY else CloudError
    place = " ".join(part for part in (where and f"{where}:", service, answer.operation) if part)
    return kind(
        f"{place}: {answer.message} ({answer.code}: {diagnosis.error_class.replace('_', ' ')})",
        hint=f"{diagnosis.cause}; {diagnosis.action}{_MORE if encoded_denial(answer.message) else ''}",
        code=answer.code,
        error_class=diagnosis.error_class,
        operation=answer.operation,
    )


@dataclass(frozen=True)
class _Answer:
    code: str
    message: str
    operation: str = ""
    http_status: int | None = None

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The code of an error of botocore itself, for a request without an answer, is its class name."""
        response = getattr(error, "response", None)  # only ClientError has one
        if not isinstance(response, dict):
            return cls(type(error).__name__, str(error))
        told, status = response.get("Error", {}), response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return cls(told.get("Code", ""), told.get("Message", ""), getattr(error, "operation_name", ""), status)


def _diagnosis(answer: _Answer, service: str) -> Diagnosis:
    found = diagnose(answer.code, answer.message, http_status=answer.http_status)
    if answer.code not in _DENIALS:
        return found
    # AWS does not always name the denied action, but the request implies it.
    denial = read_denial(answer.message, service=service, operation=answer.operation)
    return replace(found, cause=denial.cause, action=denial.action_to_take) if denial else found
