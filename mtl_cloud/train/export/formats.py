"""The formats: ``state_dict``s as safetensors, darknet's ``.weights``, a ``torch.export`` program, ONNX."""

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

__all__ = ["FORMATS", "Served", "Trained"]

_ONE_FILE_BYTES = 2**31 - 2**24
"""An ONNX file is one protobuf message, which may not be larger than 2 GiB."""


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, and what a file of its weights should say."""

    network: Network
    classes: Mapping[Task, tuple[str, ...]]
    image_size: int
    images_seen: int

    def is_whole(self, task: Task) -> bool:
        """Has its sub-network all of its layers, or does the trunk compute the first ones for it?"""
        return not self.network.hard_stages or task == self.network.trunk

    def notes(self, what: str) -> list[str]:
        """What one has to know to use the files of this format."""
        size = self.image_size
        notes = [f"input: RGB, 0..1, [batch, 3, {size}, {size}]; normalisation is part of the network"]
        if what == "state-dict":
            notes = ["in torchvision's modules, images must be normalised as for torchvision's weights"]
        if what in {"state-dict", "darknet"} and (self.network.kinds or self.network.fusion is not None):
            notes.append(
                "the tasks share features or joint layers here: a sub-network alone gives other outputs than the whole"
            )
        if what == "state-dict":
            halves = [task for task in self.network.tasks if not self.is_whole(task)]
            notes += [
                f"{task}: its first stages are those of {self.network.trunk}: no file of its own" for task in halves
            ]
        return notes


def write_state_dicts(trained: Trained, folder: Path) -> list[Path]:
    """``<task>.safetensors`` of each whole sub-network, with torchvision's keys for VGG16, AlexNet and FCN-ResNet50;
    of several, ``network.safetensors`` with all that the joint network has.
    """
    network = trained.network
    parts: dict[str, nn.Module] = {task: network.subnet(task) for task in network.tasks if trained.is_whole(task)}
    if len(network.tasks) > 1:
        parts["network"] = network
    return [_save(part, folder / f"{name}.safetensors", trained) for name, part in parts.items()]


def _save(part: nn.Module, path: Path, trained: Trained) -> Path:
    classes = json.dumps({task: list(names) for task, names in trained.classes.items()})
    state = {name: tensor.contiguous() for name, tensor in part.state_dict().items()}
    path.write_bytes(save(state, metadata={"format": "pt", "classes": classes}))
    return path


def write_darknet(trained: Trained, folder: Path) -> list[Path]:
    """``detection.weights``, and the names of its classes, one a line, in ``detection.names``."""
    yolo = trained.network.subnet("detection") if "detection" in trained.network.tasks else None
    if not isinstance(yolo, YOLOv3):
        raise UsageError("darknet's format holds YOLOv3, which this network is not", hint="--what state-dict")
    if not trained.is_whole("detection"):
        raise UsageError(
            "the detector's first stages are those of the segmenter, which darknet's format cannot hold",
            hint="--what state-dict, torch-export or onnx",
        )
    weights, names = folder / "detection.weights", folder / "detection.names"
    save_weights(weights, yolo, seen=trained.images_seen)
    names.write_text("".join(f"{name}\n" for name in trained.classes["detection"]), encoding="utf-8")
    return [weights, names]


class Served(nn.Module):
    """The network with named tensors as outputs: ``classification`` [B, classes] and ``segmentation``
    [B, classes, S, S] logits, and YOLOv3's raw ``detection_stride_32``, ``_16`` and ``_8``.
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


def write_program(trained: Trained, folder: Path) -> list[Path]:
    """``network.pt2``, for ``torch.export.load``: any number of images, at the job's size."""
    path = folder / "network.pt2"
    torch.export.save(_program(trained), path)
    return [path]


def write_onnx(trained: Trained, folder: Path) -> list[Path]:
    """``network.onnx``; over 2 GiB the weights lie beside it in ``network.onnx.data``."""
    path = folder / "network.onnx"
    size = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
    program, names = _program(trained), list(Served(trained.network)(_images(trained)))
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


def _program(trained: Trained) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            Served(trained.network), (_images(trained),), dynamic_shapes={"images": {0: batch}}, strict=False
        )


def _images(trained: Trained) -> Tensor:
    # Two, because a size of one is taken for a constant.
    return torch.zeros(2, 3, trained.image_size, trained.image_size)


FORMATS: dict[str, Callable[[Trained, Path], list[Path]]] = {
    "state-dict": write_state_dicts,
    "darknet": write_darknet,
    "torch-export": write_program,
    "onnx": write_onnx,
}
"""The name of a format -> what writes it and returns the files."""
