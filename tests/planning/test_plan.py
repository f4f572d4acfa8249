"""The plan is a pure function, compared whole; money and time are counted for the worst case."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud import catalog
from mtl_cloud.catalog import Price
from mtl_cloud.errors import PlanError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json, parse_job
from mtl_cloud.planning.facts import offers_of
from mtl_cloud.planning.plan import Facts, gather_facts, plan_run, require_launchable, worst_case_usd
from mtl_cloud.runs.plan_facts import Candidate, Check, Quota, Resume, SageMakerAccount
from mtl_cloud.runs.schema import PlanRecord

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
P4D = catalog.instance_type("p4d.24xlarge")
NO_LIMITS = {"max_hours": None, "budget_usd": None, "max_restarts": 3}
G5 = catalog.instance_type("g5.12xlarge")


def load(text: str) -> JobSpec:
    return parse_job(text.encode(), source="f", base=Path("/"), cwd=Path("/here")).job


def on_ec2(**compute: Any) -> JobSpec:
    fields = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8, **compute}
    return JobSpec.model_validate({"dataset": {"name": "embedded"}, "compute": fields, "storage": "s3://b/r"})


def plan(job: JobSpec, facts: Facts | None = None) -> PlanRecord:
    return plan_run(job, gather_facts(job) if facts is None else facts, run_id="r-1", now=NOW)


def priced(*prices: float | None) -> Facts:
    """Facts of P4d, then G5, at these prices."""
    return Facts(
        "2026-11-23",
        tuple(
            Candidate(machine, None if usd is None else Price(usd, "us-east-1", "2026-01-21", "a table"))
            for machine, usd in zip((P4D, G5), prices, strict=False)
        ),
    )


ESTIMATE: dict[str, Any] = {
    "machine": "p4d.24xlarge",
    "images": 50 * 20 * 4096,
    "gflop_per_image": pytest.approx(3 * 354.2, rel=1e-3),  # torch's count of MTL-Net at 416 pixels, and the backward
    "images_per_s": pytest.approx([123.0, 205.3], rel=0.01),
    "limit": "gpu",
    "download_hours": 0.0,
    "hours": pytest.approx([5.70, 9.42], rel=0.01),
    "date": "2026-11-23",
    "usd": {"on_demand": pytest.approx([125.2, 206.8], rel=0.01)},
}


def test_a_local_plan_whole() -> None:
    job = load("name: quick\ndataset: {name: embedded}\ntags: {who: ada}\ntraining: {rounds: 3}")
    assert plan(job) == PlanRecord(
        run_id="r-1",
        name="quick",
        created_at="2026-11-23T15:00:00+00:00",
        backend="local",
        storage="/here/mtl-runs",
        command=["python", "-m", "mtl_cloud.train"],
        env={},
        processes=1,
        rounds=3,
        compute={"backend": "local", "gpu_count": 0, "processes": None, **NO_LIMITS},
        spec_digest=sha256(job_to_json(job)).hexdigest(),
        tags={"who": "ada"},
        facts={"collected": None, "candidates": []},
    )


def test_a_plan_says_what_the_trainer_reads_each_once_and_which_image_it_runs_in() -> None:
    planned = plan(
        load(
            "compute: {backend: docker, image: 'mine:1'}\n"
            "dataset: [{name: voc, uri: /data/voc}, {name: embedded}, {name: cifar10, uri: s3://b/c}]\n"
            "model: {pretrained: {classification: /w/vgg.pth, segmentation: /w/vgg.pth}}"
        )
    )
    assert planned.inputs == ["/data/voc", "s3://b/c", "/w/vgg.pth"]
    assert planned.image == "mine:1"


def test_a_plan_on_a_p4d_whole() -> None:
    job = on_ec2(gpu_count=4, max_hours=10)
    assert plan(job) == PlanRecord(
        run_id="r-1",
        name="job",
        created_at="2026-11-23T15:00:00+00:00",
        backend="ec2",
        storage="s3://b/r",
        command=["python", "-m", "mtl_cloud.train"],
        env={},
        processes=4,
        rounds=50,
        compute={
            "backend": "ec2",
            "instance_type": "p4d.24xlarge",
            "gpu_count": 4,
            "purchase": "on_demand",
            "on_demand_after": 2,
            "capacity_reservation": None,
            "capacity_timeout_minutes": 60.0,
            "region": "us-east-1",
            "disk_gib": 200,
            "image": None,
            **NO_LIMITS,
            "max_hours": 10.0,
        },
        spec_digest=sha256(job_to_json(job)).hexdigest(),
        deadline_s=36000.0,
        usd_per_hour=21.957642,
        facts={
            "collected": "2026-11-23",
            "candidates": [
                {
                    "machine": {
                        "name": "p4d.24xlarge",
                        "vcpus": 96,
                        "memory_gib": 1152,
                        "gpu": "A100",
                        "gpu_count": 8,
                        "gpu_memory_gib": 40,
                        "nvme_count": 8,
                        "nvme_gb": 1000,
                        "network": "4x 100 Gigabit",
                        "efa": 4,
                    },
                    "price": {
                        "usd_per_hour": 21.957642,
                        "region": "us-east-1",
                        "date": "2026-01-21",
                        "source": "the EC2 on-demand rate card, Linux, as published by instances.vantage.sh",
                    },
                }
            ],
            "offers": [
                {
                    "machine": "p4d.24xlarge",
                    "zone": None,
                    "market": "on_demand",
                    "price": {
                        "usd_per_hour": 21.957642,
                        "region": "us-east-1",
                        "date": "2026-01-21",
                        "source": "the EC2 on-demand rate card, Linux, as published by instances.vantage.sh",
                    },
                    "worst_usd_per_hour": 21.957642,
                    "score": None,
                }
            ],
            "quotas": [
                {
                    "name": "Running On-Demand P instances",
                    "market": "on_demand",
                    "unit": "vCPUs",
                    "need": 96,
                    "code": "L-417A185B",
                    "have": None,
                }
            ],
            "estimates": [ESTIMATE],
        },
        warnings=[
            "compute.gpu_count: p4d.24xlarge has 8 GPUs and the job uses 4: 4 are paid for but idle",
            "compute.instance_type: on-demand prices are those of 2026-01-21",
        ],
    )


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        ("compute: {gpu_count: 0}", 1),
        ("compute: {processes: 2}", 2),
        ("compute: {gpu_count: 4}", 4),
        ("compute: {backend: docker, gpu_count: 2}", 2),
    ],
)
def test_there_is_one_process_a_gpu_or_as_many_as_asked_for(text: str, processes: int) -> None:
    assert plan(load(f"dataset: {{name: embedded}}\n{text}")).processes == processes


@pytest.mark.parametrize(
    ("compute", "prices", "deadline_s", "worst"),
    [
        ({"max_hours": 10}, (20.0,), 36000, 200.0),
        ({"max_hours": 10, "budget_usd": 100}, (20.0,), 18000, 100.0),
        ({"max_hours": 1, "budget_usd": 100}, (20.0,), 3600, 20.0),
        ({"max_hours": 10, "budget_usd": 100}, (20.0, 50.0), 7200, 100.0),  # the dearer may be the one
        ({"max_hours": 10}, (20.0, None), 36000, None),
    ],
)
def test_the_deadline_is_the_earlier_of_time_and_money(
    compute: dict[str, Any], prices: tuple[float | None, ...], deadline_s: float, worst: float | None
) -> None:
    planned = plan(on_ec2(**compute), priced(*prices))
    assert planned.deadline_s == pytest.approx(deadline_s)
    assert worst_case_usd(planned) == (None if worst is None else pytest.approx(worst))


def test_instances_that_train_together_are_all_paid_and_all_worked_by() -> None:
    on_sagemaker = {"backend": "sagemaker", "instance_type": "ml.p4d.24xlarge", "region": "us-west-2"}
    one, three = (plan(on_ec2(**on_sagemaker, instance_count=count)) for count in (1, 3))
    assert (one.processes, three.processes) == (8, 24)
    assert one.usd_per_hour is not None
    assert three.usd_per_hour == pytest.approx(3 * one.usd_per_hour)


def test_a_budget_without_a_known_price_cannot_be_held() -> None:
    with pytest.raises(PlanError, match=r"the price of g5\.12xlarge is unknown"):
        plan(on_ec2(budget_usd=5), priced(20.0, None))


def test_an_unknown_price_is_said_and_not_taken_for_nothing() -> None:
    planned = plan(on_ec2(region="ap-south-2"))
    assert planned.usd_per_hour is None
    assert planned.warnings == ["compute.instance_type: the price of p4d.24xlarge is unknown"]


def test_a_budget_on_one_s_own_machine_limits_nothing_and_the_plan_says_so() -> None:
    planned = plan(load("dataset: {name: embedded}\ncompute: {budget_usd: 5, max_hours: 2}"))
    assert planned.deadline_s == 7200
    assert planned.warnings == ["compute.budget_usd: no machine is rented, so it limits nothing"]


def test_a_type_beyond_the_tables_cannot_be_planned() -> None:
    with pytest.raises(PlanError, match=r"z9\.huge is not in the catalogue"):
        gather_facts(on_ec2(instance_type="z9.huge"))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1e3), st.floats(0.01, 1e5), st.floats(0.01, 1e4))
def test_no_plan_costs_more_than_its_budget_or_lasts_longer_than_its_hours(
    price: float, budget: float, hours: float
) -> None:
    planned = plan(on_ec2(budget_usd=budget, max_hours=hours), priced(price))
    worst = worst_case_usd(planned)
    assert worst is not None
    assert worst <= budget * (1 + 1e-9)
    assert planned.deadline_s is not None
    assert planned.deadline_s <= hours * 3600


def unpriced_spot(**compute: Any) -> PlanRecord:
    return plan(on_ec2(purchase="spot_then_on_demand", **compute))


def test_offers_stand_in_the_order_in_which_they_are_wanted() -> None:
    planned = unpriced_spot(instance_type=["p4d.24xlarge", "p4de.24xlarge"])
    offers: Any = planned.facts["offers"]
    assert [(offer["market"], offer["machine"]) for offer in offers] == [
        ("spot", "p4d.24xlarge"),
        ("spot", "p4de.24xlarge"),
        ("on_demand", "p4d.24xlarge"),
        ("on_demand", "p4de.24xlarge"),
    ]


def test_an_unknown_spot_price_is_at_most_the_one_on_demand() -> None:
    facts: Any = unpriced_spot().facts
    (spot, on_demand) = facts["offers"]
    assert (spot["price"], spot["worst_usd_per_hour"]) == (None, on_demand["price"]["usd_per_hour"])
    (estimate,) = facts["estimates"]
    assert estimate["usd"]["spot"] == [None, estimate["usd"]["on_demand"][1]]


def test_the_cheapest_zone_comes_first_and_an_unpriced_one_last() -> None:
    job, base = on_ec2(purchase="spot"), priced(20.0)
    spot = [("p4d.24xlarge", zone, Price(usd, "us-east-1", "d", "s"), score) for zone, usd, score in ZONES]
    offers = list(offers_of(job, base.candidates, spot, {"p4d.24xlarge": ("a", "b", "c")}))
    assert [(offer.zone, offer.score) for offer in offers] == [("b", 9), ("a", 3), ("c", None)]
    assert {offer.worst_usd_per_hour for offer in offers} == {20.0}


ZONES = [("a", 9.0, 3), ("b", 8.0, 9)]


def test_a_type_that_no_zone_offers_is_no_offer() -> None:
    assert list(offers_of(on_ec2(), priced(20.0).candidates, [], {"p4d.24xlarge": ()})) == []


def test_one_quota_counts_the_largest_machine_and_a_reserved_one_counts_none() -> None:
    several = gather_facts(on_ec2(instance_type=["g5.xlarge", "g5.48xlarge"], gpu_count=1))
    assert [(quota.code, quota.need) for quota in several.quotas] == [("L-DB2E81BA", 192)]
    assert gather_facts(on_ec2(capacity_reservation="cr-1")).quotas == ()


def test_sagemaker_counts_instances_under_a_quota_of_its_own() -> None:
    facts = gather_facts(on_ec2(backend="sagemaker", instance_type="ml.p4d.24xlarge", instance_count=2))
    assert [(quota.name, quota.need, quota.unit) for quota in facts.quotas] == [
        ("ml.p4d.24xlarge for training job usage", 2, "instances")
    ]


def test_a_deadline_that_comes_before_the_end_is_said() -> None:
    (warning,) = [text for text in plan(on_ec2(max_hours=1)).warnings if text.startswith("compute.max_hours")]
    assert re.fullmatch(
        r"compute\.max_hours: the job takes \d+ hours at best by the estimate, and stops after 1", warning
    )


def test_what_is_done_is_not_estimated_again() -> None:
    facts = gather_facts(on_ec2())
    resumed = replace(facts, resume=Resume("r-1", rounds=25, step=9, images_per_s=1000.0))
    estimates: list[Any] = [plan(on_ec2(), some).facts["estimates"] for some in (facts, resumed)]
    (whole,), (left,) = estimates
    assert (left["images"] * 2, left["limit"]) == (whole["images"], "measured")


def test_a_failed_check_and_a_short_quota_stop_a_launch_together() -> None:
    facts = replace(
        priced(20.0),
        quotas=(Quota("Running On-Demand P instances", "on_demand", "vCPUs", 96, "L-417A185B", 0.0),),
        checks=(Check("account", "failed", "no stack", "mtl-cloud bootstrap"), Check("prices", "unknown", "denied")),
    )
    with pytest.raises(PlanError) as caught:
        require_launchable(facts)
    assert str(caught.value).splitlines() == [
        "account: no stack",
        "compute.instance_type: the quota Running On-Demand P instances (L-417A185B) is 0 vCPUs, and the job needs 96",
    ]
    assert caught.value.hint == "mtl-cloud bootstrap"


def test_what_only_could_not_be_asked_stops_nothing() -> None:
    require_launchable(replace(priced(20.0), checks=(Check("prices", "unknown", "denied"),)))


def test_the_pinned_image_is_the_plan_s() -> None:
    facts = replace(priced(20.0), sagemaker=SageMakerAccount(role="r", image="r@sha256:1"))
    assert plan(on_ec2(image="r:tag"), facts).image == "r@sha256:1"
    assert plan(on_ec2(image="r:tag")).image == "r:tag"


def test_a_plan_comes_back_from_its_record() -> None:
    planned = plan(on_ec2(instance_type=["p4d.24xlarge", "p4de.24xlarge"], budget_usd=9))
    assert PlanRecord.decode(planned.encode(), source="plan.json") == planned


def test_the_same_input_gives_the_same_plan_and_stays_as_it_was() -> None:
    job, facts = on_ec2(), priced(20.0)
    before = (job.model_copy(deep=True), replace(facts))
    assert plan(job, facts) == plan(job, facts)
    assert (job, facts) == before
