"""What the whole job may take on the machine that it names: memory, hours and dollars, from counted FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from mtl_cloud.catalog import InstanceType
from mtl_cloud.plan import Facts
from mtl_cloud.records import Json
from mtl_cloud.spec.job import JobSpec

__all__ = ["Estimate", "estimate"]

# Dense peak of tensor cores in TFLOP/s, (32-bit convolutions as PyTorch runs them: TF32 from Ampere on; 16-bit), from
# NVIDIA's datasheets. GPUs that are not here are not estimated.
_PEAK_TFLOPS = {
    "T4": (8.1, 65.0),
    "V100": (15.7, 125.0),
    "A10G": (35.0, 70.0),
    "L4": (60.0, 121.0),
    "A100": (156.0, 312.0),
    "L40S": (183.0, 362.0),
    "H100": (494.0, 989.0),
    "H200": (494.0, 989.0),
}
_USED = 0.25
"""Share of the peak that convolutional training reaches; between 0.15 and 0.4 in published figures."""
_LOADED_PER_VCPU = 100.0
"""Images a second that one vCPU decodes and augments, of VOC's size."""
_BACKWARD = 3
"""A training step costs about three forward passes."""
_CONTEXT_GIB = 1.5
"""CUDA's context, kernels and cuDNN's workspace."""


@dataclass(frozen=True)
class Estimate:
    """Rough, and said to be. None: not known for this machine."""

    memory_gib: float
    """Of one GPU at the job's batch and image size."""
    gpu_memory_gib: float | None
    images_per_s: float | None
    hours: float | None
    usd: float | None


def estimate(job: JobSpec, facts: Facts, probe: dict[str, Json]) -> Estimate:
    """Of ``job`` on its first candidate machine. ``probe`` is what ``mtl_cloud.train.probe`` printed for it."""
    machine = facts.candidates[0].machine if facts.candidates else None
    counted = {name: float(value) for name, value in probe.items() if isinstance(value, int | float)}
    rate = _images_per_s(job, machine, counted["forward_flops"])
    hours = None if rate is None else _work(job, counted) / rate / 3600
    price = facts.usd_per_hour
    return Estimate(
        memory_gib=_memory_gib(job, counted),
        gpu_memory_gib=machine.gpu_memory_gib if machine and machine.gpu else None,
        images_per_s=rate,
        hours=hours,
        usd=None if hours is None or price is None else hours * price * facts.machines,
    )


def _memory_gib(job: JobSpec, counted: dict[str, float]) -> float:
    training = job.training
    width = 1.0 if training.precision == "fp32" else 0.5
    side = max(training.multi_scale or (training.image_size,)) / training.image_size
    images = -(-training.batch_size // job.processes)
    activations = counted["activation_bytes"] * images * width * side**2
    return (counted["state_bytes"] + activations) / 2**30 + _CONTEXT_GIB


def _images_per_s(job: JobSpec, machine: InstanceType | None, forward_flops: float) -> float | None:
    """The slower of what the GPUs compute and what the CPUs load."""
    if machine is None or machine.gpu not in _PEAK_TFLOPS or job.compute.gpu_count == 0:
        return None
    peak = _PEAK_TFLOPS[machine.gpu][job.training.precision != "fp32"] * 1e12
    computed = job.compute.gpu_count * peak * _USED / (_BACKWARD * forward_flops)
    return min(computed, machine.vcpus * _LOADED_PER_VCPU)


def _work(job: JobSpec, counted: dict[str, float]) -> float:
    """Trained images, and validated ones as the third part that they cost."""
    training = job.training
    epoch = counted["train_images"]
    if training.max_steps_per_epoch is not None:
        epoch = min(epoch, training.max_steps_per_epoch * training.batch_size)
    return training.rounds * (training.epochs_per_round * epoch + counted["val_images"] / _BACKWARD)
