"""All three tasks can overfit a few photographs together: data, losses and metrics agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from narrowing import present
from real_data import real

from mtl_cloud.datasets.wrappers import Selection
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.trainer import Trainer


def job(uri: Path, *, images: int, size: int, epochs: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "dataset": {"name": "voc", "uri": str(uri)},
            "model": {"width": 0.125, "batch_norm_momentum": 0.1, "fusion": {"dropout": 0}},
            "training": {
                "rounds": 1,
                "epochs_per_round": epochs,
                "batch_size": images,
                "image_size": size,
                "loader_workers": 0,
                "augment": {"flip": 0, "jitter": 0, "color": 0},
                "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0},
                "schedule": {"name": "cosine", "warmup_steps": 20},
            },
            "checkpoint": {"every_minutes": None},
        }
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("voc_photographs", "images", "size", "epochs"),
    [
        pytest.param("shipped", 4, 128, 200, marks=pytest.mark.slow),
        pytest.param("shipped", 8, 160, 400, marks=pytest.mark.exhaustive),
        real(8, 224, 400, tier="exhaustive"),
    ],
    indirect=["voc_photographs"],
)
def test_some_voc_images_are_learnt_by_heart(
    voc_photographs: Path, make_trainer: Callable[..., Trainer], images: int, size: int, epochs: int
) -> None:
    overfit = job(voc_photographs / "VOCdevkit", images=images, size=size, epochs=epochs)
    data = open_data(overfit)
    labelled = [i for i in range(len(data.train)) if len(data.train.labels(i)) == 3]
    few = Selection(data.train, [labelled[i * len(labelled) // images] for i in range(images)], data.train.info.tasks)
    trainer = make_trainer(overfit, data=JobData(few, few, data.classes))
    assert trainer.fit()
    (record,) = trainer.run.rounds()
    assert record.metrics["classification"]["top1"] == 1.0
    assert present(record.metrics["detection"]["map50_voc"]) > 0.95
    assert present(record.metrics["segmentation"]["miou"]) > 0.9
