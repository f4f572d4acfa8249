"""Presets, options, paths, and reading ``spec.json``."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.errors import RecordError, SpecError
from mtl_cloud.jobspec.job import JobSpec, LocalCompute
from mtl_cloud.jobspec.load import LoadedJob, job_from_json, job_to_json, load_job, parse_job, preset_names, relocate
from mtl_cloud.tasks import NETWORK_TASKS

MINIMAL = "dataset: {name: embedded}\n"


def load(text: str, *overrides: str, base: Path = Path("/jobs"), cwd: Path = Path("/here")) -> LoadedJob:
    return parse_job(text.encode(), source="job.yaml", base=base, overrides=overrides, cwd=cwd)


def mistakes(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_one_line_is_a_job() -> None:
    loaded = load(MINIMAL)
    assert loaded.job == JobSpec.model_validate({"dataset": {"name": "embedded"}, "storage": "/here/mtl-runs"})
    assert (loaded.source, loaded.warnings) == (MINIMAL.encode(), ())


def test_compute_without_a_backend_is_local() -> None:
    assert load(MINIMAL + "compute: {gpu_count: 2, max_hours: 1}").job.compute == LocalCompute(gpu_count=2, max_hours=1)


# --- presets ---------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_that_the_manual_names() -> None:
    assert preset_names() == ("article", "smoke", "standard")


@pytest.mark.parametrize("name", ["article", "smoke", "standard"])
def test_each_preset_is_valid_by_itself(name: str) -> None:
    assert load(f"extends: {name}\n{MINIMAL}").warnings == ()


def test_the_article_s_preset_is_the_published_experiment() -> None:
    training = load(f"extends: article\n{MINIMAL}").job.training
    assert (training.batch_size, training.sampling, training.rounds, training.epochs_per_round) == (
        16,
        "random",
        50,
        20,
    )


def test_a_job_wins_over_its_preset_field_by_field() -> None:
    training = load(f"extends: standard\n{MINIMAL}training: {{rounds: 3, optimizer: {{lr: 1e-3}}}}").job.training
    assert (training.rounds, training.epochs_per_round, training.precision) == (3, 5, "bf16")
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (0.001, 0.0005)


def test_a_later_preset_wins_over_an_earlier_one() -> None:
    assert load(f"extends: [article, smoke]\n{MINIMAL}").job.training.rounds == 2
    assert load(f"extends: [smoke, article]\n{MINIMAL}").job.training.rounds == 50


def test_a_mistake_of_a_preset_is_reported_at_the_job_s_line() -> None:
    text = "dataset: {name: embedded}\nextends: smoke\ncompute: {processes: 3}\n"
    assert mistakes(text).startswith(
        "job.yaml:2:10: training.batch_size: 4 is not divisible by the number of processes, 3"
    )


@pytest.mark.parametrize("value", ["3", "{a: b}", "[article, 3]", "artikel"])
def test_extends_names_presets_and_nothing_else(value: str) -> None:
    assert re.search(r"unknown preset.*: use one of article, smoke, standard", mistakes(f"extends: {value}\n{MINIMAL}"))


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_win_over_the_job_and_its_presets() -> None:
    job = load(f"extends: smoke\n{MINIMAL}", "training.batch_size=32", "training.optimizer.lr=1e-3", "tags.a=x").job
    assert (job.training.batch_size, job.training.optimizer.lr, job.tags) == (32, 0.001, {"a": "x"})


def test_an_option_may_name_the_preset_or_replace_a_whole_field() -> None:
    text = f"{MINIMAL}compute: {{backend: ec2, instance_type: p4d.24xlarge}}\nstorage: s3://b/r"
    job = load(text, "extends=smoke", "compute={backend: local}", "storage=/runs").job
    assert (job.training.rounds, job.compute, job.storage) == (2, LocalCompute(), "/runs")


def test_an_option_s_mistake_is_reported_at_the_option() -> None:
    assert mistakes(MINIMAL, "training.batch_size=0", "training.optimiser.lr=1") == (
        "--set training.batch_size: training.batch_size: invalid value 0: must be more than 0\n"
        "--set training.optimiser.lr: training.optimiser: unknown field; did you mean optimizer?"
    )


def test_an_option_reaches_one_of_several_datasets() -> None:
    text = "dataset: [{name: embedded}, {name: voc, uri: v}]"
    assert load(text, "dataset.1.uri=/data/voc").job.datasets[1].uri == "/data/voc"


# --- paths -----------------------------------------------------------------------------------------------------------


def test_data_is_found_from_the_job_file_and_records_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = """
        dataset: [{name: voc, uri: data/voc}, {name: cifar10, uri: ~/cifar}, {name: imagenet, uri: "s3://b/in"}]
        model: {pretrained: {classification: /w/vgg.pth, detection: "https://x.org/d.conv", segmentation: w/fcn.pth}}
        storage: runs
    """
    job = load(text).job
    assert [dataset.uri for dataset in job.datasets] == ["/jobs/data/voc", "/home/ada/cifar", "s3://b/in"]
    assert dict(job.model.pretrained) == {
        "classification": "/w/vgg.pth",
        "detection": "https://x.org/d.conv",
        "segmentation": "/jobs/w/fcn.pth",
    }
    assert job.storage == "/here/runs"
    assert load("dataset: {name: voc, uri: ../voc}\n", base=Path("/jobs/mine")).job.datasets[0].uri == "/jobs/voc"


def test_load_job_reads_a_file_with_its_folder_as_the_base(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b'dataset: {name: voc, uri: "${DATA}/voc"}\n')
    loaded = load_job(path, overrides=["name=mine"])
    assert loaded.job.datasets[0].uri == f"{tmp_path}/${{DATA}}/voc"
    assert (loaded.job.name, loaded.source) == ("mine", path.read_bytes())


# --- spec.json -------------------------------------------------------------------------------------------------------


def test_a_relocated_job_differs_only_in_its_inputs() -> None:
    text = (
        "dataset: [{name: voc, uri: s3://b/voc}, {name: cifar10, uri: s3://b/cifar}]\n"
        "model: {pretrained: {detection: s3://b/w.pth}}"
    )
    job = load(text).job
    moved = relocate(job, {"s3://b/voc": "/opt/voc", "s3://b/w.pth": "/opt/w.pth"})
    assert [dataset.uri for dataset in moved.datasets] == ["/opt/voc", "s3://b/cifar"]
    assert moved.model.pretrained.detection == "/opt/w.pth"
    assert relocate(moved, {"/opt/voc": "s3://b/voc", "/opt/w.pth": "s3://b/w.pth"}) == job


COMPUTES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"backend": st.just("local")}, optional={"processes": st.integers(1, 8)}),
    st.fixed_dictionaries({"backend": st.just("docker"), "gpu_count": st.integers(0, 8)}),
    st.fixed_dictionaries(
        {
            "backend": st.sampled_from(["ec2", "sagemaker"]),
            "instance_type": st.text(max_size=9) | st.lists(st.text(max_size=9), min_size=1, max_size=3),
        },
        optional={"budget_usd": st.floats(0.01, 1e6), "disk_gib": st.integers(30, 16384)},
    ),
)
DATASETS = st.fixed_dictionaries(
    {"name": st.sampled_from(["embedded", "cifar10", "voc", "imagenet"])},
    optional={"uri": st.text(max_size=9), "tasks": st.just(["detection"]), "max_train_samples": st.integers(1, 9)},
)
JOBS = st.fixed_dictionaries(
    {"dataset": DATASETS | st.lists(DATASETS, min_size=1, max_size=3)},
    optional={
        "compute": COMPUTES,
        "model": st.fixed_dictionaries(
            {"name": st.sampled_from(sorted(NETWORK_TASKS))},
            optional={
                "sharing": st.dictionaries(st.integers(1, 5), st.sampled_from(["none", "hard", "gate"])),
                "anchors": st.lists(st.tuples(st.floats(0.5, 500), st.floats(0.5, 500)), max_size=9),
                "width": st.floats(0.01, 2),
            },
        ),
        "training": st.fixed_dictionaries(
            {}, optional={"seed": st.integers(0, 2**32 - 1), "schedule": st.just({"milestones": [0.3, 0.6]})}
        ),
        "tags": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    },
)


@settings(max_examples=80, deadline=None)
@given(JOBS)
def test_a_job_is_unchanged_by_json(values: dict[str, Any]) -> None:
    job = JobSpec.model_validate(values)
    document = json.loads(job_to_json(job))
    assert document["schema_version"] == 1
    del document["schema_version"]
    assert JobSpec.model_validate_json(json.dumps(document), strict=True) == job


def test_spec_json_is_read_back_in_full() -> None:
    job = load(f"extends: standard\n{MINIMAL}model: {{sharing: {{1: hard, 2: gate}}}}\ntags: {{a: b}}").job
    assert job_from_json(job_to_json(job), "spec.json") == job


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "spec.json: not a JSON object"),
        (b"3", "spec.json: not a JSON object"),
        (b'{"dataset": {"name": "embedded"}}', "spec.json: schema version None, but this mtl-cloud reads version 1"),
        (b'{"schema_version": 2}', "spec.json: schema version 2, but this mtl-cloud reads version 1"),
    ],
)
def test_a_foreign_spec_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        job_from_json(data, "spec.json")


def test_a_field_of_a_newer_version_is_never_ignored() -> None:
    with pytest.raises(SpecError, match=r"^spec.json: training.warp: unknown field"):
        job_from_json(b'{"schema_version": 1, "dataset": {"name": "embedded"}, "training": {"warp": 9}}', "spec.json")


# --- anything --------------------------------------------------------------------------------------------------------

FIELDS = sorted({*JobSpec.model_fields, "extends", "backend", "name", "tasks", "rounds", "gpu_count", "instance_type"})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.sampled_from(["ec2", "voc", "hard", "smoke", "1", "p4d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=6))
def test_any_mapping_is_a_job_or_a_list_of_mistakes(data: dict[str, Any]) -> None:
    with suppress(SpecError):
        load(json.dumps(data, indent=1))


def test_each_mistake_is_one_line_even_of_a_name_with_a_line_break() -> None:
    said = mistakes('dataset: {name: embedded}\n"a\\nb": 1\nname: "x\\ny"')
    assert [line.split(":")[:2] for line in said.splitlines()] == [["job.yaml", "2"], ["job.yaml", "3"]]
