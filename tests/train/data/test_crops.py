"""Every device resizes crops to the same pixels as torchvision on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from mtl_cloud.jobspec.job import AugmentSpec
from mtl_cloud.train.data import crops as crops_module
from mtl_cloud.train.data.crops import GREY, CropRegion, Crops, resize_batched
from mtl_cloud.train.data.transforms import Placement, SampleRng, draw_crop, draw_placement, letterbox, visible_region

SIDES = st.integers(1, 70)


@st.composite
def batches(draw: st.DrawFn) -> Crops:
    """Crops of images of any sizes, drawn as in training. Other pixels lie between the images."""
    size, jitter = draw(st.integers(4, 80)), draw(st.floats(0, 0.5))
    regions: list[CropRegion[int]] = []
    end = 0
    for number, shape in enumerate(draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5))):
        make = draw(st.sampled_from([draw_placement, draw_crop, lambda shape, size, *_: letterbox(shape, size)]))
        placement = make(shape, size, AugmentSpec(jitter=jitter), SampleRng(draw(st.integers(0, 99))).at(0, number))
        regions.append(_shifted(visible_region(shape, placement, size), end))
        end += shape[0] * shape[1] + draw(st.integers(0, 9))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (end, 3), dtype=np.uint8)
    return Crops.of(torch.from_numpy(pixels), regions, size)


def _shifted(region: CropRegion[int], by: int) -> CropRegion[int]:
    return region._replace(start=region.start + by)


def resized_by_torchvision(crops: Crops) -> Tensor:
    squares = torch.full((len(crops.regions), 3, crops.size, crops.size), GREY, dtype=torch.uint8)
    for square, numbers in zip(squares, crops.regions.tolist(), strict=True):
        region = CropRegion(*numbers)
        rows = [crops.pixels[region.start + row * region.stride :][: region.width] for row in range(region.height)]
        part = torch.stack(rows).permute(2, 0, 1)
        shape = [region.bottom - region.top, region.right - region.left]
        square[:, region.top : region.bottom, region.left : region.right] = v2.resize(part, shape, antialias=True)
        if region.flip:
            square.copy_(square.flip(-1))
    return squares


@settings(deadline=None, max_examples=300)
@given(batches())
def test_resized_crops_are_torchvisions_bit_for_bit_by_the_code_for_cpus_and_for_gpus(crops: Crops) -> None:
    wanted = resized_by_torchvision(crops)
    for ours in (crops.resize(torch.device("cpu")), resize_batched(*crops)):
        assert torch.equal(ours, wanted)
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_batches_that_need_too_much_memory_are_resized_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = _noise(shape=(40, 60), size=32, count=7)
    whole = resize_batched(*crops)
    monkeypatch.setattr(crops_module, "_MAX_PIXELS", 40 * 32 * 3)
    groups: list[int] = []
    together = crops_module._resize_group

    def watched(pixels: Tensor, regions: Tensor, size: int) -> Tensor:
        groups.append(len(regions))
        return together(pixels, regions, size)

    monkeypatch.setattr(crops_module, "_resize_group", watched)
    assert torch.equal(resize_batched(*crops), whole)
    assert groups == [3, 3, 1]


def test_the_host_does_not_wait_for_the_device() -> None:
    """A tensor without data stands for one that is still being computed: reading its values is an error."""
    crops = _noise(shape=(40, 60), size=32, count=4)
    with pytest.raises(RuntimeError):
        crops.pixels.to("meta").max().item()
    squares = crops.resize(torch.device("meta"))
    assert (squares.shape, squares.dtype, squares.is_meta) == ((4, 3, 32, 32), torch.uint8, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [draw_crop, draw_placement])
def test_a_gpu_resizes_to_the_same_pixels(make: Callable[..., Placement]) -> None:
    crops = _noise(shape=(375, 500), size=224, count=16, make=make)
    pinned = Crops(crops.pixels.pin_memory(), crops.regions.pin_memory(), crops.size)
    assert torch.equal(pinned.resize(torch.device("cuda")).cpu(), crops.resize(torch.device("cpu")))


def _noise(*, shape: tuple[int, int], size: int, count: int, make: Callable[..., Placement] = draw_placement) -> Crops:
    pixels = torch.randint(0, 256, (count * shape[0] * shape[1], 3), dtype=torch.uint8)
    placements = [make(shape, size, AugmentSpec(), SampleRng(0).at(0, i)) for i in range(count)]
    regions = [_shifted(visible_region(shape, p, size), i * shape[0] * shape[1]) for i, p in enumerate(placements)]
    return Crops.of(pixels, regions, size)
