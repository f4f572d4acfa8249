"""The request is a pure function of the plan: whole against golden files, and against botocore's shape of the API."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.json_types import Json
from mtl_cloud.launch.sagemaker.request import job_name, request
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.schema import PlanRecord

GOLDEN = Path(__file__).parent / "golden"
ROLE = "arn:aws:iam::123456789012:role/mtl-cloud-sagemaker-us-east-1"
COMPUTE = {"backend": "sagemaker", "instance_type": "ml.p4d.24xlarge", "gpu_count": 8, "role": ROLE, "image": "i:1"}
VOC = {"name": "voc", "uri": "s3://bucket/VOCdevkit"}
JOBS: dict[str, dict[str, Any]] = {
    "on_demand": {},
    "spot": {
        "purchase": "spot",
        "instance_type": "ml.g5.12xlarge",
        "gpu_count": 4,
        "max_hours": 2,
        "max_wait_hours": 6,
    },
    "preferences": {"instance_type": ["ml.p4d.24xlarge", "ml.p4de.24xlarge"], "keep_alive_minutes": 10},
    "two_in_a_vpc": {"instance_count": 2, "subnets": ["subnet-1", "subnet-2"], "security_groups": ["sg-1"]},
    "streamed_and_encrypted": {"input_mode": "fast_file", "kms_key": "k-1", "instance_type": "ml.p3.16xlarge"},
    "cpu": {"instance_type": "ml.c5.9xlarge", "gpu_count": 0, "max_restarts": 0, "input_mode": "file"},
}


def plan(**compute: Any) -> PlanRecord:
    job = JobSpec.model_validate(
        {
            "name": "voc",
            "dataset": VOC,
            "model": {"pretrained": {"classification": "s3://bucket/weights/vgg16.pth"}},
            "compute": {**COMPUTE, **compute},
            "storage": "s3://bucket/runs",
            "tags": {"team": "vision", "mtl-cloud:run": "not yours"},
        }
    )
    made = plan_run(job, gather_facts(job), run_id="voc-3fa1c9", now=datetime(2026, 11, 23, 15, 0, tzinfo=UTC))
    return replace(made, spec_digest="0123456789abcdef" * 4)  # it changes with every field that jobs are given


@cache
def shape() -> Any:
    model = botocore.session.get_session().get_service_model("sagemaker")
    return model.operation_model("CreateTrainingJob").input_shape


@pytest.mark.parametrize("name", JOBS)
def test_the_whole_request_is_the_reviewed_one(name: str) -> None:
    """``MTL_CLOUD_UPDATE_GOLDEN=1`` rewrites the files, for a person to review."""
    found, path = json.dumps(request(plan(**JOBS[name])), indent=1) + "\n", GOLDEN / f"{name}.json"
    if os.environ.get("MTL_CLOUD_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def _breaches(value: Any, shape: Any, where: str = "") -> list[str]:
    """Patterns and lengths of the API model, which botocore's own validator leaves to the service."""
    if shape.type_name == "structure":
        return [b for key, below in value.items() for b in _breaches(below, shape.members[key], f"{where}.{key}")]
    if shape.type_name == "list":
        return _length(value, shape, where) + [b for below in value for b in _breaches(below, shape.member, where)]
    if shape.type_name == "map":
        pairs = [(key, shape.key) for key in value] + [(below, shape.value) for below in value.values()]
        return [b for below, kind in pairs for b in _breaches(below, kind, where)]
    if shape.type_name != "string":
        limits = shape.metadata
        in_range = limits.get("min", 0) <= value <= limits.get("max", 2**31)
        return [] if in_range else [f"{where}: {value}"]
    wrong = "pattern" in shape.metadata and "\\p{" not in (pattern := shape.metadata["pattern"])
    mismatch = [f"{where}: {value!r} is not {pattern}"] if wrong and not re.fullmatch(pattern, value) else []
    unknown = [f"{where}: {value!r}"] if getattr(shape, "enum", None) and value not in shape.enum else []
    return _length(value, shape, where) + mismatch + unknown


def _length(value: Any, shape: Any, where: str) -> list[str]:
    limits = shape.metadata
    return [] if limits.get("min", 0) <= len(value) <= limits.get("max", 2**31) else [f"{where}: {len(value)} long"]


@pytest.mark.parametrize("name", JOBS)
def test_botocores_shape_of_the_api_accepts_it_with_patterns_lengths_and_enumerations(name: str) -> None:
    made = request(plan(**JOBS[name]))
    assert ParamValidator().validate(made, shape()).generate_report() == ""
    assert _breaches(made, shape()) == []


def test_the_independent_check_of_the_shape_can_fail() -> None:
    made = {**request(plan()), "TrainingJobName": "no_underscores", "StoppingCondition": {"MaxPendingTimeInSeconds": 9}}
    assert len(_breaches(made, shape())) == 2


def test_what_the_account_offers_stands_in_for_what_the_job_leaves_open() -> None:
    facts: dict[str, Json] = {"role": ROLE, "image": "found:2", "owner": "ada"}
    bare = replace(plan(role=None, image=None), image=None)
    made: Any = request(replace(bare, facts={"identity": "arn:aws:iam::123456789012:user/ada", "sagemaker": facts}))
    tags = {tag["Key"]: tag["Value"] for tag in made["Tags"]}
    assert (made["RoleArn"], made["AlgorithmSpecification"]["TrainingImage"]) == (ROLE, "found:2")
    assert (tags["mtl-cloud:owner"], tags["mtl-cloud:run"], tags["team"]) == ("ada", "voc-3fa1c9", "vision")
    with pytest.raises(LaunchError, match=r"compute\.role is not given"):
        request(bare)


def test_a_storage_url_that_no_argument_can_hold_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(LaunchError, match="arguments of 256 characters"):
        request(replace(plan(), storage="s3://bucket/" + "x" * 250))


RUN_IDS = st.from_regex(r"[a-z][a-z0-9-]{0,39}-[0-9a-f]{6}", fullmatch=True) | st.from_regex(
    r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,90}", fullmatch=True
)


@given(RUN_IDS, RUN_IDS, st.integers(1, 999), st.integers(1, 999))
def test_every_run_id_and_number_have_a_name_of_their_own_that_sagemaker_takes(
    one: str, other: str, first: int, second: int
) -> None:
    names = [job_name(one, first), job_name(other, second)]
    assert all(re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name) for name in names)
    assert (names[0] == names[1]) == ((one, first) == (other, second))
    assert job_name(f"{one}--{second}", first) != job_name(one, second)
