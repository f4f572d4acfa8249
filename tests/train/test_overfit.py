"""All three tasks can overfit eight real images together: data, losses and metrics agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from narrowing import present

from mtl_cloud.datasets.wrappers import Selection
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.trainer import Trainer


def job(uri: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "dataset": {"name": "voc", "uri": str(uri)},
            "model": {"width": 0.125, "batch_norm_momentum": 0.1, "fusion": {"dropout": 0}},
            "training": {
                "rounds": 1,
                "epochs_per_round": 400,
                "batch_size": 8,
                "image_size": 224,
                "loader_workers": 0,
                "augment": {"flip": 0, "jitter": 0, "color": 0},
                "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0},
                "schedule": {"name": "cosine", "warmup_steps": 20},
            },
            "checkpoint": {"every_minutes": None},
        }
    )


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(1800)
def test_eight_voc_images_are_learnt_by_heart(
    real_data: Callable[[str], Path], make_trainer: Callable[..., Trainer]
) -> None:
    overfit = job(real_data("voc2012_subset") / "VOCdevkit")
    data = open_data(overfit)
    labelled = [i for i in range(len(data.train)) if len(data.train.labels(i)) == 3]
    eight = Selection(data.train, [labelled[i * len(labelled) // 8] for i in range(8)], data.train.info.tasks)
    trainer = make_trainer(overfit, data=JobData(eight, eight, data.classes))
    assert trainer.fit()
    (record,) = trainer.run.rounds()
    assert record.metrics["classification"]["top1"] == 1.0
    assert present(record.metrics["detection"]["map50_voc"]) > 0.95
    assert present(record.metrics["segmentation"]["miou"]) > 0.9
