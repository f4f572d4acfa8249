"""The shipped tables, compared with AWS's data as recorded by moto and botocore."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import botocore
import moto
import pytest

from mtl_cloud import catalog
from mtl_cloud.errors import PlanError

EC2 = catalog.instance_names()
SAGEMAKER = catalog.instance_names(sagemaker=True)


def recorded(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return dict(recorded(Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"))


def test_instance_facts_are_those_that_ec2_describes(described: dict[str, Any]) -> None:
    for machine in catalog.instances():
        if machine.name not in described:
            continue
        told = described[machine.name]
        gpu = told.get("GpuInfo", {}).get("Gpus", [{"Count": 0, "MemoryInfo": {"SizeInMiB": 0}}])[0]
        disk = told.get("InstanceStorageInfo", {}).get("Disks", [{"Count": 0, "SizeInGB": 0}])[0]
        assert machine.vcpus == told["VCpuInfo"]["DefaultVCpus"]
        assert machine.memory_gib == told["MemoryInfo"]["SizeInMiB"] / 1024
        assert machine.gpu_count == gpu["Count"]
        assert machine.gpu_memory_gib == pytest.approx(gpu["MemoryInfo"]["SizeInMiB"] / 1024, abs=0.06)
        assert (machine.nvme_count, machine.nvme_gb) == (disk["Count"], disk["SizeInGB"])
        assert machine.network == told["NetworkInfo"]["NetworkPerformance"]
        assert machine.efa == told["NetworkInfo"].get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)


def test_only_the_retired_p3_are_missing_from_ec2_s_description(described: dict[str, Any]) -> None:
    assert set(EC2) - set(described) <= {"p3.2xlarge", "p3.8xlarge", "p3.16xlarge"}


def test_regions_are_ec2_s() -> None:
    offerings = Path(moto.__file__).parent / "ec2" / "resources" / "instance_type_offerings" / "region"
    assert set(catalog.regions()) == {path.name.removesuffix(".json.gz") for path in offerings.glob("*.json.gz")}


def test_sagemaker_s_types_are_those_that_its_api_trains_on() -> None:
    (model,) = Path(botocore.__file__).parent.glob("data/sagemaker/*/service-2.json.gz")
    trained_on = set(recorded(model)["shapes"]["TrainingInstanceType"]["enum"])
    assert set(SAGEMAKER) == {f"ml.{name}" for name in EC2} & trained_on


@pytest.mark.parametrize(
    "family", ["p3", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en", "g4dn", "g5", "g6", "g6e", "c5", "c7i", "m5"]
)
def test_the_families_that_jobs_use_are_there(family: str) -> None:
    assert any(machine.family == family for machine in catalog.instances())


def test_a_p4d_is_eight_a100_of_40_gib() -> None:
    assert catalog.instance_type("p4d.24xlarge") == catalog.InstanceType(
        name="p4d.24xlarge",
        vcpus=96,
        memory_gib=1152,
        gpu="A100",
        gpu_count=8,
        gpu_memory_gib=40,
        nvme_count=8,
        nvme_gb=1000,
        network="4x 100 Gigabit",
        efa=4,
    )


def test_a_sagemaker_type_is_the_same_machine_under_its_own_name() -> None:
    ec2, sagemaker = catalog.instance_type("p4d.24xlarge"), catalog.instance_type("ml.p4d.24xlarge")
    assert (sagemaker.machine, sagemaker.family, sagemaker.is_sagemaker) == ("p4d.24xlarge", "p4d", True)
    assert (sagemaker.vcpus, sagemaker.gpu_count, sagemaker.efa) == (ec2.vcpus, ec2.gpu_count, ec2.efa)


def test_an_unknown_type_is_an_error_with_the_table_s_date() -> None:
    with pytest.raises(PlanError, match=f"z9.huge is not in the catalogue of {catalog.collected()}"):
        catalog.instance_type("z9.huge")


def test_machines_are_found_by_gpu_and_memory() -> None:
    assert [machine.name for machine in catalog.instances(gpu="a100")] == ["p4d.24xlarge", "p4de.24xlarge"]
    assert [machine.name for machine in catalog.instances(gpu="A100", min_gpu_memory_gib=41)] == ["p4de.24xlarge"]
    assert {machine.gpu for machine in catalog.instances(min_gpu_memory_gib=100)} == {"H200", "B200", "B300"}
    assert [machine.name for machine in catalog.instances(gpu="A100", sagemaker=True)] == [
        "ml.p4d.24xlarge",
        "ml.p4de.24xlarge",
    ]
    assert catalog.instances(gpu="K80") == ()


# Codes of Service Quotas, service `ec2`, from Determined's preflight.py and the AWS console.
@pytest.mark.parametrize(
    ("name", "on_demand", "spot"),
    [
        ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("p3.2xlarge", "L-417A185B", "L-7212CCBC"),
        ("p5.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p6-b200.48xlarge", "L-417A185B", None),
        ("g5.xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("c5.9xlarge", "L-1216C47A", "L-34B43A08"),
        ("ml.p4d.24xlarge", "ml.p4d.24xlarge for training job usage", "ml.p4d.24xlarge for spot training job usage"),
    ],
)
def test_each_market_has_its_quota(name: str, on_demand: str, spot: str | None) -> None:
    machine = catalog.instance_type(name)
    assert (machine.quota(), machine.quota(spot=True)) == (on_demand, spot)


def test_bf16_is_supported_from_ampere_on() -> None:
    without = {machine.family for machine in catalog.instances() if not machine.has_bf16}
    assert without == {"p3", "p3dn", "g4dn"}


def test_every_price_has_a_known_type_and_region_a_date_and_a_source() -> None:
    tables = json.loads((Path(catalog.__file__).parent / "prices.json").read_text())
    for table in tables:
        assert table["region"] in catalog.regions()
        assert date.fromisoformat(table["date"]) <= date.fromisoformat(catalog.collected())
        for name, usd in table["usd_per_hour"].items():
            machine = catalog.instance_type(name)
            assert machine.is_sagemaker == (table["service"] == "sagemaker")
            assert catalog.price(name, table["region"]) == catalog.Price(
                usd, table["region"], table["date"], table["source"]
            )


def test_prices_are_of_the_size_that_the_rate_card_has() -> None:
    """SageMaker costs 15 % more for a P4d, Frankfurt more than Virginia, and twice the machine about twice as much."""
    p4d = catalog.price("p4d.24xlarge", "us-west-2")
    p4d_in_frankfurt = catalog.price("p4d.24xlarge", "eu-central-1")
    on_sagemaker = catalog.price("ml.p4d.24xlarge", "us-west-2")
    assert p4d
    assert p4d_in_frankfurt
    assert on_sagemaker
    assert on_sagemaker.usd_per_hour == pytest.approx(1.15 * p4d.usd_per_hour, rel=1e-4)
    assert p4d_in_frankfurt.usd_per_hour > p4d.usd_per_hour
    c5 = {size: catalog.price(f"c5.{size}", "us-east-1") for size in ("xlarge", "9xlarge", "18xlarge")}
    assert [round(price.usd_per_hour, 2) for price in c5.values() if price] == [0.17, 1.53, 3.06]


def test_a_price_that_is_in_no_table_is_none() -> None:
    assert catalog.price("p4d.24xlarge", "ap-south-2") is None
    assert catalog.price("z9.huge", "us-east-1") is None
