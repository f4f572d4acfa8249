"""Loading published weights: every format, heads with other class counts, and files that do not match."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import ModelSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.nets import Network, build_network
from mtl_cloud.train.nets.classifiers import VGG16, MTLLite
from mtl_cloud.train.nets.darknet_weights import save_weights
from mtl_cloud.train.nets.fcn import FCNResNet50
from mtl_cloud.train.nets.pretrained import load_pretrained
from mtl_cloud.train.nets.staged import StagedNetwork
from mtl_cloud.train.nets.yolo import YOLOv3

WIDTH = 0.0625
NETWORKS: dict[str, Callable[[int], StagedNetwork]] = {
    "vgg16": lambda classes: VGG16(classes, width=WIDTH),
    "mtl_lite": lambda classes: MTLLite(classes, width=WIDTH),
    "fcn_resnet50": lambda classes: FCNResNet50(classes, width=WIDTH),
    "yolov3": lambda classes: YOLOv3(classes, width=WIDTH),
}


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def saved(network: StagedNetwork, path: Path) -> dict[str, Tensor]:
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_the_same_network_fills_it(
    name: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(NETWORKS[name](3), tmp_path / f"weights{suffix}")
    network = NETWORKS[name](3)
    load_pretrained(network, str(tmp_path / f"weights{suffix}"))
    assert all(same(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert caplog.records == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_of_other_classes_starts_anew_and_the_log_names_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(NETWORKS[name](7), tmp_path / "weights.pth")
    network = NETWORKS[name](3)
    load_pretrained(network, str(tmp_path / "weights.pth"))
    fresh = [key for key, tensor in network.state_dict().items() if not same(tensor, state[key])]
    assert fresh
    assert all(state[key].shape != network.state_dict()[key].shape for key in fresh)
    (record,) = caplog.records
    assert (record.levelno, record.args) == (logging.WARNING, (tmp_path / "weights.pth", ", ".join(fresh)))


def test_a_bare_resnet_50_fills_the_segmenters_backbone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    network = FCNResNet50(4)
    load_pretrained(network, str(tmp_path / "resnet50.pth"))
    backbone = network.backbone.state_dict()
    assert len(backbone) == len(state) - 2
    assert all(same(tensor, state[key]) for key, tensor in backbone.items())
    assert "classifier.0.weight" in caplog.text


def test_files_of_old_torch_do_not_count_batches(tmp_path: Path) -> None:
    network = NETWORKS["vgg16"](3)
    state = {key: t for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "old.pth")
    load_pretrained(NETWORKS["vgg16"](3), str(tmp_path / "old.pth"))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (VGG16(3, width=WIDTH, batch_norm=False), "no `features.1.weight` in the file"),
        (VGG16(3, width=0.25), r"`features.0.weight` is \[16, 3, 3, 3\] in the file and \[8, 3, 3, 3\] in this VGG16"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(theirs: StagedNetwork, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    saved(theirs, path)
    with pytest.raises(TrainingError, match=message) as caught:
        load_pretrained(NETWORKS["vgg16"](3), str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "broken.weights", "absent.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, just words"])
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=name):
        load_pretrained(NETWORKS["yolov3"](3), str(tmp_path / name))


@pytest.mark.parametrize("content", [{"features.0.weight": Path("code")}, torch.zeros(3)])
def test_a_file_that_would_run_code_or_holds_no_state_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(TrainingError, match=r"odd\.pth"):
        load_pretrained(NETWORKS["vgg16"](3), str(tmp_path / "odd.pth"))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL that serves it; torch hub's folder is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once_and_kept_in_torch_hubs_folder(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    state = saved(NETWORKS["vgg16"](3), folder / "plain.pth")
    checksum = sha256((folder / "plain.pth").read_bytes()).hexdigest()[:8]
    (folder / "plain.pth").rename(folder / f"vgg16-{checksum}.pth")
    for _ in range(2):
        network = NETWORKS["vgg16"](3)
        load_pretrained(network, f"{url}/vgg16-{checksum}.pth")
        assert same(network.state_dict()["features.0.weight"], state["features.0.weight"])
        (folder / f"vgg16-{checksum}.pth").unlink(missing_ok=True)
    assert (tmp_path / "home" / "hub" / "checkpoints" / f"vgg16-{checksum}.pth").exists()


@pytest.mark.parametrize(("name", "reason"), [("vgg16-00000000.pth", "hash"), ("absent.pth", "404")])
def test_a_url_that_fails_is_named_with_the_reason(web: tuple[Path, str], name: str, reason: str) -> None:
    """A checksum in the name must match the content."""
    folder, url = web
    saved(NETWORKS["vgg16"](3), folder / "vgg16-00000000.pth")
    with pytest.raises(TrainingError, match=f"{url}/{name} cannot be fetched: .*{reason}"):
        load_pretrained(NETWORKS["vgg16"](3), f"{url}/{name}")


def test_any_other_url_is_fsspecs(tmp_path: Path) -> None:
    state = saved(NETWORKS["vgg16"](3), tmp_path / "vgg16.pth")
    network = NETWORKS["vgg16"](3)
    load_pretrained(network, f"file://{tmp_path}/vgg16.pth")
    assert same(network.state_dict()["features.0.weight"], state["features.0.weight"])


def test_a_joint_network_starts_from_all_three(tmp_path: Path) -> None:
    """This includes hard sharing, where a sub-network uses only part of the file."""
    sources = {task: NETWORKS[name](3) for task, name in JOINT.items()}
    save_weights(tmp_path / "detection.weights", sources["detection"])  # type: ignore[arg-type]  # it is YOLOv3
    for task in ("classification", "segmentation"):
        saved(sources[task], tmp_path / f"{task}.pth")
    paths = {p.stem: str(p) for p in tmp_path.iterdir()}
    network = joint({"pretrained": paths, "sharing": {1: "hard"}})
    for task, source in sources.items():
        own = network.subnet(task).state_dict()
        state = source.state_dict()
        assert all(same(tensor, state[key]) for key, tensor in own.items())


JOINT: dict[Task, str] = {"classification": "vgg16", "detection": "yolov3", "segmentation": "fcn_resnet50"}


def joint(fields: dict[str, object]) -> Network:
    spec = ModelSpec.model_validate({"width": WIDTH, **fields})
    return build_network(spec, dict.fromkeys(JOINT, ("a", "b", "c")))
