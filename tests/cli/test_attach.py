"""Staying with a run: to its end, to its loss, or until Ctrl-C."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from run_example import example_report, write_run

from mtl_cloud.cli.attach import attach, require_done
from mtl_cloud.cli.live_view import SilentView
from mtl_cloud.clock import Clock
from mtl_cloud.errors import RunFailedError
from mtl_cloud.runs.events import AttemptEnded, AttemptStarted, Finished, LogLines, RoundDone, RunEvent
from mtl_cloud.storage import MemoryStorage


class SwiftClock(Clock):
    """Hours go by at once."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return datetime.fromisoformat("2026-11-23T16:00:00+00:00") + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Recorder(SilentView):
    def __init__(self) -> None:
        self.kinds: list[type[RunEvent]] = []

    def show(self, event: RunEvent) -> None:
        self.kinds.append(type(event))


class Interrupted(SilentView):
    def show(self, event: RunEvent) -> None:
        raise KeyboardInterrupt


def test_every_event_is_shown_up_to_the_result() -> None:
    report, view = example_report(), Recorder()
    assert attach(write_run(MemoryStorage("example"), report), view, SwiftClock()) == report.result
    assert {AttemptStarted, LogLines, RoundDone, AttemptEnded} <= set(view.kinds)
    assert view.kinds[-1] is Finished


def test_a_run_that_nobody_works_on_fails_instead_of_waiting_for_ever() -> None:
    run = write_run(MemoryStorage("example"), replace(example_report(), result=None))
    with pytest.raises(RunFailedError, match="ended") as caught:
        attach(run, SilentView(), SwiftClock())
    assert caught.value.hint == f"mtl-cloud logs {run.run_id}"


def test_ctrl_c_says_how_to_come_back_and_how_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(MemoryStorage("example"), example_report())
    with pytest.raises(KeyboardInterrupt):
        attach(run, Interrupted(), SwiftClock())
    words = capsys.readouterr().err
    assert f"mtl-cloud status --follow {run.run_id}" in words
    assert f"mtl-cloud cancel {run.run_id}" in words
    assert run.cancel_request() is None


def test_only_a_run_that_is_done_is_a_success() -> None:
    result = example_report().result
    assert result is not None
    require_done("demo-1", result)
    with pytest.raises(RunFailedError, match="demo-1 ended as out of budget: all rounds are done"):
        require_done("demo-1", replace(result, outcome="out_of_budget"))
