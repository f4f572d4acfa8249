"""The stack's template: where it lies, and what it says as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["resolved", "template", "template_text"]

_FILE = "mtl-cloud.yaml"


def template_text() -> str:
    """The text for CloudFormation: from the wheel, or in a clone from ``infra/``."""
    here = Path(__file__).parent
    shipped = here / _FILE
    return (shipped if shipped.exists() else here.parents[1] / "infra" / _FILE).read_text(encoding="utf-8")


@cache
def template() -> Mapping[str, Any]:
    """The template, its short tags written out: ``!Ref X`` is ``{"Ref": "X"}``."""
    document: dict[str, Any] = yaml.load(template_text(), _Loader)  # noqa: S506  # a SafeLoader
    return document


def resolved(value: Any, names: Mapping[str, str]) -> Any:
    """The value with ``Ref`` and ``Fn::Sub`` replaced by what ``names`` holds; ``KeyError`` for a name it lacks."""
    match value:
        case {"Ref": name}:
            return names[name]
        case {"Fn::Sub": text}:
            return re.sub(r"\$\{(!?)([\w:.]+)\}", lambda m: f"${{{m[2]}}}" if m[1] else names[m[2]], text)
        case dict():
            return {key: resolved(below, names) for key, below in value.items()}
        case list():
            return [resolved(below, names) for below in value]
        case _:
            return value


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short tags, and with dates left as the texts they are."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any = node.value
    if isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    if suffix == "GetAtt":
        value = str(value).split(".", 1)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)
