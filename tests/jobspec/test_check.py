"""All mistakes are reported at once, without consequences of others."""

from __future__ import annotations

from typing import Any

import pytest

from mtl_cloud.jobspec.check import check, validate
from mtl_cloud.jobspec.finding import path_of
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.json_types import Json

P4D = {"backend": "ec2", "instance_type": "p4d.24xlarge"}


def wrong(**fields: Any) -> list[str]:
    """Paths of all errors of a job, which uses the embedded data unless ``fields`` say otherwise."""
    _, findings = check({"dataset": {"name": "embedded"}, "storage": "s3://b/r", **fields})
    return [path_of(finding.loc) for finding in findings if finding.fatal]


def test_a_valid_job_is_returned_without_findings() -> None:
    data: dict[str, Json] = {"dataset": {"name": "embedded"}, "training": {"rounds": 3}}
    job, findings = check(data)
    assert (job, findings) == (validate(data), [])
    assert isinstance(job, JobSpec)
    assert job.training.rounds == 3


def test_an_error_of_the_schema_hides_no_broken_constraint_elsewhere() -> None:
    assert wrong(compute={**P4D, "gpu_count": 9}, training={"rouns": 3}) == ["training.rouns", "compute.gpu_count"]


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"compute": {**P4D, "gpu_count": "9"}, "training": {"batch_size": 3}}, ["compute.gpu_count"]),
        ({"compute": {"backend": "ec3", "instance_type": "p4d.24xlarge", "disk_gib": 99}}, ["compute.backend"]),
        ({"compute": {"gpu_count": -1}, "training": {"precision": "fp16"}}, ["compute.gpu_count"]),
        ({"model": {"name": "yolov9", "tasks": ["detection"], "sharing": {"1": "gate"}}}, ["model.name"]),
        ({"dataset": {"name": "vox"}, "model": {"tasks": ["detection"]}}, ["dataset.name"]),
        ({"dataset": 3, "model": {"tasks": ["segmentation"]}}, ["dataset"]),
        ({"compute": {**P4D, "gpu_count": 9}, "training": {"batch_size": 16}}, ["compute.gpu_count"]),
        (
            {"training": {"loss_weighting": {"name": "fixt", "weights": {"detection": 2}}}},
            ["training.loss_weighting.name"],
        ),
    ],
)
def test_consequences_of_a_wrong_field_are_not_reported(fields: dict[str, Any], paths: list[str]) -> None:
    assert wrong(**fields) == paths


def test_one_broken_dataset_leaves_the_others_their_places() -> None:
    datasets = [{"name": "voc"}, {"uri": "x"}, "cifar10", {"name": "imagenet", "tasks": ["detection"], "uri": "i"}]
    assert wrong(dataset=datasets) == [
        "dataset[1].name",
        "dataset[2]",
        "dataset[0].uri",
        "dataset[3].tasks[0]",
    ]


def test_an_empty_job_lacks_only_a_dataset() -> None:
    _, findings = check({})
    assert [path_of(finding.loc) for finding in findings] == ["dataset"]
