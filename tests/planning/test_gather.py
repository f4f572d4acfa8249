"""The steps that `plan` and `submit` share."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.planning.gather import with_dry_run
from mtl_cloud.planning.plan import Facts, plan_run
from mtl_cloud.runs.plan_facts import Check


def test_the_dry_run_s_check_comes_after_the_others_and_fields_of_a_newer_writer_stay() -> None:
    job = JobSpec.model_validate({"dataset": {"name": "embedded"}})
    looked_up = Facts(checks=(Check("storage", "ok", "can be written"),))
    made = plan_run(job, looked_up, run_id="r-1", now=datetime(2026, 11, 23, tzinfo=UTC))
    newer = replace(made, facts={**made.facts, "carbon_g": 1.5})
    checked = with_dry_run(newer, None)  # type: ignore[arg-type]  # without a launch template nothing is asked
    assert [(check.name, check.status) for check in checked.parsed_facts.checks] == [
        ("storage", "ok"),
        ("permission", "unknown"),
    ]
    assert checked.facts["carbon_g"] == 1.5
