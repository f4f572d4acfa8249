"""The peer of ``joint_step.py``: three networks, each with its own optimizer, in plain PyTorch and torchvision.

It follows the tutorials of these libraries: torchvision's vgg16_bn and fcn_resnet50 unchanged, a YOLOv3 of ordinary
modules, and its loss scale by scale with a loop over images and boolean masks. It does not use mtl_cloud.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16_bn
from torchvision.models.segmentation import fcn_resnet50
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import normalize

ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
SCALES = ((32, (6, 7, 8)), (16, (3, 4, 5)), (8, (0, 1, 2)))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class PlainBatch:
    """Images with the labels of all three tasks, on one device."""

    images: Tensor
    """[B, 3, S, S] uint8."""
    labels: Tensor
    """[B] int64."""
    boxes: list[Tensor]
    """One tensor per image: [n, 4] left, top, right, bottom, pixels."""
    box_classes: list[Tensor]
    """One tensor per image: [n] int64."""
    masks: Tensor
    """[B, S, S] int64, 255 where unknown."""

    def to(self, device: torch.device) -> PlainBatch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return PlainBatch(
            move(self.images),
            move(self.labels),
            [move(boxes) for boxes in self.boxes],
            [move(classes) for classes in self.box_classes],
            move(self.masks),
        )


@dataclass
class PlainTraining:
    """One network, its loss and its optimizer."""

    network: nn.Module
    loss: Callable[[Any, PlainBatch], Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    memory_format: torch.memory_format
    normalized: bool
    """Whether the images are normalised with ImageNet's mean and standard deviation."""

    def step(self, host_batch: PlainBatch) -> None:
        batch = host_batch.to(self.device)
        images = batch.images.float() / 255
        if self.normalized:
            images = normalize(images, MEAN, STD)
        images = images.contiguous(memory_format=self.memory_format)
        self.optimizer.zero_grad()
        with self.autocast():
            output = self.network(images)
            loss = self.loss(output, batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


NETWORKS = ("vgg16_bn", "yolov3", "fcn_resnet50")


def build(
    name: str,
    classes: int,
    device: torch.device,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    autocast: Callable[[], AbstractContextManager[Any]],
    scaled: bool,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> PlainTraining:
    """``name``: one of ``NETWORKS``. ``classes``: number of object classes; the segmenter also has background."""
    network, loss = _network(name, classes)
    network = network.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]  # stubs lack it
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    return PlainTraining(network, loss, optimizer, scaler, autocast, device, memory_format, normalized=name != "yolov3")


def _network(name: str, classes: int) -> tuple[nn.Module, Callable[[Any, PlainBatch], Tensor]]:
    match name:
        case "vgg16_bn":
            return vgg16_bn(num_classes=classes), lambda logits, batch: F.cross_entropy(logits, batch.labels)
        case "yolov3":
            return YOLOv3(classes), yolo_loss
        case _:
            network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes + 1, aux_loss=True)
            return network, _segmentation_loss


def _segmentation_loss(outputs: dict[str, Tensor], batch: PlainBatch) -> Tensor:
    out, aux = (F.cross_entropy(outputs[name], batch.masks, ignore_index=255) for name in ("out", "aux"))
    return out + 0.5 * aux


# --- YOLOv3 ----------------------------------------------------------------------------------------------------------


def conv(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, size, stride, size // 2, bias=False), nn.BatchNorm2d(filters), nn.LeakyReLU(0.1)
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels // 2, 1), conv(channels // 2, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]  # nn.Module's __call__ is untyped


def stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(conv(channels // 2, channels, 3, 2), *(Residual(channels) for _ in range(blocks)))


def neck(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        conv(channels, filters, 1),
        conv(filters, 2 * filters, 3),
        conv(2 * filters, filters, 1),
        conv(filters, 2 * filters, 3),
        conv(2 * filters, filters, 1),
    )


def head(filters: int, classes: int) -> nn.Sequential:
    return nn.Sequential(conv(filters, 2 * filters, 3), nn.Conv2d(2 * filters, 3 * (5 + classes), 1))


class YOLOv3(nn.Module):
    """Darknet-53 and three heads; outputs [B, 3, rows, columns, 5 + classes] for strides 32, 16, 8."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.to_stride_8 = nn.Sequential(conv(3, 32, 3), stage(64, 1), stage(128, 2), stage(256, 8))
        self.to_stride_16, self.to_stride_32 = stage(512, 8), stage(1024, 4)
        self.necks = nn.ModuleList([neck(1024, 512), neck(768, 256), neck(384, 128)])
        self.heads = nn.ModuleList([head(filters, classes) for filters in (512, 256, 128)])
        self.laterals = nn.ModuleList(
            [nn.Sequential(conv(2 * f, f, 1), nn.Upsample(scale_factor=2)) for f in (256, 128)]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.to_stride_8(images)
        middle = self.to_stride_16(fine)
        features = [self.necks[0](self.to_stride_32(middle))]
        for module, lateral, encoded in zip(self.necks[1:], self.laterals, (middle, fine), strict=True):
            features.append(module(torch.cat([lateral(features[-1]), encoded], dim=1)))
        return [self._shaped(module(x)) for module, x in zip(self.heads, features, strict=True)]

    def _shaped(self, x: Tensor) -> Tensor:
        batch, _, rows, columns = x.shape
        return x.view(batch, 3, 5 + self.classes, rows, columns).permute(0, 1, 3, 4, 2)


def yolo_loss(outputs: Sequence[Tensor], batch: PlainBatch) -> Tensor:
    """Darknet's loss: cross-entropy for place, objectness and classes, squared error for log sizes; sum over batch."""
    total = torch.zeros((), device=batch.images.device)
    for output, (stride, mask) in zip(outputs, SCALES, strict=True):
        logits = output.float()
        for image in range(len(logits)):
            total = total + _image_loss(logits[image], stride, mask, batch.boxes[image], batch.box_classes[image])
    return total / len(batch.images)


def _image_loss(logits: Tensor, stride: int, mask: Sequence[int], boxes: Tensor, classes: Tensor) -> Tensor:
    """``logits`` [3, rows, columns, 5 + classes]; ``mask``: the scale's anchors."""
    anchors = torch.tensor(ANCHORS, dtype=torch.float32, device=logits.device)
    own = anchors[list(mask)].view(3, 1, 1, 2)
    size = logits.shape[1] * stride
    background = torch.ones(logits.shape[:3], dtype=torch.bool, device=logits.device)
    if not len(boxes):
        return _objectness(logits[..., 4], torch.zeros_like(background), background)
    with torch.no_grad():
        background &= box_iou(_decoded(logits, own, stride).view(-1, 4), boxes).amax(1).view(background.shape) <= 0.5
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    best = _shape_iou(sides, anchors).argmax(1)
    here = (best >= mask[0]) & (best <= mask[-1])
    sides, centres, best, classes = sides[here], centres[here], best[here], classes[here]
    column, row = (centres / stride).long().unbind(1)
    place = best - mask[0], row, column
    taught = logits[place]
    positive = torch.zeros_like(background)
    positive[place] = True
    scale = (2 - sides.prod(1) / size**2)[:, None]
    offset = centres / stride - torch.stack([column, row], 1)
    xy = F.binary_cross_entropy_with_logits(taught[:, :2], offset, weight=scale.expand(-1, 2), reduction="sum")
    wh = (scale * (taught[:, 2:4] - (sides / anchors[best]).log()) ** 2).sum() / 2
    wanted = F.one_hot(classes, logits.shape[-1] - 5).float()
    named = F.binary_cross_entropy_with_logits(taught[:, 5:], wanted, reduction="sum")
    return xy + wh + named + _objectness(logits[..., 4], positive, background & ~positive)


def _objectness(logits: Tensor, positive: Tensor, background: Tensor) -> Tensor:
    counted = positive | background
    return F.binary_cross_entropy_with_logits(logits[counted], positive[counted].float(), reduction="sum")


def _decoded(logits: Tensor, anchors: Tensor, stride: int) -> Tensor:
    rows, columns = logits.shape[1:3]
    y, x = torch.meshgrid(
        torch.arange(rows, device=logits.device), torch.arange(columns, device=logits.device), indexing="ij"
    )
    centre = (torch.stack([x, y], -1) + logits[..., :2].sigmoid()) * stride
    half = logits[..., 2:4].exp() * anchors / 2
    return torch.cat([centre - half, centre + half], -1)


def _shape_iou(sides: Tensor, anchors: Tensor) -> Tensor:
    shared = torch.minimum(sides[:, None], anchors).prod(2)
    return shared / (sides.prod(1)[:, None] + anchors.prod(1) - shared)
