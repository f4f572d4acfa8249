"""Parse YAML to plain JSON values, with the line and column of each.

Scalars follow the core schema of YAML 1.2: ``1e-3`` is a number, and ``yes``, ``on`` and ``2026-01-01`` are strings,
which PyYAML (YAML 1.1) would convert. Duplicate keys, aliases and tags are errors: each value of a job has one place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import yaml

from mtl_cloud.errors import Problem, SpecError
from mtl_cloud.jobspec.finding import Finding, Loc, path_of

if TYPE_CHECKING:
    from mtl_cloud.json_types import Json

__all__ = ["Place", "Tree", "merge", "override", "read_yaml"]

_MAX_DEPTH = 20
_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}
_LITERALS: dict[str, Json] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,18}")  # small enough for any JSON parser
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Place(NamedTuple):
    """A position in a file; line and column start at 1, and are 0 for an option of the command line."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True)
class Tree:
    """The values, their places, and the mistakes found while parsing."""

    data: Mapping[str, Json]
    keys: Mapping[Loc, Place]
    """Places of the fields' names."""
    values: Mapping[Loc, Place]
    """Places of the values; that of the name if the value is a mapping or a list. The root always has one."""
    problems: tuple[Problem, ...] = ()

    def place(self, loc: Loc, *, key: bool = False) -> Place:
        """The place of the field, or of its innermost ancestor that the document has."""
        while loc not in self.values:
            loc = loc[:-1]
        return self.keys.get(loc, self.values[loc]) if key else self.values[loc]

    def problem(self, finding: Finding) -> Problem:
        place = self.place(finding.loc, key=finding.at_key)
        return Problem(*place, path_of(finding.loc), finding.message, finding.hint)


def read_yaml(text: bytes, file: str) -> Tree:
    """Parse one document.

    Raises
    ------
    SpecError
        The text is not YAML, is empty, or is not a mapping; the error has the place.
    """
    node = _compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        held = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        message = f"a job must be a mapping of fields, but this file holds {held}"
        raise SpecError([Problem(file, 1, 1, "", message, "a minimal job is `dataset: {name: embedded}`")])
    reader = _Reader(file)
    data = reader.mapping(node, ())
    reader.values[()] = Place(file, 1, 1)
    return Tree(data, reader.keys, reader.values, tuple(reader.problems))


def _compose(text: bytes, file: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count(b"\n") + 1
        raise SpecError([Problem(file, line, 1, "", f"not text: {error.reason}", "save the file as UTF-8")]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        raise SpecError([Problem(*place, "", f"not YAML: {error.problem}", _syntax_hint(error))]) from error
    except RecursionError as error:
        raise SpecError([Problem(file, 1, 1, "", "nested too deeply to be a job")]) from error
    return node


def _syntax_hint(error: yaml.MarkedYAMLError) -> str | None:
    if "'\\t'" in str(error.problem):
        return "indent with spaces, not tabs"
    return str(error.context) if error.context else None


class _Reader:
    """Walks over the nodes of a document. Mistakes are collected, not raised."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.keys: dict[Loc, Place] = {}
        self.values: dict[Loc, Place] = {}
        self.problems: list[Problem] = []
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, loc: Loc) -> Json:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return self.items(node, loc)
        return _scalar(str(node.value), plain=getattr(node, "style", None) is None)

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for key, value in node.value:
            place = self._place(key)
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            at = (*loc, name)
            if at in self.keys:
                self._problem(place, at, f"duplicate key, first on line {self.keys[at].line}", "keep one")
                continue
            self.keys[at] = place
            self.values[at] = self._start(value, place) if isinstance(value, yaml.ScalarNode) else place
            if self._is_plain(value, at):
                found[name] = self.value(value, at)
        return found

    def items(self, node: yaml.SequenceNode, loc: Loc) -> list[Json]:
        found: list[Json] = []
        for item in node.value:
            at = (*loc, len(found))
            self.values[at] = self._start(item, self.values[loc])
            if self._is_plain(item, at):
                found.append(self.value(item, at))
        return found

    def _is_plain(self, node: yaml.Node, loc: Loc) -> bool:
        """Whether it has no alias, no tag and no excessive depth. Otherwise it is reported, and its value left out."""
        if len(loc) > _MAX_DEPTH:
            self._problem(self.values[loc], loc, "nested too deeply", "no field of a job is nested so deeply")
            return False
        if id(node) in self._seen:
            self._problem(self.values[loc], loc, "aliases (*name) are not supported", "write the value out")
            return False
        self._seen.add(id(node))
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(self.values[loc], loc, f"tags ({tag}) are not supported", "remove the tag")
            return False
        return True

    def _start(self, node: yaml.Node, otherwise: Place) -> Place:
        """The place of a node; an alias has none of its own, because it is the same node as its anchor."""
        return otherwise if id(node) in self._seen else self._place(node)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _problem(self, place: Place, loc: Loc, message: str, hint: str) -> None:
        self.problems.append(Problem(*place, path_of(loc), message, hint))


def _scalar(text: str, *, plain: bool) -> Json:
    if not plain:  # quoted, or a block scalar: always a string
        return text
    if text in _LITERALS:
        return _LITERALS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def merge(below: Mapping[str, Json], above: Mapping[str, Json]) -> dict[str, Json]:
    """Mappings merge key by key, at every depth; any other value of ``above`` replaces that of ``below``."""
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = merge(lower, value) if isinstance(lower, dict) and isinstance(value, dict) else value
    return merged


def override(tree: Tree, options: Sequence[str]) -> Tree:
    """The tree with each ``path.to.field=value`` assigned; the value is YAML and replaces the old one."""
    for option in options:
        tree = _assign(tree, option)
    return tree


def _assign(tree: Tree, option: str) -> Tree:
    path = option.partition("=")[0]
    place = Place(f"--set {path}")
    try:
        loc, value = _parse_option(tree.data, option)
    except ValueError as error:
        problem = Problem(*place, "", str(error), "for example --set training.batch_size=32")
        return replace(tree, problems=(*tree.problems, problem))
    around = {loc[:depth]: place for depth in range(1, len(loc))}  # existing ones keep their own places
    outside = {at: where for at, where in tree.values.items() if at[: len(loc)] != loc}
    keys = {at: where for at, where in tree.keys.items() if at in outside}
    data = _assigned(tree.data, loc, value)
    assert isinstance(data, dict)  # noqa: S101 - the root stays a mapping: loc is not empty
    return replace(tree, data=data, keys=keys, values={**around, **outside, loc: place})


def _parse_option(data: Mapping[str, Json], option: str) -> tuple[Loc, Json]:
    path, equals, text = option.partition("=")
    if not (path and equals):
        raise ValueError("expected field=value")
    return _resolve(data, path.split(".")), _option_value(text)


def _option_value(text: str) -> Json:
    try:
        tree = read_yaml(f"value: {text}".encode(), "--set")
    except SpecError as error:
        raise ValueError(error.problems[0].message) from error
    if tree.problems or set(tree.data) != {"value"}:
        raise ValueError("expected one YAML value")
    return tree.data["value"]


def _resolve(data: Json | Mapping[str, Json], parts: Sequence[str]) -> Loc:
    """The location of dotted parts; list items are named by index."""
    loc: list[str | int] = []
    for part in parts:
        if isinstance(data, list):
            index = int(part) if part.isdigit() else len(data)
            if index >= len(data):
                raise ValueError(f"{path_of(tuple(loc))} is a list of {len(data)}: give the index of an item, from 0")
            loc.append(index)
            data = data[index]
        elif data is None or isinstance(data, Mapping):
            loc.append(part)
            data = (data or {}).get(part)
        else:
            raise ValueError(f"{path_of(tuple(loc))} is a single value and has no field {part!r}")
    return tuple(loc)


def _assigned(data: Json | Mapping[str, Json], loc: Loc, value: Json) -> Json:
    if not loc:
        return value
    head, rest = loc[0], loc[1:]
    if isinstance(data, list) and isinstance(head, int):
        return [_assigned(item, rest, value) if index == head else item for index, item in enumerate(data)]
    fields = dict(data) if isinstance(data, Mapping) else {}
    return fields | {str(head): _assigned(fields.get(str(head)), rest, value)}
