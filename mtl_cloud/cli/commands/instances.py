"""``mtl-cloud instances``: instance types and their prices."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mtl_cloud.catalog import InstanceType
    from mtl_cloud.catalog.prices import PriceBook


@click.command(
    "instances",
    epilog=examples("instances --gpu A100 --min-gpu-memory 40", "instances --gpu H100 --region us-east-2 --refresh"),
)
@click.option("--gpu", metavar="MODEL", help="Only types with this GPU, e.g. A100.")
@click.option(
    "--min-gpu-memory", type=float, default=0, metavar="GIB", help="Only types with at least this memory per GPU."
)
@click.option("--region", default="us-east-1", show_default=True, help="Prices of this region.")
@click.option("--sagemaker", is_flag=True, help="SageMaker's types (ml.…) and prices.")
@click.option("--refresh", is_flag=True, help="Query prices from AWS, and cache them for later plans.")
@output_options
def command(
    *, gpu: str | None, min_gpu_memory: float, region: str, sagemaker: bool, refresh: bool, as_json: bool
) -> None:
    """List instance types with their GPUs, disks, network, quotas, and prices with their dates.

    Prices come from the shipped tables, or from the last --refresh.

    JSON: [{name, vcpus, memory_gib, gpu, gpu_count, gpu_memory_gib, nvme_count, nvme_gb, network, efa, quotas
    {on_demand, spot}, on_demand {usd_per_hour, region, date, source}, spot {least, mean, most, days, ...}}]. Unknown
    prices are null.
    """
    from mtl_cloud.catalog import instances
    from mtl_cloud.catalog.prices import known_prices, price_cache

    _require_known(gpu, region)
    found = instances(gpu=gpu, min_gpu_memory_gib=min_gpu_memory, sagemaker=sagemaker)
    if refresh:
        _refresh(found, region)
    book = known_prices(price_cache())
    if as_json:
        print_json([_document(machine, region, book) for machine in found])
    else:
        _print(found, region, book)


def _require_known(gpu: str | None, region: str) -> None:
    """Raises ``UsageError`` for an unknown GPU or region, so that a typo does not look like an empty result."""
    from mtl_cloud.catalog import instances, regions
    from mtl_cloud.errors import UsageError
    from mtl_cloud.suggest import did_you_mean

    gpus = {machine.gpu for machine in instances() if machine.gpu}
    if gpu is not None and gpu.casefold() not in {name.casefold() for name in gpus}:
        hint = did_you_mean(gpu, gpus) or f"known: {', '.join(sorted(gpus))}"
        raise UsageError(f"--gpu: no machine has a {gpu}", hint=hint)
    if region not in regions():
        raise UsageError(f"--region: {region} is not known", hint=did_you_mean(region, regions()))


def _refresh(machines: tuple[InstanceType, ...], region: str) -> None:
    from mtl_cloud.aws import AwsClients
    from mtl_cloud.catalog.prices import price_cache, save_prices
    from mtl_cloud.planning.lookup import look_up_prices

    names = [machine.name for machine in machines]
    save_prices(look_up_prices(AwsClients(region), names, now=datetime.now(UTC)), price_cache())


def _document(machine: InstanceType, region: str, book: PriceBook) -> dict[str, object]:
    on_demand, spot = book.on_demand.get((machine.name, region)), book.spot.get((machine.name, region))
    return {
        **asdict(machine),
        "quotas": {"on_demand": machine.quota(), "spot": machine.quota(spot=True)},
        "on_demand": asdict(on_demand) if on_demand else None,
        "spot": asdict(spot) if spot else None,
    }


def _print(machines: tuple[InstanceType, ...], region: str, book: PriceBook) -> None:
    hardware = ("type", "GPUs", "vCPUs", "GiB", "NVMe", "network", "EFA", "quota")
    titles = (*hardware, "on demand", "price date", "spot, mean", "price date")
    print_table(titles, [_row(machine, region, book) for machine in machines], right=(2, 3, 6, 8, 10))


def _row(machine: InstanceType, region: str, book: PriceBook) -> tuple[str, ...]:
    on_demand, spot = book.on_demand.get((machine.name, region)), book.spot.get((machine.name, region))
    return (
        machine.name,
        f"{machine.gpu_count} x {machine.gpu} {machine.gpu_memory_gib:g} GiB" if machine.gpu else "",
        str(machine.vcpus),
        f"{machine.memory_gib:g}",
        f"{machine.nvme_count} x {machine.nvme_gb} GB" if machine.nvme_count else "",
        machine.network.removesuffix(" Gigabit") + " Gbit/s",
        str(machine.efa or ""),
        "its own" if machine.is_sagemaker else str(machine.quota()),
        f"${on_demand.usd_per_hour:.3f}" if on_demand else "unknown",
        on_demand.date if on_demand else "",
        f"${spot.mean:.3f}" if spot else "unknown",
        spot.date if spot else "",
    )
