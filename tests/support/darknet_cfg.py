"""YOLOv3 and Darknet-53 as darknet's cfg files, written from the paper (arXiv:1804.02767, Table 1 and section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["darknet53_cfg", "yolov3_cfg"]

_STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""Filters and residual blocks."""
_HEADS = ((512, "6,7,8", None), (256, "3,4,5", 61), (128, "0,1,2", 36))
"""Filters, anchors, and the layer that joins: the last one of Darknet-53 at 16 and at 8 pixels a cell."""
_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"


def _section(kind: str, **options: object) -> str:
    return f"[{kind}]\n" + "".join(f"{key}={value}\n" for key, value in options.items())


def _convolution(filters: int, size: int, stride: int = 1) -> str:
    return _section(
        "convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1, activation="leaky"
    )


def _logits(filters: int) -> str:
    return _section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")


def _backbone() -> Iterator[str]:
    yield _section("net", channels=3)
    yield _convolution(32, 3)
    for filters, blocks in _STAGES:
        yield _convolution(filters, 3, stride=2)
        for _ in range(blocks):
            yield _convolution(filters // 2, 1) + _convolution(filters, 3)
            yield _section("shortcut", **{"from": -3, "activation": "linear"})


def _heads(classes: int) -> Iterator[str]:
    for filters, mask, joined in _HEADS:
        if joined is not None:
            yield _section("route", layers=-4) + _convolution(filters, 1)
            yield _section("upsample", stride=2) + _section("route", layers=f"-1, {joined}")
        yield 3 * (_convolution(filters, 1) + _convolution(2 * filters, 3))
        yield _logits(3 * (5 + classes)) + _section("yolo", mask=mask, anchors=_ANCHORS, classes=classes)


def yolov3_cfg(classes: int) -> str:
    return "".join([*_backbone(), *_heads(classes)])


def darknet53_cfg() -> str:
    """The classifier of ImageNet's thousand classes."""
    return "".join([*_backbone(), _section("avgpool"), _logits(1000), _section("softmax", groups=1)])
