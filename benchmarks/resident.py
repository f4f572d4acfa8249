"""Batches of a small dataset that is cached on the device, compared with those of loader workers.

    python benchmarks/resident.py [--device cuda] [--workers 0 1 2] [--batch 128] [--image-size 32] [--turns 5] [--json]

The dataset repeats one image of noise, 32 x 32 like CIFAR-10's. All sides give the same batches, bit for bit, on the
device; they take turns, and ratios are medians over the turns. A side's first batches, while workers start, are not
counted. On a CPU the cache gains nothing, because the device and the workers use the same cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtl_cloud.datasets.base import DatasetInfo, HintFor, Sample
from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.device_cache import DeviceCache
from mtl_cloud.train.data.loader import Collate, training_batches
from mtl_cloud.train.data.sampler import BatchSampler

_CLASSES = tuple("0123456789")
_WARM_UP = 10


@dataclass(frozen=True)
class Noise:
    """Number of CIFAR-10's training images."""

    pixels: npt.NDArray[np.uint8]

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo("noise", "train", {"classification": _CLASSES})

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.key(index), self.pixels, classification=index % 10)

    def load(self, index: int, hint_for: HintFor) -> Sample:  # noqa: ARG002  # these pixels are not encoded
        return self[index]

    def key(self, index: int) -> str:
        return str(index)

    def labels(self, index: int) -> frozenset[Task]:  # noqa: ARG002  # every sample carries the same
        return frozenset(self.info.tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=100, help="of each side in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options)
    print(json.dumps(found, indent=2) if options.json else _table(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every side in every turn, and the speed-up of the device cache."""
    device = torch.device(options.device)
    noise = Noise(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    sides = {f"{workers} workers": _batches(noise, options, workers=workers) for workers in options.workers}
    sides["resident"] = _batches(noise, options, workers=0, device_cache=DeviceCache.of(noise, device))
    for batches in sides.values():
        _take(batches, _WARM_UP, device)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, batches) in itertools.product(range(options.turns), sides.items()):
        rates[name].append(options.batch * options.batches / _take(batches, options.batches, device))
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(rates["resident"], rates[name], strict=True))
        for name in rates
    }
    return {"images_per_s": {name: statistics.median(rate) for name, rate in rates.items()}, "ratio": ratios}


def _batches(
    noise: Noise, options: argparse.Namespace, *, workers: int, device_cache: DeviceCache | None = None
) -> Iterator[Batch]:
    training = TrainingSpec(batch_size=options.batch, image_size=options.image_size, loader_workers=workers)
    sampler = BatchSampler(
        sizes=(len(noise),),
        shards=(None,),
        batch_size=options.batch,
        epochs=1000,
        seed=0,
        sampling=training.sampling,
        mixing=training.mixing,
        max_steps_per_epoch=None,
        rank=0,
        world=1,
    )
    collate, pin = Collate({"classification": _CLASSES}, multi_label=False), options.device != "cpu"
    return training_batches(noise, training, collate, sampler, start=0, pin=pin, device_cache=device_cache)


def _take(batches: Iterator[Batch], count: int, device: torch.device) -> float:
    """Seconds until ``count`` batches are on the device."""
    start = time.perf_counter()
    for batch in itertools.islice(batches, count):
        batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{name:>10}  {rate:9.0f} images/s  resident is {found['ratio'][name]:.2f} times as fast"
        for name, rate in found["images_per_s"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
