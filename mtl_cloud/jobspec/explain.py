"""Turn pydantic's errors into messages for users: the field, the valid values, and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from mtl_cloud.jobspec.finding import Finding, Loc
from mtl_cloud.jobspec.job import PATTERNS, JobSpec
from mtl_cloud.suggest import did_you_mean

__all__ = ["explain"]

_Explanation: TypeAlias = tuple[str, str | None]

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "model_type": "a mapping",
    "string_type": "a string",
    "tuple_type": "a list",
    "union_tag_not_found": "a mapping",
}
_LIMITS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
}
_YAML_1_1 = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def explain(error: ValidationError) -> list[Finding]:
    """One finding for each error, in the order of the schema."""
    return [_finding(details) for details in error.errors(include_url=False) if not _is_redundant(details)]


def _is_redundant(details: ErrorDetails) -> bool:
    """A list whose items are all invalid is also reported as too short: only the items matter."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


def _finding(details: ErrorDetails) -> Finding:
    loc, models = _walk(details["loc"])
    message, hint = _EXPLAINERS.get(details["type"], _explain_other)(details, models)
    if details["type"] == "union_tag_invalid":
        loc = (*loc, "backend")
    is_name = details["type"] == "extra_forbidden" or details["loc"][-1:] == ("[key]",)
    return Finding(loc, message, hint, at_key=is_name)


# --- from pydantic's location to the job's ---------------------------------------------------------------------------


def _walk(raw: tuple[int | str, ...]) -> tuple[Loc, Mapping[str, type[BaseModel]]]:
    """The location without the tags of unions, and the models that its last field may belong to.

    The models are keyed by tag; the chosen one is first.
    """
    loc: list[str | int] = []
    here: Any = JobSpec
    models: dict[str, type[BaseModel]] = {}
    for part in raw:
        members = _members(here)
        if part in members:
            here = members[part]
            others = {tag: member for tag, member in members.items() if _is_model(member)}
            models = {str(part): here, **others} if _is_model(here) else {}
        elif part != "[key]":
            if _is_model(here) and here not in models.values():
                models = {"": here}
            loc.append(part)
            here = _inside(here, part)
    return tuple(loc), models


def _members(annotation: Any) -> dict[Any, Any]:
    """Tag -> member of a tagged union; empty for anything else."""
    if get_origin(annotation) is Annotated:  # within a mapping, with the union's discriminator around it
        annotation = get_args(annotation)[0]
    return {
        tag.tag: get_args(member)[0]
        for member in get_args(annotation)
        if get_origin(member) is Annotated
        for tag in member.__metadata__
        if isinstance(tag, Tag)
    }


def _inside(annotation: Any, part: str | int) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    arguments = get_args(annotation)
    return (arguments[0] if isinstance(part, int) else arguments[-1]) if arguments else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


# --- messages --------------------------------------------------------------------------------------------------------


def _explain_missing(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> _Explanation:
    return "required field is missing", _description(details, models)


def _explain_unknown(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> _Explanation:
    name = str(details["loc"][-1])
    chosen, *_ = models.items()
    owners = [tag for tag, model in models.items() if name in model.model_fields]
    if owners:
        return f"unknown field for backend {chosen[0]}", f"it belongs to backend {' or '.join(owners)}"
    known = sorted(chosen[1].model_fields)
    return "unknown field", did_you_mean(name, known) or f"known fields: {', '.join(known)}"


def _explain_choice(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    ctx = details["ctx"]
    given = ctx.get("tag", details["input"])
    names = re.findall(r"'([^']*)'", ctx.get("expected", ctx.get("expected_tags", "")))
    nearest = did_you_mean(given, names) if isinstance(given, str) else None
    return _invalid(given, f"expected one of {', '.join(names)}"), nearest


def _explain_kind(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    value = details["input"]
    return _invalid(value, f"expected {_KINDS[details['type']]}"), _kind_hint(details["type"], value)


def _kind_hint(kind: str, value: object) -> str | None:
    if kind == "bool_type" and isinstance(value, str) and value.casefold() in _YAML_1_1:
        return f"YAML 1.2 reads {value} as a string: write {_YAML_1_1[value.casefold()]}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"-?[0-9.]+", value):
        return "write it without quotes"
    return None


def _explain_limit(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    limit = _LIMITS[details["type"]].format(**details.get("ctx", {}))
    return _invalid(details["input"], f"must be {limit}"), None


def _explain_pattern(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    form = PATTERNS[details["ctx"]["pattern"]]
    is_name = details["loc"][-1] in {"name", "[key]"}
    return f"invalid name {_show(details['input'])}: {form}" if is_name else _invalid(details["input"], form), None


def _explain_rule(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    return str(details["ctx"]["error"]), None


def _explain_empty(_details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    return "empty list", "give at least one item"


def _explain_other(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Explanation:
    return details["msg"], None


_EXPLAINERS: dict[str, Callable[[ErrorDetails, Mapping[str, type[BaseModel]]], _Explanation]] = {
    **dict.fromkeys(_KINDS, _explain_kind),
    **dict.fromkeys(_LIMITS, _explain_limit),
    "extra_forbidden": _explain_unknown,
    "literal_error": _explain_choice,
    "missing": _explain_missing,
    "string_pattern_mismatch": _explain_pattern,
    "too_short": _explain_empty,
    "union_tag_invalid": _explain_choice,
    "value_error": _explain_rule,
}


def _description(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> str | None:
    name = details["loc"][-1]
    fields = next(iter(models.values())).model_fields if models else {}
    field = fields.get(str(name))
    text = (field.description or "").rstrip(".") if field else ""
    return text[:1].lower() + text[1:] or None


def _invalid(value: object, expectation: str) -> str:
    if isinstance(value, dict | list):
        return f"invalid value: {expectation}, not {'a mapping' if isinstance(value, dict) else 'a list'}"
    return f"invalid value {_show(value)}: {expectation}"


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return str(value)
