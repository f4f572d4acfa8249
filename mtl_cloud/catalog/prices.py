"""Prices of instance hours: the shipped tables, updated by cached prices of earlier look-ups.

A table is one JSON object: ``service`` (ec2 | sagemaker), ``market`` (on_demand by default, or spot), ``region``,
``date``, ``source``, and ``usd_per_hour``: type -> dollars, or for spot type -> [least, mean, most] over the ``days``
before its date, in all zones. A price that is in no table is None, never a guess.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeAlias

from mtl_cloud.errors import PlanError
from mtl_cloud.user_dirs import cache_folder, whole_file

__all__ = ["Price", "PriceBook", "SpotPrice", "known_prices", "price_cache", "save_prices", "shipped_prices"]

_SHIPPED = ("prices.json", "spot_prices.json")
_Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Price:
    """The price of one instance hour, with its date and source."""

    usd_per_hour: float
    region: str
    date: str
    source: str


@dataclass(frozen=True)
class SpotPrice:
    """History of the spot price in a region over ``days``; it does not predict the price."""

    least: float
    mean: float
    most: float
    days: int
    region: str
    date: str
    source: str

    @property
    def price(self) -> Price:
        """The mean, as the price for estimates."""
        return Price(self.mean, self.region, self.date, f"mean of {self.days} days, {self.source}")


@dataclass(frozen=True)
class PriceBook:
    """(type, region) -> price."""

    on_demand: Mapping[_Key, Price] = field(default_factory=dict)
    spot: Mapping[_Key, SpotPrice] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[Mapping[str, Any]]) -> Self:
        """The price book of these tables."""
        on_demand: dict[_Key, Price] = {}
        spot: dict[_Key, SpotPrice] = {}
        for table in tables:
            region, date, source = table["region"], table["date"], table["source"]
            for name, usd in table["usd_per_hour"].items():
                if table.get("market") == "spot":
                    spot[name, region] = SpotPrice(usd[0], usd[1], usd[2], table["days"], region, date, source)
                else:
                    on_demand[name, region] = Price(usd, region, date, source)
        return cls(on_demand, spot)

    def tables(self) -> list[dict[str, Any]]:
        """The inverse of ``of``: tables with these prices."""
        found: dict[tuple[object, ...], dict[str, Any]] = {}
        for (name, region), price in self.on_demand.items():
            head: dict[str, Any] = {"region": region, "date": price.date, "source": price.source}
            found.setdefault(tuple(head.values()), head | {"usd_per_hour": {}})["usd_per_hour"][name] = (
                price.usd_per_hour
            )
        for (name, region), spot in self.spot.items():
            head = {"market": "spot", "days": spot.days, "region": region, "date": spot.date, "source": spot.source}
            row = found.setdefault(tuple(head.values()), head | {"usd_per_hour": {}})["usd_per_hour"]
            row[name] = [spot.least, spot.mean, spot.most]
        return list(found.values())

    def updated(self, other: PriceBook) -> PriceBook:
        """The prices of both; of two prices for the same key, the one of the later date."""
        return PriceBook(_newest(self.on_demand, other.on_demand), _newest(self.spot, other.spot))


def _newest(one: Mapping[_Key, Any], other: Mapping[_Key, Any]) -> dict[_Key, Any]:
    newer = {key: price for key, price in other.items() if key not in one or price.date >= one[key].date}
    return {**one, **newer}


@cache
def shipped_prices() -> PriceBook:
    """Prices of the tables in the package."""
    folder = Path(__file__).parent
    tables = [table for name in _SHIPPED for table in json.loads((folder / name).read_text(encoding="utf-8"))]
    return PriceBook.of(tables)


def price_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache file of looked-up prices."""
    return cache_folder(environ) / "prices.json"


def known_prices(cached: Path) -> PriceBook:
    """The shipped prices, updated from the cache file if it exists. Raises ``PlanError`` if that is damaged."""
    try:
        tables = json.loads(cached.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return shipped_prices()
    except (OSError, ValueError) as error:
        raise _damaged(cached, error) from error
    try:
        return shipped_prices().updated(PriceBook.of(tables))
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(cached, error) from error


def _damaged(cached: Path, error: Exception) -> PlanError:
    return PlanError(
        f"{cached}: cannot be read as prices: {error!r}", hint="delete it, or look up prices again with --refresh"
    )


def save_prices(book: PriceBook, cached: Path) -> None:
    """Add a book to a cache file, atomically."""
    text = json.dumps(_known_before(cached).updated(book).tables(), indent=1)
    with whole_file(cached) as file:
        file.write(text.encode())


def _known_before(cached: Path) -> PriceBook:
    """The prices of the cache alone; empty if it is missing or damaged, because a look-up replaces it."""
    try:
        return PriceBook.of(json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return PriceBook()
