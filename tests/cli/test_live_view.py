"""What an attached command writes: one line for each milestone and epoch, or a region that is drawn over."""

from __future__ import annotations

from dataclasses import replace

from run_example import PLAN, example_report, round_record

from mtl_cloud.cli.live_view import LineView, milestone_words
from mtl_cloud.cli.status_lines import loss_words, position_words, result_words, speed_words
from mtl_cloud.json_types import Json
from mtl_cloud.runs.events import AttemptEnded, AttemptStarted, Finished, LogLines, Lost, Progress, RoundDone, RunEvent
from mtl_cloud.runs.schema import Heartbeat

PROGRESS: dict[str, Json] = {
    "round": 2,
    "rounds": 5,
    "epoch": 31,
    "epochs": 100,
    "step": 411,
    "steps": 685,
    "losses": {"classification": 0.29751, "detection": 1.482, "segmentation": None},
    "images_per_s": 812.4,
    "data_wait": 0.031,
    "eta_s": 190.0,
}


def beat(phase: str = "training", **changes: Json) -> Heartbeat:
    return Heartbeat(at="2026-11-23T15:00:10+00:00", phase=phase, progress=PROGRESS | changes)


def lines(*events: RunEvent) -> list[str]:
    written: list[str] = []
    with (view := LineView(PLAN, written.append)):
        for event in events:
            view.show(event)
    return written


def test_a_run_without_a_terminal_is_told_in_lines() -> None:
    report = example_report()
    first, second = report.attempts
    assert report.result is not None
    assert lines(
        AttemptStarted(first.attempt),
        LogLines(1, "not for this view\n"),
        Progress(1, beat("loading", losses={}, images_per_s=None, data_wait=None, eta_s=None)),
        Progress(1, beat()),
        RoundDone(round_record(2)),
        AttemptEnded(1, first.exit),
        AttemptStarted(second.attempt),
        AttemptEnded(2, second.exit),
        Finished(report.result),
    ) == [
        "attempt 1 on ip-10-0-1-7 (8 x A100)",
        "loading · round 2/5 · epoch 31/100 · step 411/685",
        (
            "training · round 2/5 · epoch 31/100 · step 411/685 · loss classification 0.298, detection 1.48"
            " · 812 images/s · 3.1 % waiting for data · 3 min 10 s left"
        ),
        (
            "round 2/5: classification top-1 accuracy 72.8 %, detection mAP@.5 60.9 %, segmentation mIoU 57.3 %"
            " · 814.5 images/s · 5 min 17 s · $1.90"
        ),
        "attempt 1 ended: interrupted, spot notice",
        "attempt 2 on ip-10-0-2-9 (8 x A100)",
        "done after 4 rounds, 53 min 00 s, $19.40: all rounds are done",
    ]


def test_lines_come_once_an_epoch_and_at_each_change_of_phase_not_at_each_heartbeat() -> None:
    beats = [beat(), beat(step=412), beat(step=420, epoch=32), beat("validating", epoch=32)]
    assert len(lines(*(Progress(1, heartbeat) for heartbeat in beats))) == 3


def test_a_vanished_attempt_and_a_lost_run_are_told() -> None:
    assert milestone_words(AttemptEnded(3, None), 5) == "attempt 3 stopped reporting"
    assert milestone_words(Lost(3, "no sign of life"), 5) == "no sign of life"


def test_words_leave_out_what_the_trainer_has_not_said() -> None:
    assert (position_words({}), loss_words({}), speed_words({})) == ("", "", "")
    assert position_words({"step": 3}) == "step 3"
    assert loss_words({"losses": {"detection": None}}) == ""


def test_a_result_without_price_or_message_has_none() -> None:
    result = example_report().result
    assert result is not None
    bare = replace(result, usd=None, message="", rounds=1, outcome="out_of_time")
    assert result_words(bare) == "out of time after 1 round, 53 min 00 s"
