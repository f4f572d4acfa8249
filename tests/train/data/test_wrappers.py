"""Training and validation get nearly the same pixels however far an image was scaled down while decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from dataset_harness import Altered
from narrowing import present
from PIL import Image
from torch import Tensor

from mtl_cloud.datasets.base import Dataset, DecodeHint, HintFor, Sample, full_decode
from mtl_cloud.datasets.formats.voc import open_voc
from mtl_cloud.jobspec.job import AugmentSpec, Fit
from mtl_cloud.train.data.buffers import BufferPool
from mtl_cloud.train.data.crops import GREY, Crops
from mtl_cloud.train.data.loader import TrainingView, ValidationView
from mtl_cloud.train.data.sampler import Draw
from mtl_cloud.train.data.transforms import Canvas, Placement, decode_hint, letterbox


@dataclass(frozen=True)
class FullDecode(Altered):
    """Decodes every image in full."""

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return super().load(index, full_decode)


@pytest.fixture(scope="module")
def voc(voc_photographs: Path) -> Dataset:
    return open_voc(str(voc_photographs / "VOCdevkit"), "train")


@pytest.mark.parametrize("size", [96, 224])
def test_training_sees_the_same_boxes_and_masks_and_nearly_the_same_pixels(voc: Dataset, size: int) -> None:
    view = TrainingView(voc, size, AugmentSpec(), seed=3)
    whole = replace(view, dataset=FullDecode(voc))
    differences = []
    for index in range(40):
        (ours, color, image), (theirs, other, from_whole) = (_load(each, Draw(1, index)) for each in (view, whole))
        assert ours.detection is not None
        assert theirs.detection is not None
        assert np.array_equal(ours.detection.xyxy, theirs.detection.xyxy)
        assert (ours.segmentation is None) == (theirs.segmentation is None)
        if ours.segmentation is not None:
            assert torch.equal(ours.segmentation, present(theirs.segmentation))
        assert np.array_equal(color, other)
        differences.append(_levels(image, from_whole))
    assert sum(difference > 0 for difference in differences) >= 10, "images were shrunk"
    assert fmean(differences) < 3


def test_validation_sees_nearly_the_same_pixels_and_never_enlarges_a_shrunk_image(voc: Dataset) -> None:
    view, whole = ValidationView(voc, 224), ValidationView(FullDecode(voc), 224)
    differences = []
    for index in range(20):
        shape = voc.load(index, lambda *shape: decode_hint(shape, letterbox(shape, 224), 224)).image.shape
        assert max(shape) >= 224
        differences.append(_levels(_load(view, index)[-1], _load(whole, index)[-1]))
    assert fmean(differences) < 3


def _least(divisor: int, rows: int) -> HintFor:
    return lambda _height, _width: DecodeHint(divisor, rows)


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_rows_that_are_asked_for_are_those_of_the_whole_image_and_the_others_black(voc: Dataset, divisor: int) -> None:
    """They are decoded alone: the last row's colours do not depend on rows that are left out."""
    for index in range(12):
        whole = voc.load(index, lambda height, _: DecodeHint(divisor, height)).image
        for rows in (1, 33, 160, 200, len(whole) * divisor - 1):
            part = voc.load(index, _least(divisor, rows)).image
            wanted = -(-rows // divisor)
            assert part.shape == whole.shape
            assert np.array_equal(part[:wanted], whole[:wanted])
            assert not part[wanted + 20 :].any()


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_crops_and_letterboxes_are_those_of_pillow(voc: Dataset, fit: Fit) -> None:
    """Pillow decodes the whole image and resizes from the exact, fractional crop; ours starts at whole pixels. The
    shift of up to half a source pixel moves edges by at most 3 of 255 levels on average, with no bias.
    """
    view, differences = TrainingView(voc, 160, AugmentSpec(), seed=3, fit=fit), []
    for index in range(40):
        ours = _load(view, Draw(1, index))[-1].float()
        whole = Image.fromarray(voc[index].image)
        placement, _ = view._draw(Draw(1, index), (whole.height, whole.width))
        theirs = torch.from_numpy(np.array(_drawn_by_pillow(whole, placement, 160))).permute(2, 0, 1).float()
        differences.append(torch.stack([(ours - theirs).abs().mean(), (ours - theirs).mean().abs()]))
    apart, bias = torch.stack(differences).mean(0).tolist()
    assert apart < 3
    assert bias < 0.2


def _drawn_by_pillow(image: Image.Image, place: Placement, size: int) -> Image.Image:
    scale_x, scale_y = image.width / place.width, image.height / place.height
    x0, y0 = max(0, place.left), max(0, place.top)
    x1, y1 = min(size, place.left + place.width), min(size, place.top + place.height)
    box = tuple(
        np.clip([(x0 - place.left) * scale_x, (y0 - place.top) * scale_y], 0, None).tolist()
        + np.minimum([(x1 - place.left) * scale_x, (y1 - place.top) * scale_y], image.size).tolist()
    )
    part = image.resize((round(x1) - round(x0), round(y1) - round(y0)), Image.Resampling.BILINEAR, box)
    canvas = Image.new("RGB", (size, size), (GREY, GREY, GREY))
    canvas.paste(part, (round(x0), round(y0)))
    return canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place.flip else canvas


def _load(view: TrainingView | ValidationView, index: Any) -> tuple[Canvas, Any, Tensor]:
    """A sample, its colour factors, and its image as resized on the CPU."""
    buffer = BufferPool(1).take()
    canvas, color = view.load(index, buffer)
    (image,) = Crops.of(buffer.pixels(), [canvas.image], view.size).resize(torch.device("cpu"))
    return canvas, color, image


def _levels(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference of pixels, in levels of 255."""
    return (one.float() - other.float()).abs().mean().item()
