"""The published classifiers are more accurate on real images than a linear model of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrowing import present
from sklearn.linear_model import LogisticRegression

from mtl_cloud.datasets import open_splits
from mtl_cloud.datasets.base import Dataset
from mtl_cloud.jobspec.job import DatasetSpec, JobSpec
from mtl_cloud.train.trainer import Trainer

pytestmark = [pytest.mark.real_data, pytest.mark.timeout(1800)]

NETWORKS = {"vgg16": (0.25, 32, 30), "alexnet": (0.5, 64, 20)}
"""Width, image size and epochs of a fit to the end."""


@pytest.fixture(scope="module")
def dataset(real_data: Callable[[str], Path]) -> DatasetSpec:
    """5,085 training and 1,017 test images, stored losslessly."""
    (folder,) = real_data("cifar10").rglob("cifar-10-batches-py")
    return DatasetSpec.model_validate(
        {"name": "cifar10", "uri": str(folder), "splits": {"train": "train", "val": "test"}}
    )


@pytest.fixture(scope="module")
def linear(dataset: DatasetSpec) -> float:
    """Test accuracy of a multinomial logistic regression of the pixels."""
    train, test = open_splits(dataset)
    model = LogisticRegression(C=0.001, max_iter=300).fit(*_arrays(train))
    accuracy = float(model.score(*_arrays(test)))
    print(f"logistic regression: {accuracy:.3f}")
    return accuracy


def _arrays(split: Dataset) -> tuple[Any, Any]:
    samples = [split[i] for i in range(len(split))]
    images = np.stack([sample.image for sample in samples]).reshape(len(samples), -1) / 127.5 - 1
    return images, np.array([sample.classification for sample in samples])


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", NETWORKS)
def test_a_published_classifier_is_far_above_a_linear_one(
    make_trainer: Callable[..., Trainer], dataset: DatasetSpec, linear: float, network: str
) -> None:
    top1 = top1_of_a_fit(make_trainer, dataset, network, *NETWORKS[network])
    print(f"{network}: {top1:.3f} against {linear:.3f}")
    assert top1 > linear + 0.15


@pytest.mark.slow
def test_a_short_fit_is_above_a_linear_one(
    make_trainer: Callable[..., Trainer], dataset: DatasetSpec, linear: float
) -> None:
    top1 = top1_of_a_fit(make_trainer, dataset, "alexnet", width=0.25, size=64, epochs=6)
    print(f"alexnet, 6 epochs: {top1:.3f} against {linear:.3f}")
    assert top1 > linear


def top1_of_a_fit(  # noqa: PLR0917  # the three numbers of NETWORKS
    make_trainer: Callable[..., Trainer], dataset: DatasetSpec, network: str, width: float, size: int, epochs: int
) -> float:
    """Top-1 accuracy on the test images after ``epochs`` from scratch."""
    job = JobSpec.model_validate(
        {
            "dataset": dataset.model_dump(),
            "model": {"name": network, "width": width},
            "training": {
                "rounds": 1,
                "epochs_per_round": epochs,
                "batch_size": 32,
                "image_size": size,
                "loader_workers": 0,
                "optimizer": {"name": "adamw", "lr": 0.0005, "weight_decay": 0.01},
                "schedule": {"warmup_steps": 100},
                "augment": {"color": 0, "jitter": 0.1},
            },
            "checkpoint": {"every_minutes": None},
        }
    )
    trainer = make_trainer(job)
    assert trainer.fit()
    return present(trainer.run.rounds()[0].metrics["classification"]["top1"])
