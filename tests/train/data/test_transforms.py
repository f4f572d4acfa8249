"""Placing a sample on the network's input moves image, boxes and mask together."""

from __future__ import annotations

import colorsys
import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as v2
from trainer_harness import on_square

from mtl_cloud.datasets.base import IGNORE, Boxes, Sample
from mtl_cloud.jobspec.job import AugmentSpec
from mtl_cloud.train.data.crops import GREY, Crops
from mtl_cloud.train.data.transforms import (
    Placement,
    SampleRng,
    apply_color,
    center_crop,
    draw_crop,
    draw_placement,
    letterbox,
    place,
    visible_region,
)

COLOR = (250, 10, 40)


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> Sample:
    """A coloured rectangle on black, with the box and the mask that describe it."""
    left, top, right, bottom = box
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top:bottom, left:right] = COLOR
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 7
    boxes = Boxes(np.array([box], dtype=np.float32), np.array([3]), np.array([False]))
    return Sample("scene", image, detection=boxes, segmentation=mask)


def test_letterbox_scales_to_fit_and_centres() -> None:
    assert letterbox((200, 400), 100) == Placement(left=0, top=25, width=100, height=50)


def test_letterboxed_image_keeps_its_pixels_and_is_framed_in_grey() -> None:
    canvas, image = on_square(scene(50, 100, (0, 0, 100, 50)), letterbox((50, 100), 100), 100)
    assert image[:, 25:75].reshape(3, -1).unique(dim=1).T.tolist() == [list(COLOR)]
    assert image[:, :25].unique().tolist() == image[:, 75:].unique().tolist() == [GREY]
    assert canvas.segmentation is not None
    assert canvas.segmentation[:25].unique().tolist() == [IGNORE]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(40, 160),
    width=st.integers(40, 160),
    seed=st.integers(0, 1000),
    jitter=st.floats(0, 0.5),
    flip=st.sampled_from([0.0, 1.0]),
)
def test_boxes_stay_on_their_objects(height: int, width: int, seed: int, jitter: float, flip: float) -> None:
    """The moved box is the extent of the object's pixels in the moved mask and image. The tolerance is half an image
    pixel, because only whole ones are pasted, plus one and a half canvas pixels, because the image's edge and the
    object's are rounded there."""
    sample = scene(height, width, (width // 4, height // 3, width - 10, height - 8))
    placement = draw_placement(sample.image.shape, 96, AugmentSpec(flip=flip, jitter=jitter), SampleRng(seed).at(0, 0))
    canvas, image = on_square(sample, placement, 96)
    assert canvas.segmentation is not None
    assert canvas.detection is not None
    bound = np.tile([placement.width / width, placement.height / height], 2) / 2 + 1.5
    painted = image[0].int() - image[1].int() > (COLOR[0] - COLOR[1]) / 2
    for shown in (canvas.segmentation == 7, painted):
        ys, xs = torch.nonzero(shown, as_tuple=True)
        extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (np.abs(extent - canvas.detection.xyxy) <= bound).all()


@pytest.mark.parametrize("shape", [(300, 500), (256, 256), (224, 150)])
def test_a_centre_crop_is_that_of_torchvisions_classification_preset(shape: tuple[int, int]) -> None:
    """torchvision resizes the whole image first: the two differ by less than a source pixel in position."""
    ramp = np.add.outer(np.linspace(0, 120, shape[0]), np.linspace(0, 120, shape[1])).astype(np.uint8)
    image = np.stack([ramp] * 3, axis=-1)
    _, ours = on_square(Sample("ramp", image), center_crop(image.shape, 224), 224)
    resized = v2.resize(torch.from_numpy(image).permute(2, 0, 1), [256], antialias=True)
    theirs = v2.center_crop(resized, [224, 224])
    assert (ours.int() - theirs.int()).abs().max() <= 2


@settings(max_examples=60, deadline=None)
@given(height=st.integers(20, 300), width=st.integers(20, 300), seed=st.integers(0, 1000))
def test_a_random_crop_fills_the_square_with_a_part_of_the_image(height: int, width: int, seed: int) -> None:
    """There is no padding, and the crop's area and aspect ratio are within torchvision's ranges."""
    placement = draw_crop((height, width, 3), 64, AugmentSpec(min_area=0.25), SampleRng(seed).at(0, 0))
    assert max(placement.left, placement.top) <= 1e-6
    assert min(placement.left + placement.width, placement.top + placement.height) >= 64 - 1e-6
    seen_width, seen_height = 64 / placement.width * width, 64 / placement.height * height
    assert 3 / 4 - 1e-6 <= seen_width / seen_height <= 4 / 3 + 1e-6
    assert seen_width * seen_height <= height * width * (1 + 1e-9)
    if max(height, width) <= 4 / 3 * min(height, width):
        assert seen_width * seen_height >= 0.25 * height * width - 1e-6


def test_a_box_of_which_too_little_is_left_is_dropped() -> None:
    sample = scene(100, 100, (0, 0, 20, 100))
    outside, _ = on_square(sample, Placement(left=-18, top=0, width=100, height=100), 100)
    inside, _ = on_square(sample, Placement(left=-10, top=0, width=100, height=100), 100)
    assert outside.detection is not None
    assert inside.detection is not None
    assert len(outside.detection.classes) == 0
    assert inside.detection.xyxy.tolist() == [[0, 0, 10, 100]]


def test_a_mirrored_image_is_the_mirror_of_the_image() -> None:
    sample = Sample("noise", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    _, straight = on_square(sample, Placement(0, 0, 64, 64), 64)
    _, mirrored = on_square(sample, Placement(0, 0, 64, 64, flip=True), 64)
    assert torch.equal(mirrored, straight.flip(-1))
    assert straight.permute(1, 2, 0).numpy().tolist() == sample.image.tolist()


def test_a_large_image_takes_little_memory_and_is_resized_all_the_same() -> None:
    """For example a PNG, which no decoder scales. It looks the same as when the device resizes the full crop."""
    sample = Sample("noise", np.random.default_rng(0).integers(0, 256, (900, 700, 3), dtype=np.uint8))
    placement = Placement(left=-10, top=5, width=70, height=80, flip=True)
    kept: list[int] = []

    def keep(part: npt.NDArray[np.uint8]) -> int:
        kept.append(part.size)
        return 0

    canvas = place(sample, placement, 64, keep)
    assert kept == [(canvas.image.bottom - canvas.image.top) * (canvas.image.right - canvas.image.left) * 3]
    as_it_is = Crops.of(torch.from_numpy(sample.image).view(-1, 3), [visible_region((900, 700), placement, 64)], 64)
    assert torch.equal(on_square(sample, placement, 64)[1], as_it_is.resize(torch.device("cpu"))[0])


def test_draws_depend_on_seed_epoch_and_sample_only() -> None:
    augment = AugmentSpec()
    rng = SampleRng(0)
    draws = [draw_placement((50, 70), 64, augment, rng.at(*key)) for key in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_a_samples_generator_is_philox_under_its_key_independent_of_earlier_draws() -> None:
    """An odd number of 32-bit draws leaves half a 64-bit word buffered, and a 64-bit draw the rest of a block."""
    rng = SampleRng(7)
    rng.at(2, 5).integers(0, 9, dtype=np.uint32)
    rng.at(2, 6).random()
    for ours in (rng.at(3, 11), pickle.loads(pickle.dumps(rng)).at(3, 11)):
        theirs = np.random.Generator(np.random.Philox(key=[7, (3 << 32) + 11]))
        assert ours.integers(0, 9, 51, dtype=np.uint32).tolist() == theirs.integers(0, 9, 51, dtype=np.uint32).tolist()
        assert ours.random(50).tolist() == theirs.random(50).tolist()


def test_neutral_color_factors_change_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(apply_color(images, torch.ones(2, 3)), images, atol=1e-6)


@pytest.mark.parametrize("image", range(3))
def test_zero_saturation_is_grey_and_brightness_multiplies(image: int) -> None:
    images = torch.rand(3, 3, 4, 4) * 0.5
    grey = apply_color(images, torch.tensor([[1.0, 1.0, 0.0]] * 3))[image]
    assert torch.allclose(grey[0], grey[1])
    assert colorsys.rgb_to_hsv(*grey[:, 0, 0].tolist())[1] == pytest.approx(0, abs=1e-6)
    bright = apply_color(images, torch.tensor([[1.5, 1.0, 1.0]] * 3))[image]
    assert torch.allclose(bright, images[image] * 1.5)
