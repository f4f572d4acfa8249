"""What a job takes is counted without computing it: parameters as the network has them, FLOPs as published."""

from __future__ import annotations

import pytest
from torchvision.models import vgg16_bn

from mtl_cloud.spec.job import JobSpec
from mtl_cloud.train.probe import probe


def job(**training: object) -> JobSpec:
    return JobSpec.model_validate(
        {"dataset": {"name": "embedded"}, "model": {"name": "vgg16"}, "training": {"image_size": 224, **training}}
    )


def test_vgg16s_work_is_the_published_one() -> None:
    """15.5 GFLOPs (multiply-adds) at 224 x 224: torchvision's table of its models."""
    found = probe(job())
    assert found["forward_flops"] / 2 == pytest.approx(15.5e9, rel=0.03)


def test_parameters_and_states_are_those_of_the_network() -> None:
    found = probe(job())
    expected = sum(parameter.numel() for parameter in vgg16_bn(num_classes=10).parameters())
    assert found["parameters"] == pytest.approx(expected, rel=0.01)
    assert found["state_bytes"] == 12 * found["parameters"]
    assert probe(job(optimizer={"name": "adamw"}))["state_bytes"] == 16 * found["parameters"]


def test_activations_grow_with_the_images_area() -> None:
    small, large = (probe(job(image_size=side))["activation_bytes"] for side in (224, 448))
    assert large / small == pytest.approx(4, rel=0.05)
