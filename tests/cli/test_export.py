"""What ``mtl-cloud export`` writes is what other programs take, and they compute what the run's network computes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from trainer_harness import ALONE, open_attempt, small_job

from mtl_cloud import cli
from mtl_cloud.errors import MissingExtraError, RecordError, UsageError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import FolderStorage
from mtl_cloud.train.checkpoint.checkpointer import read_checkpoint
from mtl_cloud.train.export import export_run, find_checkpoint
from mtl_cloud.train.export.formats import FORMATS, TrainedNetwork
from mtl_cloud.train.nets.darknet_weights import load_weights, read_weights
from mtl_cloud.train.nets.yolo import YOLOv3

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def job(**model: Any) -> JobSpec:
    base = small_job(
        rounds=1, epochs_per_round=1, max_steps_per_epoch=2, batch_size=2, image_size=32, ema=0.9, deterministic=False
    ).model_dump()
    checkpoint = {"every_minutes": 1e-9, "keep": 9, "keep_best": {}}
    return JobSpec.model_validate(base | {"model": base["model"] | model, "checkpoint": checkpoint})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run of MTL-Net that has ended."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    trainer = open_attempt(job(), folder, storage=FolderStorage(folder), attempt=1, data=None, group=ALONE)
    assert trainer.fit()
    return trainer.run


@pytest.fixture(scope="module")
def network(run: RunRecord) -> nn.Module:
    """The run's averaged network, as the export of its ``state_dict`` has it."""
    from mtl_cloud.train.nets import build_network

    state = read_checkpoint(run, run.checkpoints()[-1]).state
    built = build_network(job().model, {task: tuple(names) for task, names in state["classes"].items()}).eval()
    built.load_state_dict(state["ema"]["network"])
    return built


def test_the_command_writes_what_it_says_and_says_what_it_wrote(run: RunRecord, tmp_path: Path) -> None:
    result = invoke("test", "--storage", run.storage.url, "-o", str(tmp_path / "out"), "--json")
    export = json.loads(result.stdout)
    assert export == json.loads((tmp_path / "out" / "export.json").read_text())
    assert (export["step"], export["weights"], export["model"]) == (2, "ema", "mtl_net")
    assert export["files"] == [f"{name}.safetensors" for name in (*export["classes"], "network")]
    expected = read_checkpoint(run, run.checkpoints()[-1]).state["ema"]["network"]
    whole = load_file(tmp_path / "out" / "network.safetensors")
    assert whole.keys() == expected.keys()
    assert all(torch.equal(whole[name], value) for name, value in expected.items())


def test_an_error_of_the_child_is_the_commands(run: RunRecord, tmp_path: Path) -> None:
    result = invoke("test", "--storage", run.storage.url, "--checkpoint", "77", "-o", str(tmp_path))
    assert isinstance(result.exception, Exception)
    assert str(result.exception) == "test has no checkpoint of step 77"
    assert getattr(result.exception, "exit_code", None) == UsageError.exit_code


def invoke(*arguments: str) -> Result:
    command = cli.app.get_command(None, "export")  # type: ignore[arg-type]
    assert command is not None
    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize(
    ("what", "missing", "extra"), [("state-dict", "torch", "train"), ("onnx", "onnxscript", "onnx")]
)
def test_without_an_extra_one_line_names_it(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch, what: str, missing: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("mtl_cloud.cli.commands.export.find_spec", lambda name: None if name == missing else find(name))
    error = invoke("test", "--storage", run.storage.url, "--what", what).exception
    assert isinstance(error, MissingExtraError)
    assert error.extra == extra


# --- which checkpoint ---


def test_a_checkpoint_is_named_by_its_step_or_as_last_or_best(run: RunRecord) -> None:
    steps = {which: find_checkpoint(run, which).manifest.step for which in ("1", "last", "best")}
    assert steps == {"1": 1, "last": 2, "best": 2}
    for which in ("newest", "-1"):
        with pytest.raises(UsageError, match="is not a checkpoint"):
            find_checkpoint(run, which)


def test_a_damaged_checkpoint_is_passed_over_for_last_and_refused_by_its_step(
    run: RunRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = RunRecord(FolderStorage(tmp_path), run.run_id)
    for entry in run.storage.list(run.paths.root + "/"):
        data = run.storage.read(entry.key)
        copy.storage.write(entry.key, data[:-1] if entry.key.startswith(run.paths.checkpoint(2, 1)) else data)
    assert find_checkpoint(copy, "last").manifest.step == 1
    assert "skipping the checkpoint of step 2 by attempt 1" in caplog.text
    with pytest.raises(RecordError):
        find_checkpoint(copy, "2")


# --- what others make of it ---


def full_width(name: str, classes: int) -> tuple[str, nn.Module]:
    """The task of a single network, and torchvision's own module for it."""
    if name == "fcn_resnet50":
        models = torchvision.models.segmentation
        return "segmentation", models.fcn_resnet50(
            num_classes=classes, aux_loss=True, weights=None, weights_backbone=None
        )
    other = "vgg16_bn" if name == "vgg16" else name
    return "classification", torchvision.models.get_model(other, weights=None, num_classes=classes)


@pytest.mark.parametrize("name", ["alexnet", pytest.param("vgg16", marks=pytest.mark.slow), "fcn_resnet50"])
def test_torchvisions_module_takes_the_state_dict_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    task, theirs = full_width(name, 5)
    names = tuple("abcde")
    ours = built({"name": name, "width": 1.0}, {task: names})
    (path,) = FORMATS["state-dict"](TrainedNetwork(ours, {task: names}, 64, 0), tmp_path)  # type: ignore[dict-item]
    theirs.load_state_dict(load_file(path), strict=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval()(normalize(images, list(MEAN), list(STD)))
        found = ours(images)[task]
    if name == "fcn_resnet50":
        assert torch.equal(found["out"], expected["out"])
    else:
        assert torch.equal(found, expected)


def built(model: dict[str, Any], classes: dict[str, tuple[str, ...]]) -> Any:
    from mtl_cloud.train.nets import build_network

    return build_network(job(**model).model, classes).eval()  # type: ignore[arg-type]


def test_darknet_weights_are_read_back_bit_for_bit(run: RunRecord, network: Any, tmp_path: Path) -> None:
    export_run(run, checkpoint="last", what="darknet", folder=tmp_path)
    header, _ = read_weights(tmp_path / "detection.weights")
    names = (tmp_path / "detection.names").read_text().split()
    yolo = YOLOv3(len(names), width=job().model.width)
    assert load_weights(tmp_path / "detection.weights", yolo) == ()
    expected = network.subnet("detection").state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in yolo.state_dict().items() if "num_batches" not in key
    )
    assert header.seen == 4


def test_a_network_without_a_detector_of_its_own_is_refused_by_darknet(tmp_path: Path) -> None:
    classes = {"classification": ("a",), "detection": ("a",), "segmentation": ("b", "a")}
    alone = built({"name": "alexnet"}, {"classification": ("a",)})
    with pytest.raises(UsageError, match="holds only YOLOv3, not this network"):
        FORMATS["darknet"](TrainedNetwork(alone, {"classification": ("a",)}, 64, 0), tmp_path)
    halved = TrainedNetwork(built({"sharing": {1: "hard"}}, classes), classes, 64, 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="are computed by the segmenter"):
        FORMATS["darknet"](halved, tmp_path)
    written = FORMATS["state-dict"](halved, tmp_path)
    assert [path.stem for path in written] == ["segmentation", "network"]


@pytest.fixture(scope="module")
def expected(network: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = network(IMAGES)
    strides = zip((32, 16, 8), outputs["detection"], strict=True)
    return {
        "classification": outputs["classification"],
        **{f"detection_stride_{stride}": output for stride, output in strides},
        "segmentation": outputs["segmentation"]["out"],
    }


def test_the_exported_program_computes_the_same_for_any_number_of_images(
    run: RunRecord, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    export_run(run, checkpoint="last", what="torch-export", folder=tmp_path)
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 3):
        outputs = program(IMAGES[:count])
        assert outputs.keys() == expected.keys()
        for name, output in outputs.items():
            torch.testing.assert_close(output, expected[name][:count], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_computes_the_same_in_another_runtime(run: RunRecord, expected: dict[str, Tensor], tmp_path: Path) -> None:
    import onnxruntime

    invoke("test", "--storage", run.storage.url, "--what", "onnx", "-o", str(tmp_path))
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected)
    for count in (1, 3):
        outputs = session.run(names, {"images": IMAGES[:count].numpy()})
        for name, output in zip(names, outputs, strict=True):
            np.testing.assert_allclose(output, expected[name][:count].numpy(), rtol=1e-3, atol=1e-4)
