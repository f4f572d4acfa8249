"""Resizing a loader's image crops on the device to the network's input.

    python benchmarks/squares.py [--device cuda] [--batch 64] [--size 224] [--fit crop letterbox] [--turns 5] [--json]

Images are noise of 500 x 375 pixels, randomly cropped as in training, in pinned memory if the device is a GPU. Ours is
compared with a plain script (each crop to the device, to floats, through torch's resize) and with the lower bound, a
copy of images that were resized before. Sides take turns; ratios are medians over these. On a GPU the last line says
whether the host waits for the device in ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.jobspec.job import AugmentSpec
from mtl_cloud.train.data.crops import GREY, CropRegion, Crops
from mtl_cloud.train.data.transforms import SampleRng, draw_crop, draw_placement, visible_region

_HEIGHT, _WIDTH = 375, 500
_DRAWS = {"crop": draw_crop, "letterbox": draw_placement}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--fit", nargs="+", choices=list(_DRAWS), default=list(_DRAWS))
    parser.add_argument("--batches", type=int, default=10, help="of each side in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {fit: measure(fit, options) for fit in options.fit}
    print(json.dumps(found, indent=2) if options.json else _table(found))


def measure(fit: str, options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every side, the ratio of ours to them, and MiB that ours uses on a GPU beside its result."""
    device = torch.device(options.device)
    crops = _crops(fit, options.batch, options.size)
    made = crops.resize(torch.device("cpu"))
    if device.type == "cuda":
        crops, made = Crops(crops.pixels.pin_memory(), crops.regions.pin_memory(), crops.size), made.pin_memory()
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: crops.resize(device),
        "plain": lambda: _plainly(crops, device),
        "copy": lambda: made.to(device, copy=True, non_blocking=True),
    }
    assert torch.equal(sides["ours"]().cpu(), made.cpu())
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + options.turns):
        for name, make in sides.items():
            rate = options.batch * options.batches / _seconds(make, options.batches, device)
            rates[name] += [rate] if turn else []
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True))
        for name in rates
    }
    found = {"images_per_s": {name: statistics.median(rate) for name, rate in rates.items()}, "ratio": ratios}
    return found | (_on_a_gpu(sides["ours"]) if device.type == "cuda" else {})


def _crops(fit: str, count: int, size: int) -> Crops:
    """Parts one after another, as a loader has them."""
    placements = [_DRAWS[fit]((_HEIGHT, _WIDTH), size, AugmentSpec(), SampleRng(0).at(0, i)) for i in range(count)]
    regions, start = [], 0
    for placement in placements:
        region = visible_region((_HEIGHT, _WIDTH), placement, size)
        regions.append(region._replace(start=start, stride=region.width))
        start += region.height * region.width
    return Crops.of(torch.randint(0, 256, (start, 3), dtype=torch.uint8), regions, size)


def _plainly(crops: Crops, device: torch.device) -> Tensor:
    squares = torch.full((len(crops.regions), 3, crops.size, crops.size), GREY, dtype=torch.uint8, device=device)
    for square, numbers in zip(squares, crops.regions.tolist(), strict=True):
        region = CropRegion(*numbers)
        part = crops.pixels[region.start :][: region.height * region.width].to(device, non_blocking=True)
        image = part.view(1, region.height, region.width, 3).permute(0, 3, 1, 2).float()
        shape = region.bottom - region.top, region.right - region.left
        resized = F.interpolate(image, shape, mode="bilinear", antialias=True)[0].round_().clamp_(0, 255)
        square[:, region.top : region.bottom, region.left : region.right] = resized
        if region.flip:
            square.copy_(square.flip(-1))
    return squares


def _seconds(make: Callable[[], Tensor], count: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(count):
        make()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _on_a_gpu(make: Callable[[], Tensor]) -> dict[str, Any]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make()
        waits = None
    except RuntimeError as error:
        waits = str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"mib": (torch.cuda.max_memory_allocated() - before) / 2**20, "host_waits": waits}


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{fit:>9}  {name:>5}  {rate:9.0f} images/s  ours is {sides['ratio'][name]:.2f} times as fast"
        for fit, sides in found.items()
        for name, rate in sides["images_per_s"].items()
    ]
    gpu = [
        f"{fit:>9}  {sides['mib']:.0f} MiB at its peak; the host waits: {sides['host_waits'] or 'never'}"
        for fit, sides in found.items()
        if "mib" in sides
    ]
    return "\n".join([*lines, *gpu])


if __name__ == "__main__":
    main()
