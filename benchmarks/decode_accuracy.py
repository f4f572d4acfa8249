"""Effect on accuracy of decoding JPEGs at the network's size.

    OMP_NUM_THREADS=1 python benchmarks/decode_accuracy.py ILSVRC2012 [--seeds 0 1 2] [--epochs 20] [--image-size 64]

The same job is trained twice for each seed: on images as our loader decodes them (libjpeg-turbo, which skips rows
outside the crop, and scales during decoding if an image is shrunk to half or less), and on images that Pillow decodes
at full size. Each network is then validated on both. Random numbers and everything after the decoder are the same on
both sides, so only the decoders' output differs.

The table shows top-1 over the seeds, mean and standard deviation, and how often one network predicts the same class on
both decoders' images. The line below it is the mean difference of pairs with the same seed and its standard error. The
line above it is the fraction of images that were scaled during decoding; all pixels of the others are the same.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from training import first_attempt

from mtl_cloud.datasets.base import HintFor, Sample
from mtl_cloud.datasets.formats.imagenet import ImageNetDataset
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.data.buffers import BufferPool
from mtl_cloud.train.data.loader import Collate, TrainingView, validation_batches
from mtl_cloud.train.data.sampler import Draw
from mtl_cloud.train.tasks.losses import forward
from mtl_cloud.train.trainer import Trainer

OURS, PILLOW = "ours", "Pillow"
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DecodedWhole(ImageNetDataset):
    """A dataset that decodes whole images with Pillow, whatever the hint."""

    def load(self, index: int, hint_for: HintFor) -> Sample:  # noqa: ARG002
        image = np.array(Image.open(io.BytesIO(self.read(index))).convert("RGB"))
        return Sample(self.key(index), image, classification=int(self.targets[index]))


@dataclass(frozen=True)
class Watched(ImageNetDataset):
    """A dataset that records for each image whether it was decoded smaller than it is stored."""

    shrunk: list[bool]

    def load(self, index: int, hint_for: HintFor) -> Sample:
        sample = super().load(index, hint_for)
        self.shrunk.append(sample.image.shape[:2] != sample.shape)
        return sample


def main() -> None:
    options = _arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    data = open_data(_job(options, 0))
    found: dict[str, Any] = {"shrunk": _shrunk(data, _job(options, 0)), "seeds": []}
    for seed in options.seeds:
        found["seeds"].append(measure(_job(options, seed), data))
        if not options.json:
            print(f"seed {seed}: {_one_line(found['seeds'][-1])}", flush=True)
    print(json.dumps(found, indent=2) if options.json else _table(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="ILSVRC2012", help="folder with train/ and val/, or their tars, in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=64, help="pixels; the smaller, the more images are shrunk")
    parser.add_argument("--width", type=float, default=0.25, help="of MTLLite's layers")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _job(options: argparse.Namespace, seed: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "compute": {"gpu_count": 0},
            "dataset": {"name": "imagenet", "uri": options.source},
            "model": {"name": "mtl_lite", "width": options.width},
            "training": {
                "rounds": 1,
                "epochs_per_round": options.epochs,
                "batch_size": 32,
                "image_size": options.image_size,
                "fit": "crop",
                "loader_workers": 0,
                "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
                "schedule": {"warmup_steps": 100},
                "augment": {"color": 0, "min_area": 0.25},
                "seed": seed,
            },
            "checkpoint": {"every_minutes": None},
        }
    )


def _shrunk(data: JobData, job: JobSpec) -> dict[str, float]:
    """Fraction of the images that are scaled during decoding, in the first epoch and in validation."""
    watched = {name: Watched(**vars(split), shrunk=[]) for name, split in (("train", data.train), ("val", data.val))}
    view = TrainingView(watched["train"], job.training.image_size, job.training.augment, job.training.seed, "crop")
    for index in range(len(view.dataset)):
        view.load(Draw(0, index), BufferPool(1).take())
    for _ in _validation(watched["val"], job, data):
        pass
    return {name: statistics.fmean(each.shrunk) for name, each in watched.items()}


def measure(job: JobSpec, data: JobData) -> dict[str, dict[str, float]]:
    """Map trained on -> validated on -> top-1; ``agree`` is the fraction of images with the same class on both."""
    whole = replace(data, train=DecodedWhole(**vars(data.train)), val=DecodedWhole(**vars(data.val)))
    assert isinstance(data.val, ImageNetDataset)
    targets = data.val.targets
    found = {}
    for trained_on, its_data in ((OURS, data), (PILLOW, whole)):
        with tempfile.TemporaryDirectory() as folder:
            trainer = first_attempt(job, its_data, Path(folder))
            assert trainer.fit()
        named = {on: _named(trainer, each) for on, each in ((OURS, data), (PILLOW, whole))}
        found[trained_on] = {on: float((labels == targets).mean()) for on, labels in named.items()}
        assert found[trained_on][trained_on] == trainer.run.rounds()[-1].metrics["classification"]["top1"]
        found[trained_on]["agree"] = float((named[OURS] == named[PILLOW]).mean())
    return found


def _named(trainer: Trainer, data: JobData) -> Labels:
    """Predicted classes of the validation split, [images]."""
    trainer.network.eval()
    with torch.inference_mode():
        batches = (batch.to(torch.device("cpu")) for batch in _validation(data.val, trainer.job, data))
        outputs = [forward(trainer.network, batch.floats(), trainer.replica.autocast) for batch in batches]
    labels: Labels = torch.cat([output["classification"].argmax(1) for output in outputs]).numpy()
    return labels


def _validation(split: Any, job: JobSpec, data: JobData) -> Any:
    return validation_batches(split, job.training, Collate(data.classes, multi_label=False), rank=0, world=1, pin=False)


def _one_line(row: dict[str, dict[str, float]]) -> str:
    return "  ".join(
        f"{trained_on} on {on} {100 * row[trained_on][on]:.1f} %" for trained_on in row for on in (OURS, PILLOW)
    )


def _table(found: dict[str, Any]) -> str:
    rows = found["seeds"]
    shrunk = {name: f"{100 * share:.0f} %" for name, share in found["shrunk"].items()}
    lines = [
        f"shrunk while they are decoded: {shrunk['train']} of the training images, {shrunk['val']} of validation\n",
        "| trained on | validated on ours | validated on Pillow | the same class, % |",
        "| :--- | ---: | ---: | ---: |",
    ]
    for trained_on in (OURS, PILLOW):
        cells = [_spread([100 * row[trained_on][what] for row in rows]) for what in (OURS, PILLOW, "agree")]
        lines.append(f"| {trained_on} | {' | '.join(cells)} |")
    apart = [100 * (row[OURS][OURS] - row[PILLOW][PILLOW]) for row in rows]
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    lines.append(f"\nours less Pillow, each by itself: {statistics.fmean(apart):+.2f} ± {error:.2f} points of top-1")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else math.nan:.1f}"


if __name__ == "__main__":
    main()
