"""The tasks of a run with labels, and the text for its best round."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_example import example_report

from mtl_cloud.report.metrics import describe_best, tasks_of
from mtl_cloud.runs.schema import BestRound


def test_a_task_of_which_nothing_was_labelled_is_left_out() -> None:
    """In MTL-Net on CIFAR-10, the detector and the segmenter are trained only through the fusion."""
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
        (BestRound(2, None, None), "round 2"),  # written by an older trainer
    ],
)
def test_the_best_round_is_described_with_its_metric(best: BestRound, words: str) -> None:
    assert describe_best(best) == words
