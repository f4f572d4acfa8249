"""Prices from AWS: the Price List for on demand, the spot price history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.catalog.prices import Price, PriceBook, SpotPrice

__all__ = ["look_up_on_demand", "look_up_prices", "look_up_spot_now"]

_LINUX = "Linux/UNIX"
_HISTORY_DAYS = 30
_EC2_TERMS = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}


def look_up_prices(clients: ClientMaker, names: Sequence[str], *, now: datetime) -> PriceBook:
    """On-demand prices and the summary of 30 days of spot, of these types in the clients' region.

    SageMaker's types have no spot history. Raises ``CloudError``.
    """
    ec2 = [name for name in names if not name.startswith("ml.")]
    spot = _spot_summary(clients, ec2, now) if ec2 else {}
    on_demand = look_up_on_demand(clients, names, now=now)
    return PriceBook(
        {(name, clients.region): price for name, price in on_demand.items()},
        {(name, clients.region): price for name, price in spot.items()},
    )


def look_up_on_demand(clients: ClientMaker, names: Sequence[str], *, now: datetime) -> dict[str, Price]:
    """Type -> price in the clients' region; types without an entry in the Price List are left out."""
    machines = [name for name in names if not name.startswith("ml.")]
    training = [name for name in names if name.startswith("ml.")]
    found: dict[str, float] = {}
    if machines:
        found |= _products(clients, "AmazonEC2", "instanceType", machines, _EC2_TERMS)
    if training:
        found |= _products(clients, "AmazonSageMaker", "instanceName", training, {"component": "Training"})
    source = "AWS Price List API"
    return {name: Price(usd, clients.region, now.date().isoformat(), source) for name, usd in found.items()}


def _products(
    clients: ClientMaker, service: str, key: str, names: Sequence[str], terms: dict[str, str]
) -> dict[str, float]:
    exact = {**terms, "regionCode": clients.region}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in exact.items()]
    filters.append({"Type": "ANY_OF", "Field": key, "Value": ",".join(names)})
    with translated("pricing", where=clients.region):
        pages = clients("pricing").get_paginator("get_products").paginate(ServiceCode=service, Filters=filters)
        products = [json.loads(product) for page in pages for product in page["PriceList"]]
    return {product["product"]["attributes"][key]: usd for product in products for usd in _hourly(product)}


def _hourly(product: dict[str, Any]) -> Iterator[float]:
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            usd = float(dimension["pricePerUnit"].get("USD", 0))
            if dimension["unit"].casefold() in {"hrs", "hours"} and usd > 0:
                yield usd


def look_up_spot_now(clients: ClientMaker, names: Sequence[str], *, now: datetime) -> dict[tuple[str, str], Price]:
    """(type, zone) -> current spot price."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for point in _history(clients, names, start=now):
        key = point["InstanceType"], point["AvailabilityZone"]
        if key not in newest or point["Timestamp"] > newest[key]["Timestamp"]:
            newest[key] = point
    date, source = now.date().isoformat(), "EC2 DescribeSpotPriceHistory"
    return {key: Price(float(point["SpotPrice"]), clients.region, date, source) for key, point in newest.items()}


def _spot_summary(clients: ClientMaker, names: Sequence[str], now: datetime) -> dict[str, SpotPrice]:
    prices: dict[str, list[float]] = {}
    for point in _history(clients, names, start=now - timedelta(days=_HISTORY_DAYS)):
        prices.setdefault(point["InstanceType"], []).append(float(point["SpotPrice"]))
    date, source = now.date().isoformat(), "EC2 DescribeSpotPriceHistory"
    return {
        name: SpotPrice(min(usd), fmean(usd), max(usd), _HISTORY_DAYS, clients.region, date, source)
        for name, usd in prices.items()
    }


def _history(clients: ClientMaker, names: Iterable[str], *, start: datetime) -> Iterator[dict[str, Any]]:
    """Changes of spot prices, and those in force at the start."""
    with translated("ec2", where=clients.region):
        pages = clients("ec2").get_paginator("describe_spot_price_history")
        query = {"InstanceTypes": list(names), "ProductDescriptions": [_LINUX], "StartTime": start}
        for page in pages.paginate(**query):
            yield from page["SpotPriceHistory"]
