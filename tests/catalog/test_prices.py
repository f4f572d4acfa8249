"""The price book: newer prices win, damage is reported, and writing loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud import catalog
from mtl_cloud.catalog.prices import Price, PriceBook, SpotPrice, known_prices, price_cache, save_prices, shipped_prices
from mtl_cloud.errors import PlanError

KEY = ("p4d.24xlarge", "us-east-1")
dollars = st.floats(0.001, 1000)
keys = st.tuples(st.sampled_from(catalog.instance_names()), st.sampled_from(["us-east-1", "eu-west-1"]))
dates = st.dates().map(lambda date: date.isoformat())


def price(key: tuple[str, str], usd: float, date: str) -> Price:
    return Price(usd, key[1], date, "a table")


books = st.builds(
    lambda od, spot: PriceBook(
        {key: price(key, usd, date) for key, (usd, date) in od.items()},
        {key: SpotPrice(usd, usd + 1, usd + 2, 30, key[1], date, "history") for key, (usd, date) in spot.items()},
    ),
    st.dictionaries(keys, st.tuples(dollars, dates), max_size=5),
    st.dictionaries(keys, st.tuples(dollars, dates), max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(books)
def test_a_book_equals_the_book_of_its_tables(book: PriceBook) -> None:
    assert PriceBook.of(book.tables()) == book


@settings(max_examples=40, deadline=None)
@given(books, books)
def test_of_two_books_the_newer_price_wins_and_none_is_lost(one: PriceBook, other: PriceBook) -> None:
    both = one.updated(other)
    assert set(both.on_demand) == set(one.on_demand) | set(other.on_demand)
    assert set(both.spot) == set(one.spot) | set(other.spot)
    for book in (one, other):
        assert all(both.on_demand[key].date >= known.date for key, known in book.on_demand.items())


def test_a_cached_price_overrides_only_an_older_shipped_one(tmp_path: Path) -> None:
    cache = tmp_path / "prices.json"
    save_prices(PriceBook({KEY: price(KEY, 20.0, "2027-01-01")}), cache)
    known = known_prices(cache)
    assert known.on_demand[KEY].usd_per_hour == 20.0
    assert len(known.on_demand) == len(shipped_prices().on_demand)
    save_prices(PriceBook({KEY: price(KEY, 1.0, "2020-01-01")}), tmp_path / "old.json")
    assert known_prices(tmp_path / "old.json").on_demand[KEY] == shipped_prices().on_demand[KEY]


def test_a_second_look_up_adds_to_the_first(tmp_path: Path) -> None:
    cache, other = tmp_path / "deep" / "prices.json", ("g5.xlarge", "sa-east-1")
    save_prices(PriceBook({KEY: price(KEY, 20.0, "2027-01-01")}), cache)
    save_prices(PriceBook({other: price(other, 2.0, "2027-01-02")}), cache)
    known = known_prices(cache)
    assert (known.on_demand[KEY].usd_per_hour, known.on_demand[other].usd_per_hour) == (20.0, 2.0)
    assert [path.name for path in cache.parent.iterdir()] == ["prices.json"]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"region": "x"}]', '{"a": 1}'])
def test_a_damaged_cache_is_reported_and_the_next_look_up_replaces_it(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "prices.json"
    cache.write_text(text)
    with pytest.raises(PlanError, match=str(cache)):
        known_prices(cache)
    save_prices(PriceBook({KEY: price(KEY, 20.0, "2027-01-01")}), cache)
    assert known_prices(cache).on_demand[KEY].usd_per_hour == 20.0


def test_without_a_cache_the_shipped_prices_are_known(tmp_path: Path) -> None:
    assert known_prices(tmp_path / "none.json") is shipped_prices()


def test_the_cache_is_in_the_user_s_cache_folder(tmp_path: Path) -> None:
    assert price_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/mtl-cloud/prices.json")
    assert price_cache({}) == Path.home() / ".cache" / "mtl-cloud" / "prices.json"


def test_the_network_bandwidth_is_parsed_from_aws_s_text() -> None:
    rates = {name: catalog.instance_type(name).network_gbit for name in ("p4d.24xlarge", "c5.xlarge", "c6i.8xlarge")}
    assert rates == {"p4d.24xlarge": 400, "c5.xlarge": 10, "c6i.8xlarge": 12.5}


def test_each_quota_code_has_its_name() -> None:
    codes = {machine.quota(spot=spot) for machine in catalog.instances() for spot in (False, True)} - {None}
    assert codes == set(catalog.QUOTA_NAMES)
