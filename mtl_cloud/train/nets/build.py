"""Builds a job's network from its model spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import ModelSpec
from mtl_cloud.tasks import NETWORK_TASKS, TASKS, Task
from mtl_cloud.train.nets.classifiers import VGG16, AlexNet, MTLLite
from mtl_cloud.train.nets.fcn import FCNResNet50
from mtl_cloud.train.nets.fusion import JointFusion
from mtl_cloud.train.nets.network import Network
from mtl_cloud.train.nets.pretrained import load_pretrained
from mtl_cloud.train.nets.staged import StagedNetwork
from mtl_cloud.train.nets.yolo import YOLOv3

__all__ = ["build_network", "decay_groups"]

SUBNETS_OF_MTL_NET: dict[Task, str] = {
    "classification": "vgg16",
    "detection": "yolov3",
    "segmentation": "fcn_resnet50",
}


def build_network(spec: ModelSpec, classes: Mapping[Task, tuple[str, ...]]) -> Network:
    """Build the network in training mode, with random weights or those of ``spec.pretrained``.

    ``classes`` names the classes of each task that the network outputs (segmentation's include background). Only the
    sub-networks of these tasks are built. The initial weights of a sub-network depend only on torch's seed and on its
    task, so a joint job starts from the weights of single-task jobs with the same seed. Global random state does not
    change.

    Raises
    ------
    TrainingError
        The network has no output for a task, ``sharing`` is invalid, or ``load_pretrained`` fails.
    """
    _check_tasks(spec.name, classes)
    subnets = {task: _build_subnet(spec, task, len(classes[task])) for task in TASKS if task in classes}
    for task, subnet in subnets.items():
        if (uri := getattr(spec.pretrained, task)) is not None:
            load_pretrained(subnet, uri)
    with _own_seed(len(TASKS)):
        network = Network(subnets, dict(spec.sharing), _build_fusion(spec, subnets, classes))
    if spec.batch_norm_momentum is not None:
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = spec.batch_norm_momentum
    return network


def _check_tasks(name: str, classes: Mapping[Task, tuple[str, ...]]) -> None:
    able = NETWORK_TASKS[name]
    unable = [task for task in classes if task not in able]
    if unable or not classes:
        raise TrainingError(
            f"model.name: {name} cannot learn {', '.join(unable) or 'nothing at all'}; it learns {', '.join(able)}",
            hint="choose another network, or name the tasks in model.tasks",
        )


def _build_subnet(spec: ModelSpec, task: Task, classes: int) -> StagedNetwork:
    name = SUBNETS_OF_MTL_NET[task] if spec.name == "mtl_net" else spec.name
    with _own_seed(TASKS.index(task)):
        match name:
            case "vgg16":
                return VGG16(classes, width=spec.width, batch_norm=spec.batch_norm)
            case "alexnet":
                return AlexNet(classes, width=spec.width)
            case "mtl_lite":
                return MTLLite(classes, width=spec.width)
            case "yolov3":
                return YOLOv3(classes, width=spec.width)
            case _:
                return FCNResNet50(classes, width=spec.width)


def _build_fusion(
    spec: ModelSpec, subnets: Mapping[Task, StagedNetwork], classes: Mapping[Task, tuple[str, ...]]
) -> JointFusion | None:
    if not spec.fusion.enabled or "classification" not in subnets or len(subnets) == 1:
        return None
    channels = [subnet.stages[-1].channels for subnet in subnets.values()]
    summaries = [len(classes[task]) for task in subnets if task != "classification"]
    return JointFusion(channels, summaries, len(classes["classification"]), spec.fusion)


@contextmanager
def _own_seed(part: int) -> Iterator[None]:
    """Seed the CPU generator for one part of the network, derived from torch's seed; restore its state at exit."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((torch.initial_seed() + part) % 2**63)
        yield


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters into (weights of convolutions and linear layers, all others). Only the first are to decay.

    The others are biases, normalisation, gates and cross-stitch coefficients. Decay would pull these towards a value
    with a meaning: a gate logit of 0 is a half-open gate.
    """
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    parameters = list(module.parameters())
    return [p for p in parameters if id(p) in decayed], [p for p in parameters if id(p) not in decayed]
