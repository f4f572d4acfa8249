"""Formats of numbers, durations, dollars and times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_cloud.report.formatting import dollars, duration, instant, number, percent, sparkline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "—"),
        (0.04, "0.0 s"),
        (8.24, "8.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (4320, "1 h 12 min"),
        (86399.9, "1 d 0 h"),
        (183600, "2 d 3 h"),
    ],
)
def test_a_duration_is_written_with_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0, "0"),
        (1204, "1204"),
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (12345.6, "12346"),
        (1e-5, "1e-05"),
    ],
)
def test_a_number_keeps_four_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (0.0, "$0.00"), (0.0123, "$0.012"), (0.9996, "$1.00"), (1, "$1.00"), (12.4, "$12.40")],
)
def test_dollars_below_one_show_tenths_of_a_cent(value: float | None, text: str) -> None:
    assert dollars(value) == text


def test_a_share_is_written_in_per_cent() -> None:
    assert [percent(value) for value in (None, 0.0, 0.9127, 1.0)] == ["—", "0.0 %", "91.3 %", "100.0 %"]


def test_a_time_of_another_zone_is_shown_in_utc() -> None:
    assert instant("2026-11-23T16:55:31+02:00") == "2026-11-23 14:55 UTC"


def test_what_is_no_time_is_shown_as_it_is() -> None:
    assert instant("yesterday") == "yesterday"


def test_a_sparkline_runs_from_the_lowest_block_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"


def test_a_sparkline_leaves_gaps_and_marks_what_is_not_finite() -> None:
    assert sparkline([0.0, None, math.nan, 1.0]) == "▁ !█"


def test_a_level_series_lies_in_the_middle_and_an_unknown_one_is_empty() -> None:
    assert (sparkline([0.5, 0.5]), sparkline([None, None])) == ("▅▅", "")


@given(st.lists(st.none() | st.floats(allow_nan=True), max_size=40), st.integers(1, 30))
def test_a_sparkline_is_as_long_as_what_it_shows(values: list[float | None], width: int) -> None:
    known = [value for value in values[-width:] if value is not None and math.isfinite(value)]
    assert len(sparkline(values, width)) == (min(width, len(values)) if known else 0)
