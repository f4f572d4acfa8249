"""Place a sample of any size, with its boxes and mask, on the network's square input.

With ``fit: letterbox``, validation images are scaled to fit and centred on grey, as in darknet. Training images are
placed on the same canvas at a random scale, aspect ratio and offset (darknet's jitter), and cropped to it. With ``fit:
crop``, images fill the square as in torchvision's classification presets: a random crop in training, the centre in
validation. Training images may be mirrored. Everything random is drawn from the sample's own generator, keyed by (seed,
epoch, sample), so it does not depend on which worker loads the sample. This module only crops images and draws their
colours: they are resized, mirrored and coloured on the device.
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

from mtl_cloud.datasets.base import IGNORE, Boxes, DecodeHint, Sample
from mtl_cloud.jobspec.job import AugmentSpec
from mtl_cloud.train.data.crops import CropRegion, resize_crop

__all__ = [
    "Canvas",
    "Color",
    "Placement",
    "SampleRng",
    "apply_color",
    "center_crop",
    "decode_hint",
    "draw_color",
    "draw_crop",
    "draw_placement",
    "letterbox",
    "place",
    "visible_region",
]

Color: TypeAlias = tuple[float, float, float]
"""Factors of brightness, contrast and saturation; 1 changes nothing."""
_RESIZE = 256 / 224
_RATIOS = (3 / 4, 4 / 3)
_LOG_RATIOS = (math.log(_RATIOS[0]), math.log(_RATIOS[1]))
_MAX_OVERSIZE = 8
"""A crop with more than this many times the pixels that it covers is resized in the loader. Images scaled by their
decoder stay below it: this is for large PNGs."""
MIN_VISIBLE = 0.2
"""A box with a smaller share of its area inside the canvas is dropped."""


class Placement(NamedTuple):
    """The image's place on the canvas, in canvas pixels. Python floats, because they round fast."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


class Canvas(NamedTuple):
    """A sample on the network's square input, with the labels that it has."""

    key: str
    image: CropRegion[int]
    """Its crop among the pixels of the batch."""
    classification: int | npt.NDArray[np.float32] | None
    detection: Boxes | None
    segmentation: Tensor | None
    """[S, S] uint8."""
    replaces: str | None
    """As in ``Sample``."""


class SampleRng:
    """The generator of one sample in one epoch: Philox, keyed by (``seed``, epoch, sample).

    One generator object is reset for each sample, which takes a quarter of the time of a new one.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        bits = np.random.Philox(0)
        self._generator = np.random.Generator(bits)
        self._initial_state = bits.state

    def at(self, epoch: int, sample: int) -> np.random.Generator:
        """The generator at the start of this sample's stream; valid until the next call of ``at``."""
        key = np.array([self._seed, (epoch << 32) + sample], dtype=np.uint64)
        self._initial_state["state"]["key"] = key
        self._generator.bit_generator.state = self._initial_state
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
    """Random scale and aspect ratio within ``1 ± jitter``, and any offset that keeps the image on the canvas."""
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
    """A random crop of the image that fills the square: that of Szegedy et al. 2015, with torchvision's ranges.

    Its area is uniform in ``augment.min_area`` .. 1 of the image's, its aspect ratio log-uniform in 3/4 .. 4/3. A crop
    that exceeds the image is drawn again; after ten draws the largest centred crop within those ratios is used.
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
    """The same value as ``rng.uniform``, in half the time."""
    return low + (high - low) * rng.random()


def draw_color(augment: AugmentSpec, rng: np.random.Generator) -> Color:
    low, high = 1 - augment.color, 1 + augment.color
    return _uniform(rng, low, high), _uniform(rng, low, high), _uniform(rng, low, high)


def decode_hint(shape: tuple[int, int], placement: Placement, size: int) -> DecodeHint:
    """The rows of an image that the canvas shows, and the largest divisor that leaves it no smaller than there."""
    excess = min(shape[0] / placement.height, shape[1] / placement.width)
    divisor = next((divisor for divisor in (8, 4, 2) if excess >= divisor), 1)
    *_, last = _visible(placement.top, placement.height, -(-shape[0] // divisor), size)
    return DecodeHint(divisor, last * divisor)


def place(sample: Sample, placement: Placement, size: int, store: Callable[[npt.NDArray[np.uint8]], int]) -> Canvas:
    """Put image, boxes and mask on a square of ``size`` pixels. Masks are resized by nearest neighbour.

    ``store`` receives the visible crop of the image, [height, width, 3], and returns the index of its first pixel in
    the batch. A crop of far more pixels than it will cover is resized first, to save memory.
    """
    region = visible_region(sample.image.shape[:2], placement, size)
    crop, shape = _crop(sample.image, region), (region.bottom - region.top, region.right - region.left)
    if region.height * region.width > _MAX_OVERSIZE * math.prod(shape):
        crop = resize_crop(torch.from_numpy(crop), shape).numpy()
        region = region._replace(height=shape[0], width=shape[1])
    return Canvas(
        key=sample.key,
        image=region._replace(start=store(crop), stride=region.width),
        classification=sample.classification,
        detection=None if sample.detection is None else _move_boxes(sample.detection, placement, sample.shape, size),
        segmentation=None if sample.segmentation is None else _place_mask(sample.segmentation, placement, size),
        replaces=sample.replaces,
    )


def visible_region(shape: Sequence[int], placement: Placement, size: int) -> CropRegion[int]:
    """The region of an image of ``shape`` (height, width) that a square of ``size`` pixels shows, in image pixels."""
    height, width = shape
    top, bottom, first_row, last_row = _visible(placement.top, placement.height, height, size)
    left, right, first_column, last_column = _visible(placement.left, placement.width, width, size)
    return CropRegion(
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


def _crop(pixels: npt.NDArray[np.uint8], region: CropRegion[int]) -> npt.NDArray[np.uint8]:
    row, column = divmod(region.start, region.stride)
    return pixels[row : row + region.height, column : column + region.width]


def _place_mask(mask: npt.NDArray[np.uint8], placement: Placement, size: int) -> Tensor:
    region = visible_region(mask.shape, placement, size)
    crop = torch.from_numpy(np.ascontiguousarray(_crop(mask, region)))
    canvas = torch.full((size, size), IGNORE, dtype=torch.uint8)
    target = canvas[region.top : region.bottom, region.left : region.right]
    target.copy_(F.interpolate(crop[None, None], target.shape, mode="nearest")[0, 0])
    return canvas.flip(1) if region.flip else canvas


def _visible(start: float, length: float, source: int, size: int) -> tuple[int, int, int, int]:
    """One axis: the range of canvas pixels and the range of source pixels that covers it, at least one pixel each."""
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
