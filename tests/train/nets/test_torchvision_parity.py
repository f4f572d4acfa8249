"""The classifiers and the segmenter against torchvision: the same keys, logits, training steps and expected outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import AlexNet_Weights, VGG16_BN_Weights, VGG16_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from mtl_cloud.train.nets.classifiers import VGG16, AdaptiveAveragePool, AlexNet
from mtl_cloud.train.nets.fcn import FCNResNet50
from mtl_cloud.train.nets.staged import StagedNetwork

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

CLASSIFIERS: dict[str, Callable[[int], StagedNetwork]] = {
    "alexnet": AlexNet,
    "vgg16": lambda classes: VGG16(classes, batch_norm=False),
    "vgg16_bn": VGG16,
}
WEIGHTS = {"alexnet": AlexNet_Weights, "vgg16": VGG16_Weights, "vgg16_bn": VGG16_BN_Weights}


def torchvision_fcn(classes: int, *, aux: bool) -> nn.Module:
    network: nn.Module = torchvision.models.segmentation.fcn_resnet50(
        num_classes=classes, aux_loss=aux, weights=None, weights_backbone=None
    )
    return network


def assert_same_step(ours: nn.Module, theirs: nn.Module, loss: Callable[[Any], Tensor], images: Tensor) -> None:
    """Check that one SGD step gives the same parameters and running statistics, to 1e-6.

    The widest fully connected layers are frozen: their gradients alone would take a gigabyte.
    """
    for network, x in ((ours, images), (theirs, (images - MEAN) / STD)):
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.numel() < 10_000_000)
        optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, foreach=False)
        torch.manual_seed(1)  # the same dropout
        loss(network(x)).backward()
        optimizer.step()
    for (key, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn"])
def test_a_classifier_with_torchvisions_weights_is_torchvisions(name: str) -> None:
    """It has exactly the same logits, and the same parameters after a training step."""
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    ours = CLASSIFIERS[name](7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64)
        assert torch.equal(ours(images), theirs((images - MEAN) / STD))
    target = torch.tensor([3, 6])
    assert_same_step(ours, theirs, lambda logits: F.cross_entropy(logits, target), images)


def test_the_segmenter_with_torchvisions_weights_is_torchvisions() -> None:
    theirs = torchvision_fcn(5, aux=True).eval()
    ours = FCNResNet50(5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images)["out"], theirs((images - MEAN) / STD)["out"])
        assert "aux" not in ours(images)
    target = torch.randint(5, (2, 32, 32))

    def loss(logits: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits["out"], target) + 0.5 * F.cross_entropy(logits["aux"], target)

    assert_same_step(ours, theirs, loss, images)


@pytest.mark.real_data
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_seeded_classifier_gives_torchvisions_expected_output(name: str, real_data: Callable[[str], Path]) -> None:
    """This covers initialisation: torchvision 0.14.1 recorded the outputs with seed 0, 50 classes, one random image."""
    torch.manual_seed(0)
    network = CLASSIFIERS[name](50).eval()
    assert_expected(network(torch.rand(1, 3, 224, 224) * STD + MEAN), name, real_data)


@pytest.mark.real_data
def test_the_segmenter_gives_torchvisions_expected_output(real_data: Callable[[str], Path]) -> None:
    """It uses torchvision's seeded weights: torchvision also draws numbers for a classifier that ours lacks."""
    torch.manual_seed(0)
    weights = torchvision_fcn(10, aux=False).state_dict()
    images = torch.rand(1, 3, 32, 32) * STD + MEAN
    network = FCNResNet50(10, aux=False).eval()
    network.load_state_dict(weights, strict=True)
    assert_expected(network(images)["out"], "fcn_resnet50", real_data)


def assert_expected(output: Tensor, name: str, real_data: Callable[[str], Path]) -> None:
    folder = real_data("reference") / "torchvision_0.14.1_expect"
    (path,) = folder.parent.rglob(f"ModelTester.test_{name}_expect.pkl")
    torch.testing.assert_close(output, torch.load(path, weights_only=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "weights"),
    [
        (AlexNet(2, width=0.1), AlexNet_Weights.IMAGENET1K_V1),
        (VGG16(2, width=0.1), VGG16_BN_Weights.IMAGENET1K_V1),
        (VGG16(2, width=0.1, batch_norm=False), VGG16_Weights.IMAGENET1K_V1),
        (FCNResNet50(2, width=0.1), FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1),
    ],
)
def test_preprocessing_is_that_of_the_published_weights(network: StagedNetwork, weights: Any) -> None:
    images, transforms = torch.rand(2, 3, 64, 64), weights.transforms()
    expected = torchvision.transforms.functional.normalize(images, transforms.mean, transforms.std)
    assert torch.equal(network.prepare(images), expected)


@pytest.mark.parametrize(("name", "weights"), [*WEIGHTS.items(), ("fcn_resnet50", FCN_ResNet50_Weights)])
def test_parameter_counts_are_the_published_ones(name: str, weights: Any) -> None:
    meta = next(iter(weights)).meta
    with torch.device("meta"):
        network = FCNResNet50(21) if name == "fcn_resnet50" else CLASSIFIERS[name](1000)
    assert sum(p.numel() for p in network.parameters()) == meta["num_params"]


@pytest.mark.parametrize("length", range(1, 15))
def test_the_deterministic_pooling_is_the_adaptive_one(length: int) -> None:
    """Matrix products replace a kernel that has no deterministic form on GPUs."""
    x = torch.rand(2, 3, length, length + 1, requires_grad=True)
    pool = AdaptiveAveragePool(7)
    expected = pool(x)
    torch.use_deterministic_algorithms(mode=True)
    try:
        torch.testing.assert_close(pool(x), expected)
    finally:
        torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_alexnet_takes_images_as_small_as_cifars(size: int) -> None:
    assert AlexNet(10, width=0.125)(torch.rand(2, 3, size, size)).shape == (2, 10)
