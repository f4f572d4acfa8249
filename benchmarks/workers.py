"""Effect of loader workers on training speed: 1 and 4 as in the published experiment, and 0 and 2.

    python benchmarks/workers.py VOCDEVKIT [--workers 0 1 2 4] [--steps 60] [--rounds 3]

Trains a narrow VGG16 as a run does (the trainer's step, batches of 16 from the loader) on random crops with the classes
of a VOC year. Rounds are interleaved. The Markdown table shows medians over the rounds of images/s, of the median and
the 95th percentile of a step (including data wait), of the fraction of time that a step waits for its batch, and of CPU
time per image of trainer and workers together.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import torch
from data_loading import _cpu_s
from training import first_attempt

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.train.build import JobData, open_data

BATCH, WARMUP_STEPS = 16, 10
Row = dict[str, float]


def main() -> None:
    options = _arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores is intended
    data = open_data(_job(options, 0))
    found: dict[int, list[Row]] = defaultdict(list)
    for _ in range(options.rounds):
        for workers in options.workers:
            found[workers].append(measure(_job(options, workers), data, options.steps))
    rows = {n: {what: statistics.median(row[what] for row in each) for what in each[0]} for n, each in found.items()}
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="VOCDEVKIT", help="folder with VOC2012/JPEGImages in it")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.03125, help="of VGG16's layers")
    parser.add_argument("--image-size", type=int, default=96, help="pixels; the larger, the less the loader matters")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _job(options: argparse.Namespace, workers: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "compute": {"gpu_count": 0},
            "dataset": {"name": "voc", "uri": options.source, "tasks": ["classification"]},
            "model": {"name": "vgg16", "width": options.width},
            "training": {
                "image_size": options.image_size,
                "fit": "crop",
                "batch_size": BATCH,
                "loader_workers": workers,
                "epochs_per_round": 10_000,
                "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
                "schedule": {"name": "constant"},
            },
        }
    )


def measure(job: JobSpec, data: JobData, steps: int) -> Row:
    """Measure ``steps`` steps, after those in which workers start."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = first_attempt(job, data, Path(folder))
        batches = trainer.training_batches(0)
        waits, totals, cpu = [], [], 0.0
        for number in range(WARMUP_STEPS + steps):
            if number == WARMUP_STEPS:
                cpu = _cpu_s()
            started = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - started)
            trainer._step(batch, waits[-1])  # noqa: SLF001  # the very step of a run
            totals.append(time.perf_counter() - started)
        cpu = _cpu_s() - cpu
        assert isinstance(batches, Generator)
        batches.close()
    waits, totals = waits[WARMUP_STEPS:], totals[WARMUP_STEPS:]
    return {
        "images_per_s": BATCH * steps / sum(totals),
        "p50_ms": 1000 * statistics.median(totals),
        "p95_ms": 1000 * statistics.quantiles(totals, n=20)[-1],
        "data_wait": sum(waits) / sum(totals),
        "cpu_ms_per_image": 1000 * cpu / (BATCH * steps),
    }


def _print(rows: dict[int, Row]) -> None:
    print(f"{os.cpu_count()} CPU cores, one thread a process, batches of {BATCH}\n")
    print("| loader workers | images/s | step p50, ms | step p95, ms | data wait, % | CPU ms/image |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers, row in rows.items():
        times = f"{row['p50_ms']:.0f} | {row['p95_ms']:.0f} | {100 * row['data_wait']:.1f}"
        print(f"| {workers} | {row['images_per_s']:.1f} | {times} | {row['cpu_ms_per_image']:.2f} |")


if __name__ == "__main__":
    main()
