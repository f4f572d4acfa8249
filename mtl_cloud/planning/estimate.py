"""Estimate how long a job takes on a machine. Pure.

The FLOPs of one image follow from network, image size and sharing. The share of a GPU's peak that training sustains is
assumed, as a range from the dated table ``catalog/speeds.json``, unless earlier rounds of the run have measured the
speed. Training costs three forward passes per image; a loader that decodes more slowly than the GPU trains sets the
limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mtl_cloud import catalog
from mtl_cloud.catalog import InstanceType
from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.jobspec.constraints import trained_tasks
from mtl_cloud.jobspec.job import DatasetSpec, JobSpec
from mtl_cloud.runs.plan_facts import Estimate, Range
from mtl_cloud.tasks import NETWORK_TASKS, Task

__all__ = ["data_gigabytes", "estimate", "forward_gflop", "speeds_date", "training_images"]

_SUBNETS: dict[Task, str] = {"classification": "vgg16", "detection": "yolov3", "segmentation": "fcn_resnet50"}
_BACKWARD = 3  # forward, and twice as much backward: gradients of inputs and of weights
_START_HOURS = 0.15  # boot, driver, image pull
_DOWNLOAD_SHARE = 0.3  # of the network bandwidth
_DOWNLOAD_GB_PER_S = 1.0  # at most


def estimate(
    job: JobSpec, machine: InstanceType, *, measured_images_per_s: float | None = None, rounds_done: int = 0
) -> Estimate | None:
    """The time of the whole job, or of its remainder; None if the machine has no GPU or none of the table."""
    rate, limit = _rate(job, machine, measured_images_per_s)
    if rate is None:
        return None
    left = max(0, job.training.rounds - rounds_done) / job.training.rounds
    images = round(left * training_images(job))
    work = images + round(left * job.training.rounds * _split_size(job, "val")) / _BACKWARD
    download = data_gigabytes(job) / _gb_per_s(machine) / 3600
    fixed = _START_HOURS + download
    return Estimate(
        machine=machine.name,
        images=images,
        gflop_per_image=_BACKWARD * forward_gflop(job),
        images_per_s=rate,
        limit=limit,
        download_hours=download,
        hours=(fixed + work / rate[1] / 3600, fixed + work / rate[0] / 3600),
        date=speeds_date(),
    )


def speeds_date() -> str:
    """ISO date of the assumed speeds."""
    return str(_speeds()["date"])


# --- work ------------------------------------------------------------------------------------------------------------


def training_images(job: JobSpec) -> int:
    """Images that the job trains on, over all rounds and epochs."""
    training, epoch = job.training, _split_size(job, "train")
    if training.max_steps_per_epoch is not None:
        epoch = min(epoch, training.max_steps_per_epoch * training.batch_size)
    return training.rounds * training.epochs_per_round * epoch


def data_gigabytes(job: JobSpec) -> float:
    """GB that the published datasets have."""
    return sum(DATASETS[spec.name].gigabytes for spec in job.datasets)


def forward_gflop(job: JobSpec) -> float:
    """GFLOP of one image's forward pass (a multiply-add is two), without exchange layers: some per cent at most."""
    megapixels = _side_squared(job) / 1e6
    return job.model.width**2 * sum(gflop for _, gflop in _parts(job, megapixels))


def _parts(job: JobSpec, megapixels: float) -> Iterator[tuple[str, float]]:
    """Each network that runs, with its GFLOP."""
    for name, is_trunk in _running(job):
        network = _speeds()["networks"][name]
        hard = [stage for stage, kind in job.model.sharing.items() if kind == "hard"]
        dropped = 0.0 if is_trunk else sum(network["stages"][stage - 1] for stage in hard)
        yield name, megapixels * (network["gflop_per_megapixel"] - dropped) + network["gflop_fixed"]


def _running(job: JobSpec) -> list[tuple[str, bool]]:
    """The networks that process an image, and whether each computes its own early stages.

    Without sharing, a sub-network of ``mtl_net`` whose task has no labels does not run.
    """
    if job.model.name != "mtl_net":
        return [(job.model.name, True)]
    built = job.model.tasks or NETWORK_TASKS["mtl_net"]
    shares = any(kind != "none" for kind in job.model.sharing.values())
    tasks = [task for task in NETWORK_TASKS["mtl_net"] if task in (built if shares else trained_tasks(job))]
    return [(_SUBNETS[task], task == tasks[-1]) for task in tasks]


def _side_squared(job: JobSpec) -> float:
    """Pixels of an image; the mean for several sizes."""
    low, high = job.training.multi_scale or (job.training.image_size, job.training.image_size)
    sides = range(low, high + 1, 32)
    return sum(side * side for side in sides) / len(sides)


def _split_size(job: JobSpec, split: str) -> int:
    """Images of all datasets together."""
    return sum(min(_images(spec, split), _limit(spec, split)) for spec in job.datasets)


def _images(spec: DatasetSpec, split: str) -> int:
    known = DATASETS[spec.name]
    return known.train_images if split == "train" else known.val_images


def _limit(spec: DatasetSpec, split: str) -> int:
    limit = spec.max_train_samples if split == "train" else spec.max_val_samples
    return 2**63 if limit is None else limit


# --- speed -----------------------------------------------------------------------------------------------------------


def _rate(job: JobSpec, machine: InstanceType, measured: float | None) -> tuple[Range | None, str]:
    """Images per second in training, and their limit."""
    if measured:
        return (measured, measured), "measured"
    gpus = _gpu_rate(job, machine)
    if gpus is None:
        return None, ""
    caps = {"loader": _loader_rate(job, machine), "steps": _step_rate(job)}
    limit = min(caps, key=lambda name: caps[name])
    if caps[limit] < gpus[1]:
        return (min(gpus[0], caps[limit]), caps[limit]), limit
    return gpus, "gpu"


def _gpu_rate(job: JobSpec, machine: InstanceType) -> Range | None:
    gpu = _speeds()["gpus"].get(machine.gpu)
    if gpu is None or not job.compute.gpu_count:
        return None
    precision = "fp32" if job.training.precision == "fp32" else "half"
    own = gpu.get("fp32_share") if precision == "fp32" else None
    scale = _scaling(job.processes) * job.processes * gpu[precision] * 1000
    least, most = (scale / _seconds_at_peak(job, own, end) for end in (0, 1))
    return least, most


def _seconds_at_peak(job: JobSpec, own: list[float] | None, end: int) -> float:
    """GFLOP of a training image, each network's divided by the share of the peak that it reaches."""
    parts = _parts(job, _side_squared(job) / 1e6)
    shares = _speeds()["networks"]
    weighted = sum(gflop / (own or shares[name]["share"])[end] for name, gflop in parts)
    return float(_BACKWARD * job.model.width**2 * weighted)


def _scaling(gpus: int) -> float:
    """Scaling efficiency of n GPUs: it falls with each doubling, at the rate measured up to eight."""
    return float(_speeds()["scaling_of_8"] ** (math.log2(gpus) / 3))


def _step_rate(job: JobSpec) -> float:
    """The limit from kernel launches, which take time even in small steps."""
    ms = sum(_speeds()["networks"][name]["launch_ms"] for name, _ in _running(job))
    return float(1000 * job.training.batch_size / ms)


def _loader_rate(job: JobSpec, machine: InstanceType) -> float:
    """Infinite where there is next to nothing to decode."""
    if not any(DATASETS[spec.name].is_jpeg for spec in job.datasets):
        return math.inf
    workers = max(1, job.training.loader_workers) * job.processes
    return float(_speeds()["jpegs_per_s_per_core"] * min(workers, machine.vcpus * job.instances))


def _gb_per_s(machine: InstanceType) -> float:
    return min(_DOWNLOAD_GB_PER_S, _DOWNLOAD_SHARE * machine.network_gbit / 8)


@cache
def _speeds() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(catalog.__file__).parent / "speeds.json").read_text(encoding="utf-8"))
    return table
