"""Commands that read or write a job file and touch no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtl_cloud import cli
from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.cli.commands.init import job_text
from mtl_cloud.jobspec.load import load_job, parse_job

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dataset", DATASETS)
def test_init_writes_a_valid_job_for_every_dataset(dataset: str, tmp_path: Path) -> None:
    arguments = ["init", "--dataset", dataset, *(["--uri", str(tmp_path)] if dataset != "embedded" else [])]
    assert cli.main(arguments) == 0
    assert load_job("job.yaml").job.datasets[0].name == dataset


@pytest.mark.parametrize("uri", ["s3://bucket/a b", "/data/it's", '/data/"quoted": #1', "/données/ß", "{x}"])
def test_init_quotes_what_yaml_would_misread(uri: str) -> None:
    text = job_text("job.yaml", "voc", uri, "demo")
    found = parse_job(text.encode(), source="job.yaml", base=Path("/")).job.datasets[0].uri
    assert found is not None
    assert found.endswith(uri)


def test_init_overwrites_only_by_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_text("mine")
    assert cli.main(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("job.yaml").read_text() == "mine"
    assert cli.main(["init", "--force"]) == 0
    assert Path("job.yaml").read_text() != "mine"


def test_init_without_the_uri_that_a_dataset_needs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--dataset", "voc"]) == 2
    assert "--uri" in capsys.readouterr().err
    assert not Path("job.yaml").exists()


def test_init_refuses_a_name_that_no_job_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--name", "My Job"]) == 2
    assert "name" in capsys.readouterr().err
    assert not Path("job.yaml").exists()


def test_init_into_a_folder_that_is_not_there_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "nowhere/job.yaml"]) == 2
    assert "nowhere/job.yaml cannot be written: No such file" in capsys.readouterr().err


def test_validate_names_every_mistake_of_every_file_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("dataset: {name: embeded}\ntraining:\n  batchsize: 3\n")
    Path("b.yaml").write_text("dataset: {name: embedded}\n")
    assert cli.main(["validate", "a.yaml", "b.yaml"]) == 2
    streams = capsys.readouterr()
    assert streams.out == "b.yaml: valid\n"
    assert "a.yaml:1:" in streams.err
    assert "a.yaml:3:3: training.batchsize" in streams.err


def test_validate_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("dataset: {name: embedded}\ntraining: {batchsize: 3}\n")
    assert cli.main(["validate", "a.yaml", "--json"]) == 2
    (checked,) = json.loads(capsys.readouterr().out)["files"]
    assert sorted(checked) == ["file", "job", "problems", "valid", "warnings"]
    (problem,) = checked["problems"]
    assert sorted(problem) == ["column", "file", "hint", "line", "message", "path"]
    assert (problem["line"], problem["path"]) == (2, "training.batchsize")


def test_validate_takes_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("dataset: {name: embedded}\n")
    assert cli.main(["validate", "a.yaml", "--set", "training.rounds=0"]) == 2
    assert "training.rounds" in capsys.readouterr().err


def test_schema_is_a_json_schema_that_knows_the_job_s_fields() -> None:
    result = CliRunner().invoke(cli.app, ["schema"])
    assert {"compute", "dataset", "model", "training"} <= set(json.loads(result.output)["properties"])


def test_plan_prints_limits_and_trainer_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init"]) == 0
    assert cli.main(["plan", "job.yaml", "--set", "compute.max_hours=2"]) == 0
    text = capsys.readouterr().out
    assert "2 h 00 min" in text
    assert "mtl_cloud.train" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml"]


def test_plan_json_is_the_plan_of_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init"]) == 0
    capsys.readouterr()
    assert cli.main(["plan", "job.yaml", "--json", "--set", "training.rounds=7"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["name"], plan["backend"], plan["rounds"]) == ("my-job", "local", 7)


@pytest.mark.parametrize("job", sorted(JOBS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_job_is_valid(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(job)]) == 0
