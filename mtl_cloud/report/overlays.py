"""Sample images with boxes and masks drawn in, as data URIs."""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl_cloud.errors import RecordError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["class_colors", "overlay"]

_SIDE = 320
_IGNORED = 255
_MASK_SHARE = 0.5
_MOST_BOXES = 20
"""Boxes to draw, those with the highest scores: an untrained detector predicts hundreds."""
_GOLDEN_RATIO = 0.618034

Color = tuple[int, int, int]


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """A colour for each class name, with hues a golden section apart. Equal names of two tasks have one colour."""
    objects = [name for name in dict.fromkeys(names) if name != "background"]
    return {name: _hue(0.58 + number * _GOLDEN_RATIO) for number, name in enumerate(objects)}


def _hue(turn: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(turn % 1, 0.72, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: str, labels: Mapping[str, Any], colors: Mapping[str, Color], mask_classes: Sequence[str], *, key: str
) -> str:
    """The image (PNG, base64) with the boxes and the mask of ``labels`` as a ``data:`` URI.

    Small images are enlarged, so that lines and text are readable. Raises ``RecordError``, which names the sample, if
    an image cannot be decoded.
    """
    picture = _decoded(image, key).convert("RGB")
    if labels.get("mask"):
        picture = _tinted(picture, _decoded(labels["mask"], key), colors, mask_classes)
    factor = max(1, _SIDE // max(picture.size))
    large = _enlarged(picture, factor)
    for box in sorted(labels.get("boxes") or [], key=lambda box: box[1])[-_MOST_BOXES:]:
        _draw_box(large, box, factor, colors.get(box[0], (255, 255, 255)))
    return _data_uri(large)


def _decoded(text: str, key: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    except (binascii.Error, UnidentifiedImageError) as error:
        raise RecordError(f"sample {key}: its image in the run record cannot be decoded ({error})") from error


def _tinted(picture: Image, mask: Image, colors: Mapping[str, Color], names: Sequence[str]) -> Image:
    from PIL import Image

    palette = [0] * 768
    for index, name in enumerate(names[:_IGNORED]):
        palette[3 * index : 3 * index + 3] = colors.get(name, (0, 0, 0))
    indices = mask if mask.mode in {"L", "P"} else mask.convert("L")
    tint = Image.frombytes("P", indices.size, indices.tobytes())
    tint.putpalette(palette)
    unseen = {_IGNORED} | {index for index, name in enumerate(names) if name not in colors}
    share = [0 if index in unseen else round(255 * _MASK_SHARE) for index in range(256)]
    weight = Image.frombytes("L", indices.size, indices.tobytes()).point(share)
    return Image.composite(tint.convert("RGB"), picture, weight)


def _enlarged(picture: Image, factor: int) -> Image:
    from PIL.Image import Resampling

    return picture.resize((picture.width * factor, picture.height * factor), Resampling.NEAREST)


def _draw_box(picture: Image, box: Sequence[Any], factor: int, color: Color) -> None:
    from PIL import ImageDraw, ImageFont

    name, score = box[0], box[1]
    left, top, right, bottom = (float(value) * factor for value in box[2:6])
    size = max(12, max(picture.size) // 22)  # text stays readable when the page shows the picture at half its size
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=max(2, size // 6))
    text = name if score is None or score == 1 else f"{name} {score:.2f}"
    font = ImageFont.load_default(size=size)
    corner = (left + 3, max(0, top - size - 4))
    words = draw.textbbox(corner, text, font=font)
    draw.rectangle((words[0] - 3, words[1] - 2, words[2] + 3, words[3] + 2), fill=color)
    draw.text(corner, text, fill=(0, 0, 0), font=font)


def _data_uri(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
