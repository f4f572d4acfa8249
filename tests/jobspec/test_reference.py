"""The generated reference of job files: fresh, whole, and in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl_cloud import cli
from mtl_cloud.jobspec.reference import job_reference
from mtl_cloud.jobspec.schema import job_schema

PAGE = Path(__file__).parents[2] / "docs" / "job-file.md"


def test_the_page_in_docs_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == job_reference(), (
        "docs/job-file.md is stale: mtl-cloud schema --format markdown > docs/job-file.md"
    )


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == job_reference()


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Section, name and schema of every field of a job file."""
    for section, definition in {"job": schema, **schema["$defs"]}.items():
        for name, field in definition["properties"].items():
            yield section, name, field


def test_every_field_has_a_row_and_every_row_a_meaning() -> None:
    page, schema = job_reference(), job_schema()
    for section, name, field in fields(schema):
        assert f"| `{name}` |" in page, f"{section}.{name}"
        if "const" not in field:
            assert field.get("description"), f"{section}.{name} has no description"
            assert f"| {field['description']} |" in page
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(sections) == len(set(sections))
    assert "## `training.optimizer`" in sections
    assert "## `compute` with `backend: ec2`" in sections


def test_every_row_has_four_cells() -> None:
    rows = [line for line in job_reference().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.count(" | ") != 3] == []


@pytest.mark.parametrize(
    "row",
    [
        '| `purchase` | `on_demand`, `spot`, `spot_then_on_demand` | `"on_demand"` |',
        "| `batch_size` | whole number > 0 | `16` |",
        "| `budget_usd` | number > 0 or `null`; US dollars | `null` |",
        "| `image_size` | whole number ≥ 32, ≤ 1024, a multiple of 32 | `416` |",
        "| `weights` | mapping of `classification`, `detection`, `segmentation` to: number ≥ 0 | `{}` |",
        "| `subnets` | list of: text | `[]` |",
        "| `optimizer` | section | - |",
        "| `backend` | `ec2` | required |",
        "| `dataset` | section or list of: section | required |",
    ],
)
def test_values_are_told_in_words(row: str) -> None:
    assert row in job_reference()
