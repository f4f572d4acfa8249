"""From a sample of any size to the network's square, with its boxes and mask.

With ``fit: letterbox``, validation images are scaled to fit, centred on grey, as darknet does, and training images are
placed on the same canvas at a random scale, aspect ratio and offset (darknet's jitter); what falls outside is cut. With
``fit: crop``, images fill the square as torchvision's classifiers want it: a random part of them in training, the
centre in validation. Training images may be mirrored. Everything random is drawn from the sample's own generator, keyed
by (seed, epoch, sample), so it does not depend on which worker loads the sample. An image is only cut here, and its
colours drawn: it is resized, mirrored and coloured on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE, Boxes, Least, Sample
from mtl_cloud.jobspec.job import AugmentSpec
from mtl_cloud.train.data.crops import Span, resized

__all__ = [
    "Canvas",
    "Color",
    "Placement",
    "SampleRng",
    "apply_color",
    "center_crop",
    "draw_color",
    "draw_crop",
    "draw_placement",
    "least",
    "letterbox",
    "place",
    "seen",
]

Color: TypeAlias = tuple[float, float, float]
"""Factors of brightness, contrast and saturation; 1 changes nothing."""
_RESIZE = 256 / 224
_RATIOS = (3 / 4, 4 / 3)
_LOG_RATIOS = (math.log(_RATIOS[0]), math.log(_RATIOS[1]))
_MOST_KEPT = 8
"""Times the pixels that it will cover. What is shrunk while it is decoded has less: this is for large PNGs."""
MIN_VISIBLE = 0.2
"""A box of which less is left inside the canvas is no longer taught."""


class Placement(NamedTuple):
    """Where the image's corners come to lie on the canvas, in canvas pixels. Python's own numbers, which round fast."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


class Canvas(NamedTuple):
    """A sample on the network's input square, with the labels that it has."""

    key: str
    image: Span[int]
    """Of its pixels among those of the batch."""
    classification: int | npt.NDArray[np.float32] | None
    detection: Boxes | None
    segmentation: Tensor | None
    """[S, S] uint8."""
    replaces: str | None
    """As in ``Sample``."""


class SampleRng:
    """The generator of one sample in one epoch: Philox, keyed by (``seed``, epoch, sample).

    It is one generator that is set to another beginning, in a quarter of the time that a new one takes.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        bits = np.random.Philox(0)
        self._generator = np.random.Generator(bits)
        self._beginning = bits.state

    def at(self, epoch: int, sample: int) -> np.random.Generator:
        """It is this sample's until it is asked for another one's."""
        key = np.array([self._seed, (epoch << 32) + sample], dtype=np.uint64)
        self._beginning["state"]["key"] = key
        self._generator.bit_generator.state = self._beginning
        return self._generator

    def __reduce__(self) -> tuple[type[SampleRng], tuple[int]]:
        return SampleRng, (self._seed,)


def letterbox(shape: Sequence[int], size: int) -> Placement:
    """An image of ``shape`` (height, width, …) scaled to fit into ``size`` x ``size``, centred."""
    height, width = shape[:2]
    scale = size / max(height, width)
    return Placement(
        (size - width * scale) / 2, (size - height * scale) / 2, max(1.0, width * scale), max(1.0, height * scale)
    )


def draw_placement(shape: Sequence[int], size: int, augment: AugmentSpec, rng: np.random.Generator) -> Placement:
    """A random one: scale and aspect ratio within ``1 ± jitter``, any offset that keeps the image on the canvas."""
    fit = letterbox(shape, size)
    scale, aspect = (_uniform(rng, 1 - augment.jitter, 1 + augment.jitter) for _ in range(2))
    new_width, new_height = fit.width * scale * aspect**0.5, fit.height * scale / aspect**0.5
    left, top = (size - new_width) * rng.random(), (size - new_height) * rng.random()
    return Placement(left, top, new_width, new_height, flip=rng.random() < augment.flip)


def center_crop(shape: Sequence[int], size: int) -> Placement:
    """The centre of an image whose shorter side is scaled to 256/224 of ``size``, as torchvision's preset does."""
    height, width = shape[:2]
    scale = size * _RESIZE / min(height, width)
    return Placement((size - width * scale) / 2, (size - height * scale) / 2, width * scale, height * scale)


def draw_crop(shape: Sequence[int], size: int, augment: AugmentSpec, rng: np.random.Generator) -> Placement:
    """A random part of the image fills the square: Szegedy et al. 2015's, with torchvision's ranges.

    Its area is uniform in ``augment.min_area`` .. 1 of the image's, its aspect ratio log-uniform in 3/4 .. 4/3; what
    reaches over the image is drawn anew, and after ten draws the largest centred part within those ratios serves.
    """
    height, width = shape[:2]
    for _ in range(10):
        area = height * width * _uniform(rng, augment.min_area, 1)
        ratio = math.exp(_uniform(rng, *_LOG_RATIOS))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left, top = rng.random() * (width - crop_width), rng.random() * (height - crop_height)
            break
    else:
        crop_width, crop_height = min(width, height * _RATIOS[1]), min(height, width / _RATIOS[0])
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
    across, down = size / crop_width, size / crop_height
    return Placement(-left * across, -top * down, width * across, height * down, flip=rng.random() < augment.flip)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """What ``rng.uniform`` gives, in half its time."""
    return low + (high - low) * rng.random()


def draw_color(augment: AugmentSpec, rng: np.random.Generator) -> Color:
    low, high = 1 - augment.color, 1 + augment.color
    return _uniform(rng, low, high), _uniform(rng, low, high), _uniform(rng, low, high)


def least(shape: tuple[int, int], placement: Placement, size: int) -> Least:
    """What of an image the canvas shows, and how far it may be shrunk and still be no smaller than there."""
    spare = min(shape[0] / placement.height, shape[1] / placement.width)
    divisor = next((divisor for divisor in (8, 4, 2) if spare >= divisor), 1)
    *_, last = _visible(placement.top, placement.height, -(-shape[0] // divisor), size)
    return Least(divisor, last * divisor)


def place(sample: Sample, placement: Placement, size: int, keep: Callable[[npt.NDArray[np.uint8]], int]) -> Canvas:
    """Put image, boxes and mask on a square of ``size`` pixels. Masks take the nearest pixel's class.

    Of the image, ``keep`` gets the part that stays visible, [height, width, 3], and tells at which of the batch's
    pixels it begins. A part of far more pixels than it will cover is resized first, so that it takes no more room.
    """
    span = seen(sample.image.shape[:2], placement, size)
    part, shape = _part(sample.image, span), (span.bottom - span.top, span.right - span.left)
    if span.height * span.width > _MOST_KEPT * math.prod(shape):
        part, span = resized(torch.from_numpy(part), shape).numpy(), span._replace(height=shape[0], width=shape[1])
    return Canvas(
        key=sample.key,
        image=span._replace(start=keep(part), stride=span.width),
        classification=sample.classification,
        detection=None if sample.detection is None else _move_boxes(sample.detection, placement, sample.shape, size),
        segmentation=None if sample.segmentation is None else _place_mask(sample.segmentation, placement, size),
        replaces=sample.replaces,
    )


def seen(shape: Sequence[int], placement: Placement, size: int) -> Span[int]:
    """What a square of ``size`` pixels shows of an image of ``shape`` (height, width), among the image's own pixels."""
    height, width = shape
    top, bottom, first_row, last_row = _visible(placement.top, placement.height, height, size)
    left, right, first_column, last_column = _visible(placement.left, placement.width, width, size)
    return Span(
        start=first_row * width + first_column,
        stride=width,
        height=last_row - first_row,
        width=last_column - first_column,
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        flip=int(placement.flip),
    )


def _part(pixels: npt.NDArray[np.uint8], span: Span[int]) -> npt.NDArray[np.uint8]:
    row, column = divmod(span.start, span.stride)
    return pixels[row : row + span.height, column : column + span.width]


def _place_mask(mask: npt.NDArray[np.uint8], placement: Placement, size: int) -> Tensor:
    span = seen(mask.shape, placement, size)
    part = torch.from_numpy(np.ascontiguousarray(_part(mask, span)))
    canvas = torch.full((size, size), IGNORE, dtype=torch.uint8)
    room = canvas[span.top : span.bottom, span.left : span.right]
    room.copy_(F.interpolate(part[None, None], room.shape, mode="nearest")[0, 0])
    return canvas.flip(1) if span.flip else canvas


def _visible(start: float, length: float, source: int, size: int) -> tuple[int, int, int, int]:
    """One axis: the canvas pixels that are covered, and the source pixels that cover them (both at least one)."""
    first = min(max(0, round(start)), size - 1)
    last = max(first + 1, min(size, round(start + length)))
    source_first = min(max(0, round((first - start) / length * source)), source - 1)
    source_last = max(source_first + 1, min(source, round((last - start) / length * source)))
    return first, last, source_first, source_last


def _move_boxes(boxes: Boxes, placement: Placement, shape: tuple[int, int], size: int) -> Boxes:
    height, width = shape
    scale = np.array([placement.width / width, placement.height / height] * 2, dtype=np.float32)
    moved = boxes.xyxy * scale + np.array([placement.left, placement.top] * 2, dtype=np.float32)
    if placement.flip:
        moved = np.stack([size - moved[:, 2], moved[:, 1], size - moved[:, 0], moved[:, 3]], axis=1)
    inside = moved.clip(0, size)
    kept = _area(inside) >= MIN_VISIBLE * np.maximum(_area(moved), 1e-6)
    return replace(boxes, xyxy=inside[kept], classes=boxes.classes[kept], difficult=boxes.difficult[kept])


def _area(xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    width, height = (xyxy[:, 2:] - xyxy[:, :2]).T
    area: npt.NDArray[np.float32] = width * height
    return area


def apply_color(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast (about each image's mean grey) and saturation (about each pixel's grey).

    ``images`` [B, 3, S, S] float in 0..1, ``factors`` [B, 3]; the result is clipped to 0..1.
    """
    brightness, contrast, saturation = factors.to(images.dtype)[..., None, None].unbind(1)
    brightness, contrast, saturation = brightness[:, None], contrast[:, None], saturation[:, None]
    images = (images * brightness).clamp(0, 1)
    images = images.lerp(_grey(images).mean((1, 2, 3), keepdim=True), 1 - contrast).clamp(0, 1)
    return images.lerp(_grey(images), 1 - saturation).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """ITU-R BT.601 luma."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
