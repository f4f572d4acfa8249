"""``plan`` and ``instances`` on the command line: what a person reads before anything is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_harness import Answers, moto_clients
from aws_stack import make_stack
from run_example import example_report, write_run

from mtl_cloud import cli
from mtl_cloud.aws import AwsClients
from mtl_cloud.storage import FolderStorage

JOBS = Path(__file__).parents[2] / "jobs"
ARTICLE = str(JOBS / "article" / "imagenet_vgg16_4_workers.yaml")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_a_thousand_epochs_on_imagenet_show_their_price(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", ARTICLE) == 0
    out = capsys.readouterr().out
    assert "16 d 1 h to 22 d 1 h, on demand $8461.36 to $11632.78" in out
    assert "1,281,167,000 images of 93 GFLOP at 672 to 925/s" in out
    assert "8 x A100 40 GiB, 7 idle" in out
    assert "L-417A185B Running On-Demand P instances: need 96 vCPUs, not looked up" in out
    assert "$15809.50" in out  # 720 hours at the on-demand price, the worst that can happen


def test_offline_says_of_when_its_tables_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", ARTICLE, "--offline") == 0
    shown = capsys.readouterr()
    assert "price tables of 2026-11-23 (offline; AWS not queried)" in shown.out
    assert "on-demand prices are those of 2026-01-21" in shown.err


def test_the_exact_requests_need_a_look_at_the_account(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", ARTICLE, "--offline", "--requests") == 5
    assert "the account was not queried" in capsys.readouterr().err


def test_what_a_run_has_shown_stands_in_its_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = example_report()
    write_run(FolderStorage(tmp_path / "runs"), report)
    overrides = ("--set", f"storage={tmp_path / 'runs'}", "--set", "compute.backend=local")
    assert run("plan", str(JOBS / "quickstart.yaml"), *overrides, "--run-id", report.plan.run_id) == 0
    assert f"after round {len(report.rounds)}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[AwsClients, Answers, dict[str, Any]]]:
    """moto's clients with a stack, what we answer in its place, and a machine image."""
    with moto_clients() as clients:
        services = ("cloudformation", "ec2", "ecr", "pricing", "s3", "service-quotas", "ssm", "sts")
        answers = Answers(clients, services)
        make_stack(clients("cloudformation"))
        yield clients, answers, clients("ec2").describe_images(Owners=["amazon"])["Images"][0]


@pytest.fixture
def account(cloud: tuple[AwsClients, Answers, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """The command line's clients are those; no P4d may run there, and prices are not told."""
    clients, answers, image = cloud
    answers.give("ssm", "GetParameter", {"Parameter": {"Value": image["ImageId"]}})
    answers.give("ec2", "DescribeImages", {"Images": [image]})
    answers.refuse("pricing", "GetProducts", "AccessDeniedException", "Access denied.", 403)
    answers.give("service-quotas", "GetServiceQuota", {"Quota": {"QuotaCode": "L-417A185B", "Value": 0.0}})
    monkeypatch.setattr("mtl_cloud.aws.AwsClients", lambda region: clients)
    yield answers
    answers.forget()


def on_ec2(tmp_path: Path) -> str:
    bucket = "s3://mtl-cloud-123456789012-us-east-1/mtl-cloud"
    image = "registry.example/trainer:1"
    compute = f"{{backend: ec2, instance_type: p4d.24xlarge, gpu_count: 8, image: '{image}'}}"
    job = tmp_path / "job.yaml"
    job.write_text(f"name: quick\ncompute: {compute}\ndataset: {{name: embedded}}\nstorage: {bucket}\n")
    return str(job)


def test_online_shows_quota_checks_zones_and_the_dry_run(
    account: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", on_ec2(tmp_path), "--online") == 0
    out = capsys.readouterr().out
    assert "need 96 vCPUs, have 0" in out
    assert "us-east-1d" in out
    assert "unknown  prices: us-east-1: pricing GetProducts: Access denied." in out
    assert "ok       storage:" in out
    assert "ok       permission: ec2:RunInstances of p4d.24xlarge would be allowed" in out
    assert "RunInstances" in account.asked


def test_requests_are_printed_alone_as_they_would_be_sent(
    account: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", on_ec2(tmp_path), "--online", "--requests") == 0
    requests: dict[str, Any] = json.loads(capsys.readouterr().out)
    data = requests["create_launch_template"]["LaunchTemplateData"]
    assert data["ImageId"].startswith("ami-")
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_submit_stops_before_it_costs_and_says_all_that_is_in_the_way(
    account: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account.refuse("cloudformation", "DescribeStacks", "ValidationError", "Stack with id mtl-cloud does not exist")
    assert run("submit", on_ec2(tmp_path), "--detach") == 3
    err = capsys.readouterr().err
    assert "account: us-east-1: mtl-cloud has no stack in this region" in err
    assert "mtl-cloud bootstrap --region us-east-1" in err
    assert not {"RunInstances", "CreateLaunchTemplate"} & set(account.asked)


def test_instances_are_found_by_gpu_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("instances", "--gpu", "A100", "--min-gpu-memory", "41", "--json") == 0
    (machine,) = json.loads(capsys.readouterr().out)
    assert (machine["name"], machine["gpu_count"], machine["quotas"]["spot"]) == ("p4de.24xlarge", 8, "L-7212CCBC")
    assert machine["on_demand"] == {
        "usd_per_hour": 27.44705,
        "region": "us-east-1",
        "date": "2026-01-21",
        "source": "the EC2 on-demand rate card, Linux, as published by instances.vantage.sh",
    }


def test_instances_are_a_table_that_does_not_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("instances", "--gpu", "a100", "--region", "ap-south-2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["type", "p4d.24xlarge", "p4de.24xlarge"]
    assert "unknown" in lines[1]
    assert "$" not in lines[1]


@pytest.mark.parametrize(
    ("arguments", "hint"), [(("--gpu", "A1000"), "did you mean A100?"), (("--region", "us-east1"), "us-east-1")]
)
def test_a_typo_is_not_an_empty_list(arguments: tuple[str, str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("instances", *arguments) == 2
    assert hint in capsys.readouterr().err


def test_refreshed_prices_stand_in_later_plans(
    account: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "19.5"}}
    product = {
        "product": {"attributes": {"instanceType": "p4d.24xlarge"}},
        "terms": {"OnDemand": {"A": {"priceDimensions": {"B": dimension}}}},
    }
    account.give("pricing", "GetProducts", {"PriceList": [json.dumps(product)]})
    account.give("ec2", "DescribeSpotPriceHistory", {"SpotPriceHistory": []})
    assert run("instances", "--gpu", "A100", "--refresh") == 0
    assert "$19.500" in capsys.readouterr().out
    assert run("plan", on_ec2(tmp_path), "--offline", "--json") == 0
    assert json.loads(capsys.readouterr().out)["usd_per_hour"] == 19.5
