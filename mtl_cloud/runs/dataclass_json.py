"""Frozen dataclasses from JSON values, and back. It uses only the standard library, as the whole run record does.

A field may be a dataclass, ``list[X]``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]``, ``Mapping[str, X]``,
``str``, ``int``, ``float``, ``bool``, a ``Literal`` of texts, a union of types with different JSON kinds (as
``X | None``), or ``Json`` and ``Any``, which are taken as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import repeat
from types import UnionType
from typing import Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mtl_cloud.errors import RecordError
from mtl_cloud.json_types import Json

__all__ = ["FieldPath", "from_json", "is_required", "json_classes", "json_object", "to_json"]

T = TypeVar("T")


@dataclass(frozen=True)
class FieldPath:
    """The position of a value in a document, for error messages."""

    source: str
    """Name of the file or document."""
    record: str
    """Name of the type that it holds."""
    path: str = ""
    """``facts.offers[0].price``; empty for the document itself."""

    def field(self, name: str) -> FieldPath:
        return FieldPath(self.source, self.record, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> FieldPath:
        return FieldPath(self.source, self.record, f"{self.path}[{index}]")

    def missing(self) -> RecordError:
        return RecordError(f"{self.source}: the field {self.path!r} of a {self.record} is missing")

    def wrong(self, value: object) -> RecordError:
        shown = json.dumps(value)[:80]
        return RecordError(f"{self.source}: the field {self.path!r} of a {self.record} cannot be {shown}")


def json_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ``RecordError``."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{source}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise RecordError(f"{source}: a JSON object is expected, not a {type(document).__name__}")
    return document


def to_json(value: object) -> Any:
    """The value with dataclasses as objects, whose fields stand in order of declaration, tuples as lists and members of
    enumerations as their values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value.value if isinstance(value, Enum) else value


def from_json(kind: type[T], value: Json, at: FieldPath) -> T:
    """The value that ``to_json`` made of a ``kind``. Fields that ``kind`` does not have are ignored.

    Raises ``RecordError`` for the first field that is missing or of another type; ``at`` names the value itself.
    """
    parsed: T = _parse(kind, value, at)
    return parsed


def _parse(hint: Any, value: Any, at: FieldPath) -> Any:
    for option in _options(hint):
        if _accepts(option, value):
            return _inside(option, value, at)
    raise at.wrong(value)


def _inside(kind: Any, value: Any, at: FieldPath) -> Any:
    """The value of a type that its outermost kind fits already."""
    if is_dataclass(kind):
        return kind(**dict(_fields(kind, value, at)))  # type: ignore[operator]  # always a class here
    arguments, origin = get_args(kind), get_origin(kind)
    if origin in {dict, Mapping}:
        return {key: _parse(arguments[1], inner, at.field(key)) for key, inner in value.items()}
    if origin in {list, tuple}:
        kinds: Iterable[Any] = arguments
        if origin is list or arguments[-1] is Ellipsis:
            kinds = repeat(arguments[0], len(value))
        elif len(value) != len(arguments):
            raise at.wrong(value)
        items = enumerate(zip(kinds, value, strict=True))
        return origin(_parse(item, inner, at.item(index)) for index, (item, inner) in items)
    return value


def _fields(kind: Any, value: dict[str, Any], at: FieldPath) -> Iterator[tuple[str, Any]]:
    for name, hint, required in _typed_fields(kind):
        if name in value:
            yield name, _parse(hint, value[name], at.field(name))
        elif required:
            raise at.field(name).missing()


@cache
def _typed_fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether a value must be given."""
    hints = get_type_hints(kind)
    return tuple((f.name, hints[f.name], is_required(f)) for f in fields(kind))


def is_required(f: Field[Any]) -> bool:
    """Whether the field has no default."""
    return f.default is MISSING and f.default_factory is MISSING


def json_classes(hint: Any) -> frozenset[type]:
    """The classes that ``json.loads`` makes of values of a type."""
    return frozenset(kind for option in _options(hint) for kind in _classes(option))


@cache
def _classes(option: Any) -> tuple[type, ...]:
    kind = get_origin(option) or option
    if kind is Literal:
        return (str,)
    if is_dataclass(kind) or kind in {dict, Mapping}:
        return (dict,)
    if kind in {list, tuple}:
        return (list,)
    return (float, int) if kind is float else (kind,)


@cache
def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def _accepts(option: Any, value: Any) -> bool:
    if option is Any or isinstance(option, ForwardRef):  # the type Json names itself inside
        return True
    return type(value) in _classes(option) and (get_origin(option) is not Literal or value in get_args(option))
