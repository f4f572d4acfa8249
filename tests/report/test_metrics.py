"""Which tasks a run has something to say about, and which round is its best."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_example import example_report

from mtl_cloud.report.metrics import best_words, tasks_of
from mtl_cloud.runs.schema import BestRound


def test_a_task_of_which_nothing_was_labelled_is_left_out() -> None:
    """MTL-Net on CIFAR-10: the detector and the segmenter are trained through the fusion alone."""
    (record, *_) = example_report().rounds
    silent = {"detection": None, "segmentation": None}
    only = replace(
        record,
        train_losses={"classification": 1.0, **silent},
        val_losses={"classification": 1.0, **silent},
        metrics={"classification": {"top1": 0.5}},
    )
    assert tasks_of([only]) == ["classification"]
    assert tasks_of([replace(only, train_losses={**only.train_losses, "detection": 3.0})]) == [
        "classification",
        "detection",
    ]


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (BestRound(3, "detection/map50_voc", 0.4123), "round 3, detection mAP@.5 41.2 %"),
        (BestRound(3, "detection/loss", 0.4123), "round 3, detection loss 0.4123"),
        (BestRound(2, None, 0.5), "round 2, mean of the headline metrics 50.0 %"),
        (BestRound(2, None, None), "round 2"),  # of a trainer that did not tell more
    ],
)
def test_the_best_round_is_told_with_what_it_is_the_best_by(best: BestRound, words: str) -> None:
    assert best_words(best) == words
