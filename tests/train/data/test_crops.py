"""Every device makes the same squares of parts of images: those of torchvision's resize on the CPU."""

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
from mtl_cloud.train.data import crops as cuts_module
from mtl_cloud.train.data.crops import GREY, Cuts, Span, squares_together
from mtl_cloud.train.data.transforms import Placement, SampleRng, draw_crop, draw_placement, letterbox, seen

SIDES = st.integers(1, 70)


@st.composite
def batches(draw: st.DrawFn) -> Cuts:
    """Parts of images of any sizes, as they would be drawn; images lie one after another, and others between them."""
    size, jitter = draw(st.integers(4, 80)), draw(st.floats(0, 0.5))
    spans: list[Span[int]] = []
    end = 0
    for number, shape in enumerate(draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5))):
        make = draw(st.sampled_from([draw_placement, draw_crop, lambda shape, size, *_: letterbox(shape, size)]))
        placement = make(shape, size, AugmentSpec(jitter=jitter), SampleRng(draw(st.integers(0, 99))).at(0, number))
        spans.append(_later(seen(shape, placement, size), end))
        end += shape[0] * shape[1] + draw(st.integers(0, 9))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (end, 3), dtype=np.uint8)
    return Cuts.of(torch.from_numpy(pixels), spans, size)


def _later(span: Span[int], by: int) -> Span[int]:
    return span._replace(start=span.start + by)


def resized_by_torchvision(cuts: Cuts) -> Tensor:
    squares = torch.full((len(cuts.spans), 3, cuts.size, cuts.size), GREY, dtype=torch.uint8)
    for square, numbers in zip(squares, cuts.spans.tolist(), strict=True):
        span = Span(*numbers)
        rows = [cuts.pixels[span.start + row * span.stride :][: span.width] for row in range(span.height)]
        part = torch.stack(rows).permute(2, 0, 1)
        shape = [span.bottom - span.top, span.right - span.left]
        square[:, span.top : span.bottom, span.left : span.right] = v2.resize(part, shape, antialias=True)
        if span.flip:
            square.copy_(square.flip(-1))
    return squares


@settings(deadline=None, max_examples=300)
@given(batches())
def test_squares_are_torchvisions_bit_for_bit_on_the_cpu_and_by_the_kernels_of_a_gpu(cuts: Cuts) -> None:
    wanted = resized_by_torchvision(cuts)
    for ours in (cuts.squares(torch.device("cpu")), squares_together(*cuts)):
        assert torch.equal(ours, wanted)
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_batches_that_take_too_much_memory_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = _noise(shape=(40, 60), size=32, count=7)
    whole = squares_together(*cuts)
    monkeypatch.setattr(cuts_module, "_AT_ONCE", 40 * 32 * 3)
    asked: list[int] = []
    together = cuts_module._together

    def watched(pixels: Tensor, spans: Tensor, size: int) -> Tensor:
        asked.append(len(spans))
        return together(pixels, spans, size)

    monkeypatch.setattr(cuts_module, "_together", watched)
    assert torch.equal(squares_together(*cuts), whole)
    assert asked == [3, 3, 1]


def test_nothing_of_what_lies_on_a_device_is_waited_for() -> None:
    """A tensor without data stands for one that is still being computed: looking at its values is an error."""
    cuts = _noise(shape=(40, 60), size=32, count=4)
    with pytest.raises(RuntimeError):
        cuts.pixels.to("meta").max().item()
    squares = cuts.squares(torch.device("meta"))
    assert (squares.shape, squares.dtype, squares.is_meta) == ((4, 3, 32, 32), torch.uint8, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [draw_crop, draw_placement])
def test_a_gpu_makes_the_same_squares(make: Callable[..., Placement]) -> None:
    cuts = _noise(shape=(375, 500), size=224, count=16, make=make)
    pinned = Cuts(cuts.pixels.pin_memory(), cuts.spans.pin_memory(), cuts.size)
    assert torch.equal(pinned.squares(torch.device("cuda")).cpu(), cuts.squares(torch.device("cpu")))


def _noise(*, shape: tuple[int, int], size: int, count: int, make: Callable[..., Placement] = draw_placement) -> Cuts:
    pixels = torch.randint(0, 256, (count * shape[0] * shape[1], 3), dtype=torch.uint8)
    placements = [make(shape, size, AugmentSpec(), SampleRng(0).at(0, i)) for i in range(count)]
    spans = [_later(seen(shape, p, size), i * shape[0] * shape[1]) for i, p in enumerate(placements)]
    return Cuts.of(pixels, spans, size)
