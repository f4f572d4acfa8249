"""Darknet's weight files: exact sizes, exact round trips, and files that do not match."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present
from torch import nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.train.nets.darknet_weights import Header, load_weights, read_weights, save_weights
from mtl_cloud.train.nets.yolo import ConvBlock, YOLOv3, _Scale

WIDTH = 0.0625


def randomized(network: YOLOv3) -> YOLOv3:
    """The network with random normalisation parameters and statistics, which differ from their initial values."""
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, present(norm.running_mean), present(norm.running_var)):
            tensor.uniform_(0.5, 2)
    return network


def scales_of(network: YOLOv3) -> list[_Scale]:
    return [scale for scale in network.scales if isinstance(scale, _Scale)]


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    states = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for (key, x), y in states if "num_batches" not in key)


def test_the_file_of_coco_has_248007048_bytes_and_comes_back_bit_by_bit(tmp_path: Path) -> None:
    """The size is that of the published yolov3.weights."""
    path = tmp_path / "yolov3.weights"
    network, copy = randomized(YOLOv3(80)), YOLOv3(80)
    save_weights(path, network, seen=32_013_312)
    assert path.stat().st_size == 248_007_048
    assert read_weights(path)[0] == Header(0, 2, 0, seen=32_013_312)
    assert load_weights(path, copy) == ()
    assert equal_weights(copy, network)
    path.unlink()


@settings(max_examples=8, deadline=None)
@given(classes=st.integers(1, 40), seen=st.integers(0, 2**63 - 1))
def test_round_trip(classes: int, seen: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "a.weights"
    network, copy = randomized(YOLOv3(classes, width=WIDTH)), YOLOv3(classes, width=WIDTH)
    save_weights(path, network, seen=seen)
    assert read_weights(path)[0].seen == seen
    assert load_weights(path, copy) == ()
    assert equal_weights(copy, network)


def test_numbers_lie_in_darknets_order(tmp_path: Path) -> None:
    """The first convolution has biases, scales, means, variances, weights; the last one biases, weights."""
    network = randomized(YOLOv3(2, width=WIDTH))
    save_weights(tmp_path / "a.weights", network)
    numbers = read_weights(tmp_path / "a.weights")[1]
    first, last = network.backbone[0], scales_of(network)[2].logits
    assert isinstance(first, ConvBlock)
    norm = first.norm
    statistics = [present(norm.running_mean), present(norm.running_var)]
    head = [norm.bias, norm.weight, *statistics, first.conv.weight.flatten()]
    expected = torch.cat(head).detach().numpy()
    np.testing.assert_array_equal(numbers[: len(expected)], expected)
    expected = torch.cat([present(last.bias), last.weight.flatten()]).detach().numpy()
    np.testing.assert_array_equal(numbers[-len(expected) :], expected)


def test_a_file_for_other_classes_fills_all_but_the_last_convolutions(tmp_path: Path) -> None:
    path = tmp_path / "coco.weights"
    coco, voc = randomized(YOLOv3(80, width=WIDTH)), YOLOv3(20, width=WIDTH)
    fresh = [scale.logits.weight.clone() for scale in scales_of(voc)]
    save_weights(path, coco)
    assert load_weights(path, voc) == ("scales.0.logits.", "scales.1.logits.", "scales.2.logits.")
    for ours, theirs, untouched in zip(scales_of(voc), scales_of(coco), fresh, strict=True):
        assert equal_weights(ours.neck, theirs.neck)
        assert equal_weights(ours.conv, theirs.conv)
        assert torch.equal(ours.logits.weight, untouched)


@pytest.mark.parametrize("classes", [0, 1000], ids=["without classifier", "with classifier"])
def test_a_darknet_53_file_fills_the_backbone(classes: int, tmp_path: Path) -> None:
    source, network = randomized(YOLOv3(3, width=WIDTH)), YOLOv3(3, width=WIDTH)
    save_weights(tmp_path / "whole.weights", source)
    backbone = 20 + 4 * backbone_numbers(source)
    classifier = np.ones(classes * (source.stages[4].channels + 1), "<f4").tobytes()
    path = tmp_path / "darknet53.conv.74"
    path.write_bytes((tmp_path / "whole.weights").read_bytes()[:backbone] + classifier)
    assert load_weights(path, network) == ("scales.",)
    assert equal_weights(network.backbone, source.backbone)
    assert not equal_weights(network.scales, source.scales)


def backbone_numbers(network: YOLOv3) -> int:
    return sum(t.numel() for key, t in network.backbone.state_dict().items() if "num_batches" not in key)


def test_the_published_backbone_file_is_the_backbones() -> None:
    """darknet53.conv.74 has 162,482,580 bytes."""
    with torch.device("meta"):
        assert 20 + 4 * backbone_numbers(YOLOv3(1)) == 162_482_580


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "count"), [("MobileNetV2-YOLOv3-Nano-voc", 769_750), ("yolo-fastest-1.1", 346_062)])
def test_published_files_are_read_whole(name: str, count: int, real_data: Callable[[str], Path]) -> None:
    """They have as many numbers as their cfgs (counted with another program), and all numbers are finite."""
    (path,) = real_data("reference").rglob(f"{name}.weights")
    header, numbers = read_weights(path)
    assert (header.major, header.minor, len(numbers)) == (0, 2, count)
    assert np.isfinite(numbers).all()


def test_files_of_before_version_0_2_count_their_images_in_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "old.weights"
    path.write_bytes(struct.pack("<4i3f", 0, 1, 0, 77, 1.0, 2.0, 3.0))
    header, numbers = read_weights(path)
    assert header == Header(0, 1, 0, seen=77)
    assert numbers.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not darknet weights: 0 bytes"),
        (Header().pack() + b"abc", "end in the middle of a number"),
        (Header().pack() + b"\0" * 400, "100 numbers fit neither YOLOv3 .* nor Darknet-53"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_the_reason(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.weights"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        load_weights(path, YOLOv3(2, width=WIDTH))
    assert str(path) in str(caught.value)
