"""The JSON schema agrees with the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mtl_cloud.jobspec.load import preset_names
from mtl_cloud.jobspec.schema import job_schema
from mtl_cloud.jobspec.tree import read_yaml

BROKEN = Path(__file__).parent / "broken"


def fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    models = [("job", schema), *schema["$defs"].items()]
    return [(f"{model}.{name}", field) for model, at in models for name, field in at.get("properties", {}).items()]


def test_it_is_a_schema_of_draft_2020_12() -> None:
    schema = job_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["dataset"]
    assert schema["additionalProperties"] is False


def test_every_field_has_a_description() -> None:
    schema = job_schema()
    named = {f"#/$defs/{name}": model for name, model in schema["$defs"].items()}
    undescribed = [
        name
        for name, field in fields(schema)
        if not {**named.get(field.get("$ref", ""), {}), **field}.get("description") and "const" not in field
    ]
    assert undescribed == []


def test_extends_offers_the_presets() -> None:
    extends = job_schema()["properties"]["extends"]
    assert extends["anyOf"][0]["enum"] == list(preset_names())


@pytest.mark.parametrize("stem", ["01_misspelt", "02_kinds", "03_ranges", "07_sharing", "10_datasets", "11_backends"])
def test_it_refuses_the_same_values_of_single_fields_as_the_loader(stem: str) -> None:
    data = read_yaml((BROKEN / f"{stem}.yaml").read_bytes(), stem).data
    assert list(Draft202012Validator(job_schema()).iter_errors(data))


@pytest.mark.parametrize("compute", [{}, {"gpu_count": 1}, {"backend": "ec2", "instance_type": ["a", "b"]}])
def test_it_takes_compute_without_a_backend_and_several_types(compute: dict[str, Any]) -> None:
    job = {"dataset": {"name": "embedded"}, "compute": compute}
    assert list(Draft202012Validator(job_schema()).iter_errors(job)) == []


def test_it_names_the_stages_that_share() -> None:
    validator = Draft202012Validator(job_schema())
    job = {"dataset": {"name": "embedded"}, "model": {"sharing": {"1": "hard", "5": "gate"}}}
    assert validator.is_valid(job)
    assert not validator.is_valid(job | {"model": {"sharing": {"6": "gate"}}})
