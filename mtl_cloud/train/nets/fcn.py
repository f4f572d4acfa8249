"""FCN-ResNet50: a fully convolutional segmenter on a dilated ResNet-50, with an auxiliary head.

It is built from torchvision's blocks. At width 1 its layers and ``state_dict`` keys are torchvision's, whose weights
it can load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.models.segmentation.fcn import FCNHead

from mtl_cloud.train.nets.staged import Normalize, Stage, StagedNetwork, scale_channels

__all__ = ["FCNResNet50"]


class FCNResNet50(StagedNetwork):
    """The stages are the stem and ResNet's four layers, the last two dilated, not strided: strides 2, 4, 8, 8, 8."""

    taps: ClassVar[tuple[int, ...]] = (4, 5)
    head_prefixes: ClassVar[tuple[str, ...]] = ("classifier.", "aux_classifier.")

    def __init__(self, classes: int, *, width: float = 1.0, aux: bool = True) -> None:
        super().__init__()
        self.backbone = _DilatedResNet50(width)
        c1, c2, c3, c4, c5 = self.backbone.channels
        self.classifier = FCNHead(c5, classes)
        self.aux_classifier = FCNHead(c4, classes) if aux else None
        self.normalize = Normalize(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1)
        self.stages = (
            Stage(("backbone.conv1", "backbone.bn1", "backbone.relu"), c1, 2),
            Stage(("backbone.maxpool", "backbone.layer1"), c2, 4),
            Stage(("backbone.layer2",), c3, 8),
            Stage(("backbone.layer3",), c4, 8),
            Stage(("backbone.layer4",), c5, 8),
        )

    def prepare(self, images: Tensor) -> Tensor:
        return self.normalize(images)  # type: ignore[no-any-return]  # nn.Module's __call__ is untyped

    def head(self, features: Mapping[int, Tensor], image_size: int) -> dict[str, Tensor]:
        """Logits [B, classes, S, S]: ``out``, and in training ``aux``."""
        logits = {"out": self.classifier(features[5])}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features[4])
        return {name: _enlarge(x, image_size) for name, x in logits.items()}


def _enlarge(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)


class _DilatedResNet50(nn.Module):
    """The encoder's modules under torchvision's names; ``StagedNetwork`` runs them."""

    def __init__(self, width: float) -> None:
        super().__init__()
        stem, *planes = (scale_channels(c, width) for c in (64, 64, 128, 256, 512))
        self.channels = (stem, *(p * Bottleneck.expansion for p in planes))
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(stem, planes[0], blocks=3)
        self.layer2 = _layer(self.channels[1], planes[1], blocks=4, stride=2)
        self.layer3 = _layer(self.channels[2], planes[2], blocks=6, dilations=(1, 2))
        self.layer4 = _layer(self.channels[3], planes[3], blocks=3, dilations=(2, 4))
        self.apply(_initialize)


def _layer(
    channels: int, planes: int, *, blocks: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)
) -> nn.Sequential:
    """``blocks`` bottlenecks. The first changes the channels and has the first dilation; the rest have the second."""
    out = planes * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(channels, planes, stride, shortcut, dilation=dilations[0])
    rest = (Bottleneck(out, planes, dilation=dilations[1]) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
