"""The classifiers: VGG16 with or without batch normalisation, AlexNet, and MTLLite on AlexNet's features.

At width 1, layers, ``state_dict`` keys and initialisation of VGG16 and AlexNet are torchvision's, whose weights load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import AlexNet_Weights, VGG16_BN_Weights, VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from mtl_cloud.train.nets.staged import Normalize, Stage, StagedNetwork, scale_channels

__all__ = ["VGG16", "AlexNet", "MTLLite"]


class AdaptiveAveragePool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling to ``size`` x ``size`` cells which, unlike torch's, can be deterministic on a GPU."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        rows, columns = (_pooling_matrix(length, self.size).to(x) for length in x.shape[-2:])
        return rows @ x @ columns.T


def _pooling_matrix(length: int, cells: int) -> Tensor:
    """[cells, length] matrix: row i averages elements floor(i * length / cells) .. ceil((i + 1) * length / cells)."""
    cell = torch.arange(cells).unsqueeze(1)
    element = torch.arange(length)
    inside = (element >= cell * length // cells) & (element * cells < (cell + 1) * length)
    return inside / inside.sum(dim=1, keepdim=True)


class _Classifier(StagedNetwork):
    features: nn.Sequential
    avgpool: AdaptiveAveragePool
    classifier: nn.Sequential
    normalize: Normalize
    head_prefixes: ClassVar[tuple[str, ...]] = ("classifier.6.",)

    def prepare(self, images: Tensor) -> Tensor:
        return self.normalize(images)  # type: ignore[no-any-return]  # nn.Module's __call__ is untyped

    def head(self, features: Mapping[int, Tensor], image_size: int) -> Tensor:  # noqa: ARG002 (of the interface)
        """Logits [B, classes]."""
        return self.classifier(self.avgpool(features[5]).flatten(1))  # type: ignore[no-any-return]  # as above


class VGG16(_Classifier):
    """VGG16 (configuration D). A stage is a block of convolutions with its pooling: strides 2, 4, 8, 16, 32.

    Takes any input from 32 pixels, because the pooling to 7 x 7 before the fully connected layers is adaptive.
    """

    def __init__(self, classes: int, *, width: float = 1.0, batch_norm: bool = True) -> None:
        super().__init__()
        layout = [v if isinstance(v, str) else scale_channels(v, width) for v in cfgs["D"]]
        self.features = make_layers(layout, batch_norm=batch_norm)
        self.avgpool = AdaptiveAveragePool(7)
        hidden = scale_channels(4096, width)
        self.classifier = nn.Sequential(
            nn.Linear(scale_channels(512, width) * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
        self.normalize = Normalize((VGG16_BN_Weights if batch_norm else VGG16_Weights).IMAGENET1K_V1)
        self.stages = _stages_between_pools(self.features)
        self.apply(_initialize_vgg)


def _stages_between_pools(features: nn.Sequential) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    paths: list[str] = []
    channels = 0
    for name, layer in features.named_children():
        paths.append(f"features.{name}")
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if isinstance(layer, nn.MaxPool2d):
            stages.append(Stage(tuple(paths), channels, 2 ** (len(stages) + 1)))
            paths = []
    return tuple(stages)


def _initialize_vgg(module: nn.Module) -> None:
    """Initialise as torchvision does, in the same order, so that a seed gives the same weights."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class AlexNet(_Classifier):
    """AlexNet ("one weird trick"). A stage is a convolution with its pooling, if any: strides 8, 16, 16, 16, 32.

    Inputs under 64 pixels (CIFAR) are enlarged to 64, because they would shrink to nothing before the last pooling.
    """

    def __init__(self, classes: int, *, width: float = 1.0, hidden: int = 4096) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scale_channels(c, width) for c in (64, 192, 384, 256, 256))
        hidden = scale_channels(hidden, width)
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = AdaptiveAveragePool(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(c5 * 6 * 6, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )
        self.normalize = Normalize(AlexNet_Weights.IMAGENET1K_V1)
        self.stages = (
            Stage(_features(0, 3), c1, 8),
            Stage(_features(3, 6), c2, 16),
            Stage(_features(6, 8), c3, 16),
            Stage(_features(8, 10), c4, 16),
            Stage(_features(10, 13), c5, 32),
        )

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[-1] < 64:
            images = F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False)
        return super().prepare(images)


def _features(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"features.{index}" for index in range(start, stop))


class MTLLite(AlexNet):
    """The light joint network: AlexNet with fully connected layers of 1,024 units instead of 4,096.

    It has one output per class. With several labels per image (VOC) the loss makes it a multi-label classifier.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ("classifier.",)

    def __init__(self, classes: int, *, width: float = 1.0) -> None:
        super().__init__(classes, width=width, hidden=1024)
