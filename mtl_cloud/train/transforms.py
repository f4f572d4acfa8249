"""From a sample of any size to the network's square, with its boxes and mask.

With ``fit: letterbox``, validation images are scaled to fit, centred on grey, as darknet does, and training images are
placed on the same canvas at a random scale, aspect ratio and offset (darknet's jitter); what falls outside is cut. With
``fit: crop``, images fill the square as torchvision's classifiers want it: a random part of them in training, the
centre in validation. Training images may be mirrored. Everything random is drawn from the sample's own generator, keyed
by (seed, epoch, sample), so it does not depend on which worker loads the sample. Colour changes are only drawn here;
they are applied on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

from mtl_cloud.datasets.base import IGNORE, Boxes, Least, Sample
from mtl_cloud.spec.job import AugmentSpec

__all__ = [
    "Canvas",
    "Placement",
    "apply_color",
    "center_crop",
    "draw_color",
    "draw_crop",
    "draw_placement",
    "least",
    "letterbox",
    "place",
    "sample_rng",
    "visible",
]

GREY = 128
"""Canvas around an image: darknet's 0.5."""
_RESIZE = 256 / 224
_RATIOS = (3 / 4, 4 / 3)
_LOG_RATIOS = tuple(np.log(_RATIOS).tolist())
MIN_VISIBLE = 0.2
"""A box of which less is left inside the canvas is no longer taught."""


@dataclass(frozen=True)
class Placement:
    """Where the image's corners come to lie on the canvas, in canvas pixels. Python's own numbers, which round fast."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


@dataclass(frozen=True)
class Canvas:
    """A sample on the network's input square, with the labels that it has."""

    key: str
    image: Tensor
    """[3, S, S] uint8; in memory a pixel's colours lie side by side."""
    classification: int | npt.NDArray[np.float32] | None
    detection: Boxes | None
    segmentation: Tensor | None
    """[S, S] uint8."""
    replaces: str | None
    """As in ``Sample``."""


def sample_rng(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The generator of one sample in one epoch."""
    key = _Key(np.array([seed, (epoch << 32) + sample], dtype=np.uint64))
    return np.random.Generator(np.random.Philox(key))  # type: ignore[arg-type]  # of such seeds the stubs know one


@dataclass(frozen=True)
class _Key(ISeedSequence):
    """Philox's key as it is. With ``Philox(key=…)`` NumPy asks the system for a seed first, and throws it away."""

    words: npt.NDArray[np.uint64]

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[np.uint64]:  # noqa: ARG002
        return self.words


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
    scale, aspect = rng.uniform(1 - augment.jitter, 1 + augment.jitter, 2).tolist()
    new_width, new_height = fit.width * scale * aspect**0.5, fit.height * scale / aspect**0.5
    left, top = (size - new_width) * rng.uniform(), (size - new_height) * rng.uniform()
    return Placement(left, top, new_width, new_height, flip=rng.uniform() < augment.flip)


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
        area = height * width * rng.uniform(augment.min_area, 1)
        ratio = float(np.exp(rng.uniform(*_LOG_RATIOS)))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left, top = rng.uniform() * (width - crop_width), rng.uniform() * (height - crop_height)
            break
    else:
        crop_width, crop_height = min(width, height * _RATIOS[1]), min(height, width / _RATIOS[0])
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
    across, down = size / crop_width, size / crop_height
    return Placement(-left * across, -top * down, width * across, height * down, flip=rng.uniform() < augment.flip)


def draw_color(augment: AugmentSpec, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """[3] factors of brightness, contrast and saturation; 1 changes nothing."""
    return rng.uniform(1 - augment.color, 1 + augment.color, 3).astype(np.float32)


def least(shape: tuple[int, int], placement: Placement, size: int) -> Least:
    """What of an image the canvas shows, and how far it may be shrunk and still be no smaller than there."""
    spare = min(shape[0] / placement.height, shape[1] / placement.width)
    divisor = next((divisor for divisor in (8, 4, 2) if spare >= divisor), 1)
    *_, last = visible(placement.top, placement.height, -(-shape[0] // divisor), size)
    return Least(divisor, last * divisor)


def place(sample: Sample, placement: Placement, size: int, room: Tensor | None = None) -> Canvas:
    """Put image, boxes and mask on a square of ``size`` pixels; the image into ``room`` [S, S, 3], where that is given.

    Images are resized bilinearly, with a low-pass filter where they shrink; masks take the nearest pixel's class.
    """
    image, mask = torch.empty(size, size, 3, dtype=torch.uint8) if room is None else room, None
    _paste(sample.image, placement, image, GREY, partial(F.interpolate, mode="bilinear", antialias=True))
    if sample.segmentation is not None:
        mask = torch.empty(size, size, 1, dtype=torch.uint8)
        _paste(sample.segmentation[..., None], placement, mask, IGNORE, partial(F.interpolate, mode="nearest"))
    return Canvas(
        key=sample.key,
        image=image.permute(2, 0, 1),
        classification=sample.classification,
        detection=None if sample.detection is None else _move_boxes(sample.detection, placement, sample.shape, size),
        segmentation=None if mask is None else mask[..., 0],
        replaces=sample.replaces,
    )


def _paste(
    pixels: npt.NDArray[np.uint8], placement: Placement, canvas: Tensor, fill: int, resize: Callable[..., Tensor]
) -> None:
    """Resize only the part that stays visible, and lay it on a canvas of ``fill``. Both are [row, column, channel]."""
    size = len(canvas)
    x0, x1, src_x0, src_x1 = visible(placement.left, placement.width, pixels.shape[1], size)
    y0, y1, src_y0, src_y1 = visible(placement.top, placement.height, pixels.shape[0], size)
    seen = np.ascontiguousarray(pixels[None, src_y0:src_y1, src_x0:src_x1])  # torch is fastest in this very layout
    part = resize(torch.from_numpy(seen).permute(0, 3, 1, 2), (y1 - y0, x1 - x0))[0].permute(1, 2, 0)
    if placement.flip:
        part, x0, x1 = part.flip(1), size - x1, size - x0
    room = canvas if part.shape == canvas.shape else canvas.fill_(fill)[y0:y1, x0:x1]
    room.copy_(part)


def visible(start: float, length: float, source: int, size: int) -> tuple[int, int, int, int]:
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
