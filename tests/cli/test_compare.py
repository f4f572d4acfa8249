"""``mtl-cloud compare`` over run records in a folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from run_example import example_report, round_record, write_run

from mtl_cloud import cli
from mtl_cloud.compare import render as report_compare
from mtl_cloud.errors import UsageError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.report.build import Report
from mtl_cloud.report.sections import Cell, Column
from mtl_cloud.storage import FolderStorage

MODELS = {"classification": "vgg16", "detection": "yolov3", "segmentation": "fcn_resnet50"}
HEADLINES = {"classification": "top1", "detection": "map50_voc", "segmentation": "miou"}
SINGLE = {"classification": 0.8, "detection": 0.5, "segmentation": 0.4}


def write(folder: Path, run_id: str, model: str, metrics: dict[str, float], **training: Any) -> None:
    """A finished run of one round."""
    job = JobSpec.model_validate({"dataset": {"name": "voc"}, "model": {"name": model}, "training": training})
    values = {task: {HEADLINES[task]: value, "recall50": 0.5} for task, value in metrics.items()}
    example = example_report(1)
    run = Report(
        plan=replace(example.plan, run_id=run_id),
        spec_yaml="",
        rounds=(round_record(1, metrics=values, classes={}),),
        attempts=example.attempts,
        result=example.result,
    )
    write_run(FolderStorage(folder), run, spec_json=job_to_json(job))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seeds of a joint run, one more with a single loader worker, and the three single runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "storage"
    for seed, gain in enumerate((0.0, 0.04)):
        write(folder, f"joint-{seed}", "mtl_net", {**SINGLE, "classification": 0.8 + gain}, seed=seed)
    write(folder, "slow-0", "mtl_net", SINGLE, loader_workers=1)
    for task, model in MODELS.items():
        write(folder, f"{task}-0", model, {task: SINGLE[task]})
    return folder


ALL = ["joint-0", "joint-1", "slow-0", "classification-0", "detection-0", "segmentation-0"]


def compare(storage: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["compare", "--storage", str(storage), *arguments])


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_table_has_a_row_for_each_configuration(storage: Path) -> None:
    result = compare(storage, *ALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [cells(line)[0] for line in lines[1:6]] == ["mtl_net", "mtl_net", "vgg16", "yolov3", "fcn_resnet50"]
    # delta_m of the two joint runs: 0 and 100/3 * 0.04/0.8 = 1.667; mean 0.83, deviation 1.18.
    assert cells(lines[1])[1:6] == ["cls+det+seg", "voc train/val", "4", "2", "82.0 ± 2.8"]
    assert "+0.83 ± 1.18" in cells(lines[1])


def test_workers_are_set_against_each_other_and_baselines_are_named(storage: Path) -> None:
    text = compare(storage, *ALL).stdout
    assert "1 → 4" in text
    assert "mtl_net: delta_m against classification classification-0, detection detection-0" in text


def test_json_is_the_comparison(storage: Path) -> None:
    document = json.loads(compare(storage, *ALL, "--json", "--at", "best").stdout)
    assert (document["at"], document["tasks"], len(document["rows"])) == ("best", list(MODELS), 5)
    assert document["rows"][0]["run_ids"] == ["joint-0", "joint-1"]
    assert document["rows"][3]["metrics"]["detection"]["recall50"] == {"mean": 0.5, "std": None, "n": 1}


def test_a_run_named_twice_counts_once(storage: Path) -> None:
    document = json.loads(compare(storage, "joint-0", "joint-0", "--json").stdout)
    assert document["rows"][0]["run_ids"] == ["joint-0"]


def test_markdown_and_html_are_written_beside_the_table(storage: Path, tmp_path: Path) -> None:
    result = compare(storage, *ALL, "-o", "table.html", "--markdown", "table.md")
    assert result.exit_code == 0, result.output
    table = (tmp_path / "table.md").read_text().splitlines()
    assert {line.count("|") for line in table[:7]} == {table[0].count("|")}
    assert set(table[1]) == set("|:- ")
    page = (tmp_path / "table.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<tr>") == 1 + 5 + 1 + 1
    assert "+0.83 ± 1.18" in page
    assert "http" not in page


def test_runs_that_cannot_be_compared_are_refused_and_marked_when_forced(storage: Path) -> None:
    write(storage, "large-0", "vgg16", {"classification": 0.9}, image_size=512)
    refused = compare(storage, "classification-0", "large-0")
    assert isinstance(refused.exception, UsageError)
    assert "image size: 416 in classification-0; 512 in large-0" in str(refused.exception)
    forced = compare(storage, "classification-0", "large-0", "--force")
    assert cells(forced.stdout.splitlines()[2])[-1] == "image size"


def test_a_file_that_cannot_be_written_is_a_usage_error(storage: Path, tmp_path: Path) -> None:
    result = compare(storage, "joint-0", "--markdown", str(tmp_path / "none" / "table.md"))
    assert isinstance(result.exception, UsageError)


def test_pipes_in_a_cell_do_not_break_the_markdown_table() -> None:
    column = Column("a", [Cell("x|y", "x|y")])
    assert report_compare._markdown_table([column]).splitlines()[-1] == "| x\\|y |"
