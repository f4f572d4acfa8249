"""The compute section of a plan is the job's own again, and a malformed one is named field by field."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_cloud.errors import RecordError
from mtl_cloud.jobspec.job import Ec2Compute, JobSpec, LocalCompute, SageMakerCompute
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.planning.plan import Facts, plan_run
from mtl_cloud.runs.schema import PlanRecord

SECTIONS: list[dict[str, Any]] = [
    {"backend": "local", "processes": 2},
    {"backend": "docker", "gpu_count": 4, "image": "mtl:1"},
    {"backend": "ec2", "instance_type": "p4d.24xlarge", "purchase": "spot", "max_hours": 3},
    {"backend": "ec2", "instance_type": ["p4d.24xlarge", "p4de.24xlarge"], "capacity_timeout_minutes": None},
    {"backend": "sagemaker", "instance_type": "ml.g5.xlarge", "subnets": ["subnet-1"], "security_groups": ["sg-1"]},
]
EC2 = SECTIONS[2]


def job(compute: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate({"dataset": {"name": "embedded"}, "compute": compute, "storage": "s3://b/r"})


def plan(compute: dict[str, Any]) -> PlanRecord:
    made = plan_run(job(compute), Facts(), run_id="r-1", now=datetime(2026, 11, 23, tzinfo=UTC))
    return PlanRecord.decode(made.encode(), source="plan.json")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["backend"])
def test_the_section_comes_back_from_the_plan_s_file(section: dict[str, Any]) -> None:
    assert compute_of(plan(section)) == job(section).compute


@given(
    st.floats(0.1, 1e4),
    st.none() | st.floats(0.1, 1e6),
    st.integers(0, 9),
    st.integers(30, 16384),
    st.sampled_from(["on_demand", "spot", "spot_then_on_demand"]),
)
def test_any_values_come_back(hours: float, budget: float | None, restarts: int, disk: int, purchase: str) -> None:
    wanted = job(
        {**EC2, "max_hours": hours, "max_restarts": restarts, "disk_gib": disk, "purchase": purchase}
    ).compute.model_copy(update={"budget_usd": budget})
    made = replace(plan(EC2), compute=wanted.model_dump(mode="json"))
    assert compute_of(PlanRecord.decode(made.encode(), source="plan.json"), Ec2Compute) == wanted


def test_a_field_of_a_newer_writer_is_ignored_and_an_older_one_s_missing_field_has_its_default() -> None:
    made = plan(EC2)
    section = {**made.compute, "placement_group": "pg-1"}
    del section["on_demand_after"]
    assert compute_of(replace(made, compute=section)) == job(EC2).compute


def test_a_plan_without_the_section_is_its_backend_s_default() -> None:
    assert compute_of(replace(plan(SECTIONS[0]), compute={})) == LocalCompute()


def test_every_malformed_field_is_named_in_one_error() -> None:
    made = plan(EC2)
    section = {**made.compute, "disk_gib": "big", "purchase": "borrowed"}
    with pytest.raises(RecordError) as caught:
        compute_of(replace(made, compute=section))
    message = str(caught.value)
    assert message.startswith("r-1: the plan cannot be read: compute.")
    assert "compute.purchase: invalid value 'borrowed'" in message
    assert "compute.disk_gib: invalid value 'big': expected an integer" in message


def test_another_backend_s_section_and_an_unknown_backend_are_refused() -> None:
    with pytest.raises(RecordError, match="r-1: the plan is for the backend 'ec2', not for a SageMakerCompute"):
        compute_of(plan(EC2), SageMakerCompute)
    with pytest.raises(RecordError, match=r"compute\.backend: invalid value 'moon'"):
        compute_of(replace(plan(EC2), backend="moon"))
