"""``mtl-cloud anchors`` over a job file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mtl_cloud import cli
from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.load import load_job

JOB = "dataset: {name: embedded, max_train_samples: 80}\ntraining: {image_size: 96}\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def anchors(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, ["anchors", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_printed_yaml_is_part_of_a_valid_job(job: Path) -> None:
    text = anchors(job)
    pasted = text[text.index("model:") :]
    job.write_text(JOB + pasted)
    assert load_job(job).job.model.anchors == tuple(map(tuple, yaml.safe_load(pasted)["model"]["anchors"]))


def test_json_holds_nine_anchors_by_area_that_fit_better_than_darknets(job: Path) -> None:
    document = json.loads(anchors(job, "--json"))
    areas = [width * height for width, height in document["anchors"]]
    assert (len(areas), areas) == (9, sorted(areas))
    assert (document["image_size"], document["seed"]) == (96, 0)
    assert document["mean_iou"] > document["darknet"]["mean_iou"]


def test_twice_the_image_size_doubles_the_anchors(job: Path) -> None:
    small, large = (json.loads(anchors(job, "--json", "--set", f"training.image_size={size}")) for size in (96, 192))
    assert large["boxes"] == small["boxes"]
    assert large["mean_iou"] == pytest.approx(small["mean_iou"], abs=0.01)


def test_a_dataset_without_boxes_is_an_error(job: Path) -> None:
    job.write_text("dataset: {name: embedded, tasks: [classification]}\n")
    with pytest.raises(DatasetError, match="embedded train labels no boxes"):
        CliRunner().invoke(cli.app, ["anchors", str(job)], catch_exceptions=False)


def test_without_numpy_the_extra_is_named(job: Path) -> None:
    script = f"""
import sys
sys.modules["numpy"] = None
from mtl_cloud.cli import main
sys.exit(main(["anchors", {str(job)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 11
    assert "needs the extra 'train'" in result.stderr
