"""YOLOv3 against darknet's cfg files: the layers and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from narrowing import present
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_cloud.train.nets.anchors import ANCHOR_MASKS, ANCHORS, STRIDES, anchors_of_heads
from mtl_cloud.train.nets.darknet_weights import read_weights, save_weights
from mtl_cloud.train.nets.yolo import ConvBlock, YOLOv3, _Scale

Section = tuple[str, dict[str, str]]


class Convolution(NamedTuple):
    channels: int
    filters: int
    size: int
    stride: int
    batch_norm: bool
    activation: str


def sections(cfg: Path) -> list[Section]:
    """The sections of a darknet cfg, comments dropped."""
    parsed: list[Section] = []
    for line in (raw.split("#")[0].strip() for raw in cfg.read_text().splitlines()):
        if line.startswith("["):
            parsed.append((line.strip("[]"), {}))
        elif line:
            key, value = line.split("=")
            parsed[-1][1][key.strip()] = value.strip()
    return parsed


def convolutions_of_cfg(cfg: Path) -> Iterator[Convolution]:
    """Every convolution of a cfg, with its input channels by the cfg's routes."""
    (_, net), *layers = sections(cfg)
    outputs: list[int] = []
    for index, (kind, options) in enumerate(layers):
        channels = outputs[-1] if outputs else int(net["channels"])
        if kind == "route":
            sources = [int(s) for s in options["layers"].split(",")]
            channels = sum(outputs[s if s >= 0 else index + s] for s in sources)
        if kind == "convolutional":
            filters, size, stride = (int(options[key]) for key in ("filters", "size", "stride"))
            norm = options.get("batch_normalize") == "1"
            yield Convolution(channels, filters, size, stride, norm, options["activation"])
            channels = filters
        outputs.append(channels)


def convolutions_of(network: nn.Module) -> Iterator[Convolution]:
    for block in network.modules():
        if isinstance(block, ConvBlock):
            conv, norm, activation = block.conv, True, "leaky"
        elif isinstance(block, nn.Conv2d) and block.bias is not None:
            conv, norm, activation = block, False, "linear"
        else:
            continue
        (size, _), (stride, _) = conv.kernel_size, conv.stride
        assert conv.padding == (size // 2, size // 2)
        yield Convolution(conv.in_channels, conv.out_channels, size, stride, norm, activation)


def reference(name: str, real_data: Callable[[str], Path]) -> Path:
    (path,) = real_data("reference").rglob(name)
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(("cfg", "classes"), [("yolov3.cfg", 80), ("yolov3-voc.cfg", 20)])
def test_the_layers_are_those_of_darknets_cfg(cfg: str, classes: int, real_data: Callable[[str], Path]) -> None:
    with torch.device("meta"):
        layers = list(convolutions_of(YOLOv3(classes)))
    assert layers == list(convolutions_of_cfg(reference(cfg, real_data)))
    assert len(layers) == 75


@pytest.mark.real_data
def test_the_backbone_is_darknet_53(real_data: Callable[[str], Path]) -> None:
    with torch.device("meta"):
        layers = list(convolutions_of(YOLOv3(1).backbone))
    assert layers == list(convolutions_of_cfg(reference("darknet53.cfg", real_data)))[:-1]


@pytest.mark.real_data
def test_the_anchors_and_their_heads_are_those_of_the_cfg(real_data: Callable[[str], Path]) -> None:
    heads = [options for kind, options in sections(reference("yolov3.cfg", real_data)) if kind == "yolo"]
    numbers = [int(n) for n in heads[0]["anchors"].split(",")]
    assert list(zip(numbers[::2], numbers[1::2], strict=True)) == list(ANCHORS)
    assert [tuple(map(int, head["mask"].split(","))) for head in heads] == list(ANCHOR_MASKS)
    assert anchors_of_heads()[0] == ANCHORS[6:]


@pytest.mark.real_data
def test_the_heads_are_what_the_cfg_computes_from_the_saved_weights(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """An interpreter of the cfg gets the same outputs: routes, shortcuts and the order of the file are right."""
    network = YOLOv3(20).eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, present(norm.running_mean), present(norm.running_var)):
            tensor.add_(torch.rand_like(tensor), alpha=0.1)
    save_weights(tmp_path / "voc.weights", network)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        ours = [head.permute(0, 1, 4, 2, 3).flatten(1, 2) for head in network.double()(images)]
        numbers = torch.from_numpy(read_weights(tmp_path / "voc.weights")[1].astype(float))
        theirs = interpret(reference("yolov3-voc.cfg", real_data), numbers, images)
    (tmp_path / "voc.weights").unlink()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def interpret(cfg: Path, numbers: Tensor, x: Tensor) -> list[Tensor]:
    """Run a cfg's layers one after another. Returns the inputs of its ``[yolo]`` layers."""
    outputs: list[Tensor] = []
    heads: list[Tensor] = []
    for index, (kind, options) in enumerate(sections(cfg)[1:]):
        match kind:
            case "convolutional":
                x, numbers = convolve(options, numbers, x)
            case "shortcut":
                x = x + outputs[index + int(options["from"])]
            case "route":
                sources = [int(s) for s in options["layers"].split(",")]
                x = torch.cat([outputs[s if s >= 0 else index + s] for s in sources], dim=1)
            case "upsample":
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            case "yolo":
                heads.append(x)
        outputs.append(x)
    assert len(numbers) == 0
    return heads


def convolve(options: dict[str, str], numbers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run one ``[convolutional]`` layer. Returns its output and the numbers of the layers after it."""
    filters, size, stride = (int(options[key]) for key in ("filters", "size", "stride"))
    norm = options.get("batch_normalize") == "1"
    sizes = [filters] * (4 if norm else 1) + [filters * x.shape[1] * size * size]
    *vectors, weights, rest = numbers.split([*sizes, len(numbers) - sum(sizes)])
    y = F.conv2d(x, weights.view(filters, -1, size, size), stride=stride, padding=size // 2)
    if norm:
        bias, scale, mean, variance = (v.view(-1, 1, 1) for v in vectors)
        y = (y - mean) / (variance + 1e-5).sqrt() * scale + bias
    else:
        y = y + vectors[0].view(-1, 1, 1)
    return torch.where((y < 0) & (options["activation"] == "leaky"), 0.1 * y, y), rest


@pytest.mark.parametrize(("classes", "parameters"), [(80, 61_949_149), (20, 61_626_049)])
def test_parameter_counts_are_darknets(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in YOLOv3(classes).parameters()) == parameters


def test_batch_normalisation_has_darknets_momentum_and_epsilon() -> None:
    norms = [m for m in YOLOv3(1, width=0.1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-5)}


def test_weights_start_as_darknets_do() -> None:
    """Weights are normal with variance 2 / fan-in, also in the last convolutions; biases are 0."""
    network = YOLOv3(80, width=0.5)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.2)
        assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize("size", [32, 64, 96])
def test_three_scales_come_out_coarsest_first(size: int) -> None:
    outputs = YOLOv3(4, width=0.125)(torch.rand(2, 3, size, size))
    assert [x.shape for x in outputs] == [(2, 3, size // s, size // s, 9) for s in STRIDES]


def test_a_cell_holds_its_anchors_one_after_another_as_darknet_lays_them_out() -> None:
    """Channel a * (5 + classes) + e of the last convolution is entry e of anchor a."""
    network = YOLOv3(4, width=0.125).eval()
    with torch.no_grad():
        for scale in network.scales:
            assert isinstance(scale, _Scale)
            scale.logits.weight.zero_()
            present(scale.logits.bias).copy_(torch.arange(27.0))
        outputs = network(torch.rand(1, 3, 32, 32))
    for output in outputs:
        assert torch.equal(output[0, :, 0, 0], torch.arange(27.0).view(3, 9))
