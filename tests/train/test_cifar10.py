"""The published classifiers are more accurate on photographs than a linear model of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrowing import present
from real_data import real
from sklearn.linear_model import LogisticRegression

from mtl_cloud.datasets import open_splits
from mtl_cloud.datasets.base import Dataset
from mtl_cloud.jobspec.job import DatasetSpec, JobSpec
from mtl_cloud.train.trainer import Trainer

NETWORKS = {"vgg16": (0.25, 32), "alexnet": (0.5, 64)}
"""Width and image size."""


@pytest.fixture(scope="module")
def dataset(cifar_photographs: Path) -> DatasetSpec:
    """The losslessly stored images: 1,000 for training and 500 for validation, or 5,085 and 1,017 of CIFAR-10."""
    folder = cifar_photographs / "cifar-10-batches-py"
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


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("cifar_photographs", "network", "epochs"),
    [
        pytest.param("shipped", "vgg16", 7, marks=pytest.mark.slow),
        pytest.param("shipped", "alexnet", 7, marks=pytest.mark.slow),
        real("vgg16", 30, tier="exhaustive"),
        real("alexnet", 20, tier="exhaustive"),
    ],
    indirect=["cifar_photographs"],
)
def test_a_published_classifier_is_far_above_a_linear_one(
    make_trainer: Callable[..., Trainer], dataset: DatasetSpec, linear: float, network: str, epochs: int
) -> None:
    width, size = NETWORKS[network]
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
    top1 = present(trainer.run.rounds()[0].metrics["classification"]["top1"])
    print(f"{network}: {top1:.3f} against {linear:.3f}")
    assert top1 > linear + 0.15
