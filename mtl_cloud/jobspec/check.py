"""From plain values to a job, with every mistake named at once.

A wrong field would hide what is wrong elsewhere: the schema's errors hide those of the cross-field facts. So each wrong
field is taken out, its default stands in, and the rest is checked again until nothing is left to say. What rests on a
field that was taken out is not told: it may not be true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mtl_cloud.jobspec.constraints import check_facts
from mtl_cloud.jobspec.finding import Finding, Loc
from mtl_cloud.jobspec.job import JobSpec

if TYPE_CHECKING:
    from mtl_cloud.json_types import Json

__all__ = ["check", "validate"]

_DATASET: Json = {"name": "embedded"}
"""Stands in for the one field that has no default."""


def check(data: Mapping[str, Json]) -> tuple[JobSpec, list[Finding]]:
    """The job and all findings. While any finding is fatal, the job is not the one that was asked for."""
    findings: list[Finding] = []
    wrong: set[Loc] = set()
    job = validate(data)
    while not isinstance(job, JobSpec):
        findings += [finding for finding in job if not _rests_on(finding, wrong)]
        extents = [_extent(finding, data) for finding in job]
        wrong |= {loc for finding, loc in zip(job, extents, strict=True) if not finding.at_key}
        data = {"dataset": _DATASET, **reduce(_without, extents, data)}
        job = validate(data)
    facts = [fact for fact in check_facts(job) if not _rests_on(fact, wrong)]
    return job, findings + [fact for fact in facts if not _follows(fact, facts)]


def validate(data: Mapping[str, Json]) -> JobSpec | list[Finding]:
    """The job, or what the schema alone has against it."""
    # As JSON, because strict rules (no text for a number) still take a list for a tuple there.
    try:
        return JobSpec.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        from mtl_cloud.jobspec.explain import explain  # a valid job does not pay for it

        return explain(error)


def _rests_on(finding: Finding, wrong: set[Loc]) -> bool:
    return any(
        own[: len(other)] == other or other[: len(own)] == own
        for own in (finding.loc, *finding.uses)
        for other in wrong
    )


def _follows(fact: Finding, facts: list[Finding]) -> bool:
    """It rests on a field that another fact calls wrong: mending that one may mend it too."""
    return any(other.fatal and other.loc in fact.uses for other in facts)


def _extent(finding: Finding, data: Mapping[str, Json]) -> Loc:
    """The field to take out: what encloses an absent one, the list around an item, all of an unknown backend."""
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
    """The data less one field. A dataset of several is replaced, so that the others keep their indices."""
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
