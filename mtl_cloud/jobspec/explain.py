"""A schema's errors in the user's words: what is wrong with which field, what is allowed, the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from mtl_cloud.jobspec.finding import Finding, Loc
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.suggest import did_you_mean

__all__ = ["explain"]

_Told: TypeAlias = tuple[str, str | None]

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "model_type": "a mapping of fields",
    "string_type": "text",
    "tuple_type": "a list",
    "union_tag_not_found": "a mapping of fields",
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
    """One finding for each mistake, in the order of the schema."""
    return [_finding(details) for details in error.errors(include_url=False) if not _is_echo(details)]


def _is_echo(details: ErrorDetails) -> bool:
    """A list whose items are all wrong is also called too short: only the items are worth telling."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


def _finding(details: ErrorDetails) -> Finding:
    loc, models = _walk(details["loc"])
    message, hint = _TELLERS.get(details["type"], _tell_other)(details, models)
    if details["type"] == "union_tag_invalid":
        loc = (*loc, "backend")
    is_name = details["type"] == "extra_forbidden" or details["loc"][-1:] == ("[key]",)
    return Finding(loc, message, hint, at_key=is_name)


# --- from pydantic's location to the job's ---------------------------------------------------------------------------


def _walk(raw: tuple[int | str, ...]) -> tuple[Loc, Mapping[str, type[BaseModel]]]:
    """The location without the tags of unions, and the models that its last field could belong to.

    The models are keyed by tag, the one that was chosen first.
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
    if get_origin(annotation) is Annotated:  # inside of a mapping, with the union's discriminator around it
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


# --- what to say -----------------------------------------------------------------------------------------------------


def _tell_missing(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> _Told:
    return "is required", _description(details, models)


def _tell_unknown(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> _Told:
    name = str(details["loc"][-1])
    chosen, *_ = models.items()
    owners = [tag for tag, model in models.items() if name in model.model_fields]
    if owners:
        return f"is not a field of backend {chosen[0]}", f"it belongs to backend {' or '.join(owners)}"
    known = sorted(chosen[1].model_fields)
    return "unknown field", did_you_mean(name, known) or f"known here: {', '.join(known)}"


def _tell_choice(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    ctx = details["ctx"]
    given = ctx.get("tag", details["input"])
    names = re.findall(r"'([^']*)'", ctx.get("expected", ctx.get("expected_tags", "")))
    nearest = did_you_mean(given, names) if isinstance(given, str) else None
    return f"{_show(given)} is not one of {', '.join(names)}", nearest


def _tell_kind(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    value = details["input"]
    wanted = _KINDS[details["type"]]
    return f"{wanted} is expected, not {_show(value)}", _kind_hint(details["type"], value)


def _kind_hint(kind: str, value: object) -> str | None:
    if kind == "bool_type" and isinstance(value, str) and value.casefold() in _YAML_1_1:
        return f"YAML 1.2 reads {value} as text: write {_YAML_1_1[value.casefold()]}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in {"int_type", "float_type"} and isinstance(value, str) and re.fullmatch(r"-?[0-9.]+", value):
        return "write it without quotes"
    return None


def _tell_limit(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    limit = _LIMITS[details["type"]].format(**details.get("ctx", {}))
    return f"must be {limit}, not {_show(details['input'])}", None


def _tell_pattern(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> _Told:
    return f"{_show(details['input'])} does not fit", _description(details, models)


def _tell_rule(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    return str(details["ctx"]["error"]), None


def _tell_empty(_details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    return "the list is empty", "name at least one"


def _tell_other(details: ErrorDetails, _: Mapping[str, type[BaseModel]]) -> _Told:
    return details["msg"], None


_TELLERS: dict[str, Callable[[ErrorDetails, Mapping[str, type[BaseModel]]], _Told]] = {
    **dict.fromkeys(_KINDS, _tell_kind),
    **dict.fromkeys(_LIMITS, _tell_limit),
    "extra_forbidden": _tell_unknown,
    "literal_error": _tell_choice,
    "missing": _tell_missing,
    "string_pattern_mismatch": _tell_pattern,
    "too_short": _tell_empty,
    "union_tag_invalid": _tell_choice,
    "value_error": _tell_rule,
}


def _description(details: ErrorDetails, models: Mapping[str, type[BaseModel]]) -> str | None:
    name = details["loc"][-1]
    fields = next(iter(models.values())).model_fields if models else {}
    field = fields.get(str(name))
    text = (field.description or "").rstrip(".") if field else ""
    return text[:1].lower() + text[1:] or None


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return str(value)
