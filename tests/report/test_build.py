"""The report has the content of the run record."""

from __future__ import annotations

from dataclasses import replace

from run_example import PLAN, example_report, write_run

from mtl_cloud.report.build import build_report
from mtl_cloud.storage import MemoryStorage


def test_a_report_is_read_back_completely_from_the_record() -> None:
    assert build_report(write_run(MemoryStorage("example"), example_report())) == example_report()


def test_the_newest_samples_are_shown_although_later_rounds_have_none() -> None:
    samples = example_report().samples
    assert samples is not None
    report = replace(example_report(), samples=replace(samples, round=2))
    assert build_report(write_run(MemoryStorage("example"), report)).samples == report.samples


def test_a_run_without_an_attempt_is_waiting() -> None:
    empty = replace(example_report(0), attempts=(), result=None, samples=None)
    report = build_report(write_run(MemoryStorage("example"), empty))
    assert (report.outcome, report.usd, report.seconds) == ("waiting", None, None)


def test_time_and_cost_of_an_unfinished_run_are_those_of_its_rounds() -> None:
    running = replace(example_report(2), result=None)
    assert running.outcome == "unfinished"
    assert running.usd == 2 * 1.9
    assert running.seconds == sum(record.seconds + record.validation_s for record in running.rounds)


def test_a_run_without_prices_has_no_cost() -> None:
    rounds = tuple(replace(record, usd=None) for record in example_report().rounds)
    report = replace(example_report(), plan=replace(PLAN, usd_per_hour=None), rounds=rounds, result=None)
    assert report.usd is None
