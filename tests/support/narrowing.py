"""Values that the types allow to be None and a test knows to be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import ResultRecord

if TYPE_CHECKING:  # most tests that import this need no torch
    from torch import Tensor

__all__ = ["grad_of", "present", "result_of"]

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value itself. Fails the test where it is None."""
    assert value is not None
    return value


def grad_of(leaf: Tensor) -> Tensor:
    """The gradient that a backward pass has left at a tensor. Fails the test where there is none."""
    return present(leaf.grad)


def result_of(run: RunRecord) -> ResultRecord:
    """The result of a run that has ended. Fails the test where there is none."""
    return present(run.result())
