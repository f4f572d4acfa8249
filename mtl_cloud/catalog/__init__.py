"""Catalogue of instance types and prices, from dated tables that are shipped with the package.

Instance facts (``instances.json``) have one source; every price (``mtl_cloud.catalog.prices``) has its own date and
source. Tables are read on first use. A SageMaker type (``ml.p4d.24xlarge``) is the EC2 type of the same name, with
SageMaker's quota and price.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtl_cloud.catalog.prices import Price, shipped_prices
from mtl_cloud.errors import PlanError
from mtl_cloud.suggest import did_you_mean

__all__ = [
    "QUOTA_NAMES",
    "InstanceType",
    "Price",
    "collected",
    "instance_names",
    "instance_type",
    "instances",
    "price",
    "regions",
]

_TABLES = Path(__file__).parent

# EC2 quotas are in vCPUs, one for each group of families and market (Service Quotas, service code `ec2`).
_ON_DEMAND_QUOTAS = {"p": "L-417A185B", "g": "L-DB2E81BA", "c": "L-1216C47A", "m": "L-1216C47A"}
_SPOT_QUOTAS = {"p": "L-7212CCBC", "p5": "L-C4BD4855", "g": "L-3819A6DF", "c": "L-34B43A08", "m": "L-34B43A08"}

QUOTA_NAMES = {
    "L-417A185B": "Running On-Demand P instances",
    "L-7212CCBC": "All P4, P3 and P2 Spot Instance Requests",
    "L-C4BD4855": "All P5 Spot Instance Requests",
    "L-DB2E81BA": "Running On-Demand G and VT instances",
    "L-3819A6DF": "All G and VT Spot Instance Requests",
    "L-1216C47A": "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
    "L-34B43A08": "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
}
"""Code of an EC2 quota -> its name in Service Quotas."""

_WITHOUT_BF16 = {"V100", "T4"}


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """One instance type. Memory is in GiB, disks are in GB, as AWS states them."""

    name: str
    vcpus: int
    memory_gib: float
    gpu: str | None
    """Model of the GPUs, or None."""
    gpu_count: int
    gpu_memory_gib: float
    """Memory of one GPU, as EC2 reports it."""
    nvme_count: int
    nvme_gb: int
    """Size of one local NVMe disk."""
    network: str
    efa: int
    """Elastic Fabric Adapter interfaces, 0 for none."""

    @property
    def family(self) -> str:
        return self.machine.split(".")[0]

    @property
    def machine(self) -> str:
        """The EC2 type: ``p4d.24xlarge`` of ``ml.p4d.24xlarge``."""
        return self.name.removeprefix("ml.")

    @property
    def is_sagemaker(self) -> bool:
        return self.name != self.machine

    @property
    def network_gbit(self) -> float:
        """Peak network bandwidth, Gbit/s."""
        count, _, rate = self.network.removesuffix(" Gigabit").removeprefix("Up to ").rpartition("x ")
        return float(count or 1) * float(rate)

    @property
    def has_bf16(self) -> bool:
        """Whether its GPUs support bfloat16; those before Ampere do not. A CPU does, in software."""
        return self.gpu not in _WITHOUT_BF16

    def quota(self, *, spot: bool = False) -> str | None:
        """Code of the EC2 quota, in vCPUs; or name of the SageMaker quota, in instances. None if unknown."""
        if self.is_sagemaker:
            return f"{self.name} for {'spot ' if spot else ''}training job usage"
        if not spot:
            return _ON_DEMAND_QUOTAS[self.name[0]]
        if self.name.startswith("p6"):
            return None
        return _SPOT_QUOTAS["p5" if self.name.startswith("p5") else self.name[0]]


@cache
def _machines() -> Any:
    return _table("instances.json")


@cache
def _types() -> dict[str, InstanceType]:
    types = {}
    for name, facts in _machines()["types"].items():
        machine = {key: value for key, value in facts.items() if key != "sagemaker"}
        types[name] = InstanceType(name=name, **machine)
        if facts["sagemaker"]:
            types[f"ml.{name}"] = InstanceType(name=f"ml.{name}", **machine)
    return types


def _table(name: str) -> Any:
    return json.loads((_TABLES / name).read_text(encoding="utf-8"))


def collected() -> str:
    """ISO date on which the instance facts were collected."""
    return str(_machines()["collected"])


def regions() -> tuple[str, ...]:
    """The AWS regions known on that date."""
    return tuple(_machines()["regions"])


def instance_names(*, sagemaker: bool = False) -> tuple[str, ...]:
    """All EC2 types, or all SageMaker training types (``ml.…``); GPU types first."""
    return tuple(name for name, machine in _types().items() if machine.is_sagemaker == sagemaker)


def instance_type(name: str) -> InstanceType:
    """The facts of one type. Raises ``PlanError`` if it is not in the catalogue."""
    try:
        return _types()[name]
    except KeyError:
        message = f"instance type {name} is not in the catalogue of {collected()}"
        raise PlanError(message, hint=did_you_mean(name, _types())) from None


def instances(
    *, gpu: str | None = None, min_gpu_memory_gib: float = 0, sagemaker: bool = False
) -> tuple[InstanceType, ...]:
    """Types with this GPU model (case-insensitive; None for any type) and at least this memory on each GPU."""
    return tuple(
        machine
        for machine in _types().values()
        if machine.is_sagemaker == sagemaker
        and (gpu is None or (machine.gpu or "").casefold() == gpu.casefold())
        and machine.gpu_memory_gib >= min_gpu_memory_gib
    )


def price(name: str, region: str) -> Price | None:
    """On-demand price of the type in the region from the shipped tables, or None if they do not have it."""
    return shipped_prices().on_demand.get((name, region))
