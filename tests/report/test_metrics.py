"""Which tasks a run has something to say about."""

from __future__ import annotations

from dataclasses import replace

from run_example import example_report

from mtl_cloud.report.metrics import tasks_of


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
