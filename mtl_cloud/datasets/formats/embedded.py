"""Scenes that need no download: handwritten digits on coloured tiles, with class, boxes and masks.

The digits are real: the 1,797 of scikit-learn's ``load_digits`` (E. Alpaydin, C. Kaynak, 1998; UCI). Every fifth is
kept for validation, so the splits share no digit image. A scene holds one large tile and up to two small ones, without
overlaps. The image's class is the large tile's digit; each tile is an object with a box; its pixels are the mask.

A tile's hue correlates with its digit, but the hues of neighbouring digits overlap: small networks learn within minutes
on a CPU, but need the digit's shape to be correct.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtl_cloud.datasets.base import Boxes, DatasetInfo, HintFor, Sample
from mtl_cloud.errors import DatasetError, MissingExtraError
from mtl_cloud.tasks import Task

__all__ = ["CLASSES", "EmbeddedDataset", "open_embedded"]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 96
"""Side of a scene, pixels."""

_SCENES = {"train": 4096, "val": 512}
_VAL_EVERY = 5
_LARGE = (44, 57)
_SMALL = (24, 33)
_TRIES = 20
_HUE_SPREAD = 0.05
"""Standard deviation of a tile's hue about its digit's; digits are 0.1 apart."""


class Digits(NamedTuple):
    """Source digits."""

    images: npt.NDArray[np.uint8]
    """[n, 8, 8], 0 to 255."""
    classes: npt.NDArray[np.int64]
    """[n]"""


class Tile(NamedTuple):
    """One object of a scene, in pixels."""

    left: int
    top: int
    side: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)

    def overlaps(self, other: Tile) -> bool:
        return (
            self.left < other.left + other.side
            and other.left < self.left + self.side
            and self.top < other.top + other.side
            and other.top < self.top + self.side
        )


@dataclass(frozen=True)
class EmbeddedDataset:
    """Scenes generated on demand: each depends on (seed, split, index) only."""

    split: str
    seed: int = 0

    @property
    def info(self) -> DatasetInfo:
        classes: dict[Task, tuple[str, ...]] = {
            "classification": CLASSES,
            "detection": CLASSES,
            "segmentation": ("background", *CLASSES),
        }
        return DatasetInfo("embedded", self.split, classes)

    def __len__(self) -> int:
        return _SCENES[self.split]

    def __getitem__(self, index: int) -> Sample:
        rng = self._rng(index)
        tiles = _place(rng)
        chosen = rng.integers(len(self.digits.classes), size=len(tiles))
        classes = self.digits.classes[chosen]
        image, mask = _background(rng), np.zeros((SIZE, SIZE), dtype=np.uint8)
        for tile, source, digit in zip(tiles, chosen, classes, strict=True):
            shape = _shape(tile.side)
            image[tile.window][shape] = _paint(self.digits.images[source], digit, tile.side, rng)[shape]
            mask[tile.window][shape] = digit + 1
        return Sample(
            key=self.key(index),
            image=image.clip(0, 255).astype(np.uint8),
            classification=int(classes[0]),
            detection=_boxes(tiles, classes),
            segmentation=mask,
        )

    def load(self, index: int, hint_for: HintFor) -> Sample:  # noqa: ARG002  # these pixels are not encoded
        return self[index]

    def key(self, index: int) -> str:
        return f"embedded/{self.split}/{index:05d}"

    def labels(self, index: int) -> frozenset[Task]:  # noqa: ARG002  # every sample carries the same
        return frozenset(self.info.tasks)

    @cached_property
    def digits(self) -> Digits:
        """The split's share of the source digits."""
        images, classes = _load_digits()
        held_out = np.arange(len(classes)) % _VAL_EVERY == 0
        mine = held_out if self.split == "val" else ~held_out
        return Digits(images[mine], classes[mine])

    def __getstate__(self) -> dict[str, Any]:
        """Includes the digits, so that loader workers need not import scikit-learn."""
        return {**vars(self), "digits": self.digits}

    def _rng(self, index: int) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(index)
        stream = list(_SCENES).index(self.split)
        return np.random.Generator(np.random.Philox(key=[self.seed, (stream << 32) + index]))


def open_embedded(uri: str | None, split: str) -> EmbeddedDataset:
    """``train`` or ``val``. Raises ``DatasetError`` for any other split, and when a ``uri`` is given."""
    if uri is not None:
        raise DatasetError(f"the embedded dataset has no files, but `uri: {uri}` is given", hint="remove the `uri:`")
    if split not in _SCENES:
        raise DatasetError(f"embedded has no split {split!r}", hint="it has train and val")
    return EmbeddedDataset(split)


def _load_digits() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("train", "the embedded dataset") from error
    source = load_digits()
    return Digits((source.images * (255 / 16)).round().astype(np.uint8), source.target.astype(np.int64))


def _place(rng: np.random.Generator) -> list[Tile]:
    """The large tile, then the small ones for which a free position was found."""
    tiles: list[Tile] = []
    for side in [int(rng.integers(*_LARGE)), *rng.integers(*_SMALL, size=rng.integers(3)).tolist()]:
        places = (Tile(left, top, side) for left, top in rng.integers(SIZE - side + 1, size=(_TRIES, 2)).tolist())
        free = (tile for tile in places if not any(tile.overlaps(other) for other in tiles))
        tiles.extend(islice(free, 1))
    return tiles


def _background(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """[SIZE, SIZE, 3] smooth dull colours with noise."""
    clouds = rng.integers(70, 180, size=(5, 5, 1)) + rng.integers(-25, 26, size=(5, 5, 3))
    smooth = Image.fromarray(clouds.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) + rng.normal(0, 8, size=(SIZE, SIZE, 1)).astype(np.float32)


def _shape(side: int) -> npt.NDArray[np.bool_]:
    """[side, side] the mask of a square with rounded corners that touches all four sides."""
    axis = np.linspace(-1, 1, side + 1)[:-1] + 1 / side
    return axis[:, None] ** 4 + axis**4 <= 1


def _paint(
    digit: npt.NDArray[np.uint8], class_index: int, side: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """[side, side, 3] the digit centred on its tile, dark on light or light on dark."""
    paint, ink = _dark_and_light(class_index, rng)[rng.permutation(2)]
    inner = round(0.75 * side)
    margin = (side - inner) // 2
    enlarged = Image.fromarray(digit).resize((inner, inner), Image.Resampling.BICUBIC)
    coverage = np.pad(np.asarray(enlarged, dtype=np.float32) / 255, (margin, side - inner - margin))
    pixels: npt.NDArray[np.float32] = paint + coverage[..., None] * (ink - paint)
    return pixels


def _dark_and_light(class_index: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    hue = (class_index / len(CLASSES) + rng.normal(0, _HUE_SPREAD)) % 1
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.3, 0.5))
    light = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.4), rng.uniform(0.85, 1))
    return 255 * np.array([dark, light], dtype=np.float32)


def _boxes(tiles: Sequence[Tile], classes: npt.NDArray[np.int64]) -> Boxes:
    return Boxes(
        xyxy=np.array([(t.left, t.top, t.left + t.side, t.top + t.side) for t in tiles], dtype=np.float32),
        classes=classes,
        difficult=np.zeros(len(tiles), dtype=np.bool_),
    )
