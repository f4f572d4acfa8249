"""The compute section of a plan as its type. It is parsed here and nowhere else."""

from __future__ import annotations

import json
from typing import TypeVar, get_args, overload

from pydantic import BaseModel, ValidationError

from mtl_cloud.errors import RecordError
from mtl_cloud.jobspec.finding import path_of
from mtl_cloud.jobspec.job import Compute, ComputeSpec
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["compute_of"]

C = TypeVar("C", bound=Compute)

_MODELS = {get_args(model.model_fields["backend"].annotation)[0]: model for model in get_args(Compute)}
"""Backend -> the type of its section."""


class _Section(BaseModel):
    """The section where a job has it, so that errors name its fields as those of a job do."""

    compute: ComputeSpec


@overload
def compute_of(plan: PlanRecord) -> Compute: ...
@overload
def compute_of(plan: PlanRecord, kind: type[C]) -> C: ...
def compute_of(plan: PlanRecord, kind: type[BaseModel] | None = None) -> BaseModel:
    """The plan's compute section. Fields of a newer writer are ignored.

    Raises ``RecordError`` with every malformed field, or when the section is not a ``kind``.
    """
    model = _MODELS.get(plan.backend)
    known = {name: value for name, value in plan.compute.items() if model and name in model.model_fields}
    try:
        document = {"compute": {**known, "backend": plan.backend}}
        compute = _Section.model_validate_json(json.dumps(document), strict=True).compute
    except ValidationError as error:
        from mtl_cloud.jobspec.explain import explain

        wrong = "; ".join(f"{path_of(finding.loc)}: {finding.message}" for finding in explain(error))
        raise RecordError(f"{plan.run_id}: the plan cannot be read: {wrong}") from error
    if kind is not None and not isinstance(compute, kind):
        raise RecordError(f"{plan.run_id}: the plan is for the backend {plan.backend!r}, not for a {kind.__name__}")
    return compute
