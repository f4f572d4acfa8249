"""Validate plain values as a job, and report all mistakes at once.

pydantic's errors would hide those of the cross-field constraints. So each invalid field is replaced by its default, and
the rest is checked again, until there are no new errors. Findings that depend on a replaced field are dropped, because
they may not be true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mtl_cloud.jobspec.constraints import check_constraints
from mtl_cloud.jobspec.finding import Finding, Loc
from mtl_cloud.jobspec.job import JobSpec

if TYPE_CHECKING:
    from mtl_cloud.json_types import Json

__all__ = ["check", "validate"]

_DATASET: Json = {"name": "embedded"}
"""Replaces the only field without a default."""


def check(data: Mapping[str, Json]) -> tuple[JobSpec, list[Finding]]:
    """The job and all findings. If any finding is fatal, the job is not the requested one."""
    findings: list[Finding] = []
    wrong: set[Loc] = set()
    job = validate(data)
    while not isinstance(job, JobSpec):
        findings += [finding for finding in job if not _depends_on(finding, wrong)]
        removed = [_to_remove(finding, data) for finding in job]
        wrong |= {loc for finding, loc in zip(job, removed, strict=True) if not finding.at_key}
        data = {"dataset": _DATASET, **reduce(_without, removed, data)}
        job = validate(data)
    broken = [finding for finding in check_constraints(job) if not _depends_on(finding, wrong)]
    return job, findings + [finding for finding in broken if not _is_consequence(finding, broken)]


def validate(data: Mapping[str, Json]) -> JobSpec | list[Finding]:
    """The job, or the findings of the schema alone."""
    # As JSON, because there strict mode (no string for a number) still accepts a list for a tuple.
    try:
        return JobSpec.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        from mtl_cloud.jobspec.explain import explain  # not needed for a valid job

        return explain(error)


def _depends_on(finding: Finding, wrong: set[Loc]) -> bool:
    return any(
        own[: len(other)] == other or other[: len(own)] == own
        for own in (finding.loc, *finding.uses)
        for other in wrong
    )


def _is_consequence(finding: Finding, findings: list[Finding]) -> bool:
    """Whether it depends on a field that another finding is about: correcting that one may resolve it."""
    return any(other.fatal and other.loc in finding.uses for other in findings)


def _to_remove(finding: Finding, data: Mapping[str, Json]) -> Loc:
    """The field to remove: the parent of a missing one, the list of an item, or `compute` with an unknown backend."""
    loc = finding.loc
    if loc == ("compute", "backend"):
        return ("compute",)
    if not _holds(data, loc):
        loc = loc[:-1]
    while loc and isinstance(loc[-1], int) and loc[:-1] != ("dataset",):
        loc = loc[:-1]
    return loc or ("dataset",)


def _holds(data: Mapping[str, Json], loc: Loc) -> bool:
    here: Any = data
    for part in loc:
        if isinstance(here, Mapping) and part not in here:
            return False
        here = here[part]
    return True


def _without(data: Any, loc: Loc) -> Any:
    """The data without one field. One of several datasets is replaced, so that the others keep their indices."""
    if not loc or not isinstance(data, dict | list):
        return data
    head, rest = loc[0], loc[1:]
    if isinstance(data, list):
        return [
            (_without(item, rest) if rest else _DATASET) if index == head else item for index, item in enumerate(data)
        ]
    if not rest:
        return {key: value for key, value in data.items() if key != head}
    return {key: _without(value, rest) if key == head else value for key, value in data.items()}
