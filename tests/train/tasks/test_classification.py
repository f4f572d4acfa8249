"""Classification against scikit-learn and SciPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from task_cases import CLASSES, random_batch, random_outputs
from torch import Tensor

from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks import ClassificationHead
from mtl_cloud.train.tasks.base import TaskMetrics
from mtl_cloud.train.tasks.statistics import wilson_interval

SINGLE, MULTI = ClassificationHead(CLASSES, multi_label=False), ClassificationHead(CLASSES, multi_label=True)


def case(seed: int, *, multi_label: bool, images: int = 60) -> tuple[Tensor, Batch]:
    batch = random_batch(seed, images=images, size=4, multi_label=multi_label)
    return random_outputs(seed + 1, images=images, size=32)["classification"].detach(), batch


def metrics_of(head: ClassificationHead, output: Tensor, batch: Batch) -> TaskMetrics:
    evaluator = head.evaluator()
    evaluator.update(output, batch)
    return evaluator.compute()


def test_the_single_label_loss_is_cross_entropy_over_the_labelled_images() -> None:
    output, batch = case(0, multi_label=False)
    has = batch.has["classification"]
    term = SINGLE.loss(output, batch)
    torch.testing.assert_close(term.total / term.count, F.cross_entropy(output[has], batch.labels[has]))
    assert term.count == has.sum()


def test_the_multi_label_loss_is_the_mean_over_known_pairs() -> None:
    output, batch = case(0, multi_label=True)
    known = (batch.labels >= 0) & batch.has["classification"][:, None]
    term = MULTI.loss(output, batch)
    expected = F.binary_cross_entropy_with_logits(output[known], batch.labels[known])
    torch.testing.assert_close(term.total / term.count, expected)


def test_single_label_metrics_are_scikit_learns() -> None:
    output, batch = case(1, multi_label=False)
    has, count = batch.has["classification"], range(len(CLASSES))
    truth, scores = batch.labels[has].numpy(), output[has].numpy()
    metrics, guess = metrics_of(SINGLE, output, batch), scores.argmax(1)
    recall = recall_score(truth, guess, labels=count, average=None)
    assert metrics.confusion == confusion_matrix(truth, guess, labels=count).tolist()
    assert list(metrics.per_class["recall"].values()) == pytest.approx(recall.tolist())
    assert metrics.values["recall_macro"] == pytest.approx(recall.mean())
    assert metrics.values["top1"] == pytest.approx((truth == guess).mean())
    assert metrics.values["top5"] == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=count))
    assert metrics.values["n"] == has.sum()


def test_multi_label_metrics_are_scikit_learns_over_the_known_pairs() -> None:
    output, batch = case(2, multi_label=True)
    metrics, has = metrics_of(MULTI, output, batch), batch.has["classification"]
    for c, name in enumerate(CLASSES):
        known = (batch.labels[:, c] >= 0) & has
        truth, scores = batch.labels[known, c].numpy(), output[known, c].numpy()
        expected = {
            "ap": average_precision_score(truth, scores),
            "recall": recall_score(truth, scores > 0),
            "precision": precision_score(truth, scores > 0),
        }
        assert {metric: metrics.per_class[metric][name] for metric in expected} == pytest.approx(expected, abs=1e-6)
    for mean, per_class in {"map": "ap", "recall_macro": "recall", "precision_macro": "precision"}.items():
        assert metrics.values[mean] == pytest.approx(np.mean(list(metrics.per_class[per_class].values())))


def test_multi_label_top1_asks_whether_the_best_scored_known_class_is_true() -> None:
    unknown, no, yes = -1.0, 0.0, 1.0
    labels = torch.tensor([[yes, no, yes], [yes, no, no], [unknown, yes, no], [unknown, no, no]])
    output = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 1.0], [9.0, 1.0, 0.0], [9.0, 1.0, 0.0]])
    batch = replace(
        random_batch(0, images=4, size=4), labels=labels, has={"classification": torch.ones(4, dtype=torch.bool)}
    )
    values = metrics_of(ClassificationHead(CLASSES[:3], multi_label=True), output, batch).values
    assert values["top1"] == pytest.approx(2 / 3)
    assert values["n"] == 3


def test_a_class_without_a_sample_has_no_recall_and_stays_out_of_the_mean() -> None:
    batch = replace(
        random_batch(0, images=2, size=4),
        labels=torch.tensor([0, 1]),
        has={"classification": torch.ones(2, dtype=torch.bool)},
    )
    head = ClassificationHead(CLASSES[:3], multi_label=False)
    metrics = metrics_of(head, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), batch)
    assert metrics.per_class["recall"] == {CLASSES[0]: 1.0, CLASSES[1]: 0.0, CLASSES[2]: None}
    assert metrics.values["recall_macro"] == 0.5
    assert metrics.values["top5"] is None  # five guesses of three classes are always right


def test_the_confusion_matrix_is_left_out_over_200_classes() -> None:
    batch, output = random_batch(0, images=2, size=4), torch.zeros(2, 201)
    sizes = {
        n: metrics_of(ClassificationHead(list(map(str, range(n))), multi_label=False), output[:, :n], batch)
        for n in (200, 201)
    }
    assert sizes[200].confusion is not None
    assert sizes[201].confusion is None


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 50), (13, 40), (9990, 10000)])
def test_the_interval_is_wilsons(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_predictions_are_the_best_five_or_all_over_one_half() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0, 1.0, 2.0, -2.0, -3.0]])
    (best,) = SINGLE.predict(logits)
    assert [name for name, _ in best["classes"]] == ["bee", "elk", "dog", "ant", "cat"]
    assert [score for _, score in best["classes"]] == pytest.approx(logits.softmax(1)[0, [1, 4, 3, 0, 2]].tolist())
    (present,) = MULTI.predict(logits)
    assert [name for name, _ in present["classes"]] == ["bee", "elk", "dog"]
