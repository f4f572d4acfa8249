"""The job-file reference in Markdown, generated from the JSON schema, and so from the models' own descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from mtl_cloud.jobspec.load import preset_names, preset_text
from mtl_cloud.jobspec.schema import job_schema

__all__ = ["job_reference"]

Schema: TypeAlias = dict[str, Any]

_INTRODUCTION = """\
# Job file reference

This page is generated from the job file's models: `mtl-cloud schema --format markdown > docs/job-file.md`.
`mtl-cloud init` writes a commented job file; `mtl-cloud validate job.yaml` checks one.

```yaml
name: pets
extends: standard
dataset: {name: voc, uri: /data/VOCdevkit}
model: {name: mtl_net}
training: {rounds: 20, image_size: 416}
storage: mtl-runs
```

Only `dataset` is required. A field of the file overrides the same field of the presets that `extends` names, and
`--set training.rounds=5` overrides both for one command.
"""
_UNITS = {"gib": "GiB", "hours": "hours", "minutes": "minutes", "steps": "steps", "usd": "US dollars"}
"""Last part of a field's name -> the unit of its value."""
_KINDS = {
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "null": "`null`",
    "number": "number",
    "string": "text",
}
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
}


def job_reference() -> str:
    """The page: an introduction, a table for each section of the job file, and the presets."""
    schema = job_schema()
    sections = _sections(schema)
    tables = [_table(schema["$defs"], title, section) for title, section in sections]
    return "\n".join([_INTRODUCTION, *tables, _presets()])


def _sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Title and object schema of each section, in the order of the job file; nested sections follow their parent."""
    yield "Top level", schema
    yield from _nested(schema["$defs"], "", schema["properties"])


def _nested(definitions: Schema, prefix: str, properties: Schema) -> Iterator[tuple[str, Schema]]:
    for name, field in properties.items():
        for definition in _references(field):
            section = definitions[definition]
            backend = section["properties"].get("backend", {}).get("const")
            title = f"`{prefix}{name}`" + (f" with `backend: {backend}`" if backend else "")
            yield title, section
            yield from _nested(definitions, f"{prefix}{name}.", section["properties"])


def _references(field: Any) -> Iterator[str]:
    """Names of the definitions that a field's schema refers to, each once."""
    if isinstance(field, dict):
        found = [value for key, value in field.items() if key != "default"]
        names = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
    else:
        found, names = field if isinstance(field, list) else [], []
    yield from dict.fromkeys([*names, *(name for value in found for name in _references(value))])


def _table(definitions: Schema, title: str, section: Schema) -> str:
    required = section.get("required", [])
    rows = [_row(definitions, name, field, name in required) for name, field in section["properties"].items()]
    head = "| field | values | default | meaning |\n|---|---|---|---|"
    return "\n".join([f"## {title}\n", f"{section['description']}\n", head, *rows, ""])


def _row(definitions: Schema, name: str, field: Schema, is_required: bool) -> str:
    unit = _UNITS.get(name.rpartition("_")[2])
    values = _values(definitions, field) + (f"; {unit}" if unit else "")
    default = "required" if is_required else _default(field)
    meaning = field.get("description") or "Selects this backend."
    return f"| `{name}` | {values} | {default} | {meaning} |"


def _default(field: Schema) -> str:
    """The default as the job file would state it; a dash for a section, whose fields have their own defaults."""
    value = field.get("default")
    is_section = isinstance(value, dict) and bool(value)
    return "-" if is_section or "default" not in field else f"`{json.dumps(value)}`"


def _values(definitions: Schema, field: Schema) -> str:
    """The allowed values in words."""
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_values(definitions, one) for one in options))
    if "$ref" in field:
        return "section"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return _list(definitions, field)
    if field.get("type") == "object":
        return _mapping(definitions, field)
    bounds = ", ".join(text.format(field[key]) for key, text in _BOUNDS.items() if key in field)
    return f"{_KINDS[field['type']]} {bounds}".strip()


def _list(definitions: Schema, field: Schema) -> str:
    if "prefixItems" in field:
        items = dict.fromkeys(_values(definitions, item) for item in field["prefixItems"])
        return f"list of {len(field['prefixItems'])}: {' and '.join(items)}"
    return f"list of: {_values(definitions, field['items'])}"


def _mapping(definitions: Schema, field: Schema) -> str:
    """The allowed names and values. Where names follow a pattern, the field's description explains them."""
    values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
    names = _values(definitions, field["propertyNames"]) if "propertyNames" in field else "names"
    return f"mapping of {names} to: {_values(definitions, values)}"


def _presets() -> str:
    texts = [f"### `extends: {name}`\n\n```yaml\n{preset_text(name).strip()}\n```\n" for name in preset_names()]
    return "\n".join(["## Presets\n", *texts])
