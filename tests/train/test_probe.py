"""The probe counts a job's parameters and bytes without running its network."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torchvision.models import vgg16_bn

from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.train.probe import main, probe


def job(**training: object) -> JobSpec:
    return JobSpec.model_validate(
        {"dataset": {"name": "embedded"}, "model": {"name": "vgg16"}, "training": {"image_size": 224, **training}}
    )


def test_parameters_and_states_are_those_of_the_network() -> None:
    found = probe(job())
    expected = sum(parameter.numel() for parameter in vgg16_bn(num_classes=10).parameters())
    assert found["parameters"] == pytest.approx(expected, rel=0.01)
    assert found["state_bytes"] == 12 * found["parameters"]
    assert probe(job(optimizer={"name": "adamw"}))["state_bytes"] == 16 * found["parameters"]


def test_activations_grow_with_the_images_area() -> None:
    small, large = (probe(job(image_size=side))["activation_bytes"] for side in (224, 448))
    assert large / small == pytest.approx(4, rel=0.05)


def test_a_job_that_cannot_run_is_reported_in_one_line_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar").mkdir()
    spec = JobSpec.model_validate({"dataset": {"name": "cifar10", "uri": str(tmp_path / "cifar")}})
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(job_to_json(spec))))
    with pytest.raises(DatasetError) as caught:
        probe(spec)
    assert caught.value.hint
    assert main() == DatasetError.exit_code
    assert capsys.readouterr().err == f"{caught.value} ({caught.value.hint})\n"
    assert DatasetError("only a message").with_hint == "only a message"
