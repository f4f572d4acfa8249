"""The export formats: safetensors ``state_dict``, darknet's ``.weights``, a ``torch.export`` program, ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mtl_cloud.errors import UsageError
from mtl_cloud.tasks import Task
from mtl_cloud.train.nets import Network
from mtl_cloud.train.nets.darknet_weights import save_weights
from mtl_cloud.train.nets.yolo import YOLOv3

__all__ = ["FORMATS", "NamedOutputs", "TrainedNetwork"]

_ONE_FILE_BYTES = 2**31 - 2**24
"""Limit of weights in one ONNX file: a protobuf message may not exceed 2 GiB."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode, with the metadata for its files."""

    network: Network
    classes: Mapping[Task, tuple[str, ...]]
    image_size: int
    images_seen: int

    def has_all_stages(self, task: Task) -> bool:
        """Whether the task's sub-network has all its stages. If not, the trunk computes the first ones for it."""
        return not self.network.hard_stages or task == self.network.trunk

    def notes(self, what: str) -> list[str]:
        """Instructions for using the files of this format."""
        size = self.image_size
        notes = [f"input: RGB, 0..1, [batch, 3, {size}, {size}]; normalisation is part of the network"]
        if what == "state-dict":
            notes = ["with torchvision's modules, normalise images as for torchvision's weights"]
        if what in {"state-dict", "darknet"} and (self.network.kinds or self.network.fusion is not None):
            notes.append(
                "the tasks share features or fusion layers: a sub-network alone gives other outputs than the whole"
            )
        if what == "state-dict":
            incomplete = [task for task in self.network.tasks if not self.has_all_stages(task)]
            notes += [
                f"{task}: no file, because its first stages are those of {self.network.trunk}" for task in incomplete
            ]
        return notes


def write_state_dicts(trained: TrainedNetwork, folder: Path) -> list[Path]:
    """Write ``<task>.safetensors`` for each complete sub-network, and ``network.safetensors`` for a joint network.

    Sub-networks have torchvision's keys for VGG16, AlexNet and FCN-ResNet50. The joint file holds all parameters.
    """
    network = trained.network
    parts: dict[str, nn.Module] = {task: network.subnet(task) for task in network.tasks if trained.has_all_stages(task)}
    if len(network.tasks) > 1:
        parts["network"] = network
    return [_save(part, folder / f"{name}.safetensors", trained) for name, part in parts.items()]


def _save(part: nn.Module, path: Path, trained: TrainedNetwork) -> Path:
    classes = json.dumps({task: list(names) for task, names in trained.classes.items()})
    state = {name: tensor.contiguous() for name, tensor in part.state_dict().items()}
    path.write_bytes(save(state, metadata={"format": "pt", "classes": classes}))
    return path


def write_darknet(trained: TrainedNetwork, folder: Path) -> list[Path]:
    """Write ``detection.weights``, and its class names, one per line, to ``detection.names``."""
    yolo = trained.network.subnet("detection") if "detection" in trained.network.tasks else None
    if not isinstance(yolo, YOLOv3):
        raise UsageError("darknet's format holds only YOLOv3, not this network", hint="--what state-dict")
    if not trained.has_all_stages("detection"):
        raise UsageError(
            "the detector's first stages are computed by the segmenter, which darknet's format cannot hold",
            hint="--what state-dict, torch-export or onnx",
        )
    weights, names = folder / "detection.weights", folder / "detection.names"
    save_weights(weights, yolo, seen=trained.images_seen)
    names.write_text("".join(f"{name}\n" for name in trained.classes["detection"]), encoding="utf-8")
    return [weights, names]


class NamedOutputs(nn.Module):
    """Wraps the network to return named tensors.

    They are the logits ``classification`` [B, classes] and ``segmentation`` [B, classes, S, S], and YOLOv3's raw
    ``detection_stride_32``, ``_16`` and ``_8``.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Any] = self.network(images)
        named: dict[str, Tensor] = {}
        for task, output in outputs.items():
            if task == "detection":
                named |= {f"detection_stride_{stride}": x for stride, x in zip((32, 16, 8), output, strict=True)}
            else:
                named[task] = output["out"] if task == "segmentation" else output
        return named


def write_program(trained: TrainedNetwork, folder: Path) -> list[Path]:
    """Write ``network.pt2`` for ``torch.export.load``. It takes any number of images of the job's size."""
    path = folder / "network.pt2"
    torch.export.save(_program(trained), path)
    return [path]


def write_onnx(trained: TrainedNetwork, folder: Path) -> list[Path]:
    """Write ``network.onnx``; weights over 2 GiB go to ``network.onnx.data`` beside it."""
    path = folder / "network.onnx"
    size = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
    program, names = _program(trained), list(NamedOutputs(trained.network)(_images(trained)))
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=names,
        external_data=size > _ONE_FILE_BYTES,
    )
    return [path, *folder.glob("network.onnx.data")]


def _program(trained: TrainedNetwork) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            NamedOutputs(trained.network), (_images(trained),), dynamic_shapes={"images": {0: batch}}, strict=False
        )


def _images(trained: TrainedNetwork) -> Tensor:
    # Two images, because torch.export treats a size of one as constant.
    return torch.zeros(2, 3, trained.image_size, trained.image_size)


FORMATS: dict[str, Callable[[TrainedNetwork, Path], list[Path]]] = {
    "state-dict": write_state_dicts,
    "darknet": write_darknet,
    "torch-export": write_program,
    "onnx": write_onnx,
}
"""Maps a format's name to the function that writes it and returns the files."""
