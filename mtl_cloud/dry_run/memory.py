"""Estimate whether the whole job fits the memory of its GPU, from bytes that the probe counted."""

from __future__ import annotations

from dataclasses import dataclass

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.json_types import Json
from mtl_cloud.planning.plan import Facts

__all__ = ["MemoryNeed", "memory_need"]

_CONTEXT_GIB = 1.5
"""CUDA's context, kernels and cuDNN's workspace."""


@dataclass(frozen=True)
class MemoryNeed:
    """Estimated memory of one GPU, at the job's batch and image size."""

    memory_gib: float
    gpu_memory_gib: float | None
    """Memory of the GPU; None for a job without a GPU machine."""


def memory_need(job: JobSpec, facts: Facts, probe: dict[str, Json]) -> MemoryNeed:
    """The need of ``job`` on its first candidate machine. ``probe`` is the output of ``mtl_cloud.train.probe``."""
    machine = facts.candidates[0].machine if facts.candidates else None
    counted = {name: float(value) for name, value in probe.items() if isinstance(value, int | float)}
    return MemoryNeed(_gib(job, counted), machine.gpu_memory_gib if machine and machine.gpu else None)


def _gib(job: JobSpec, counted: dict[str, float]) -> float:
    training = job.training
    width = 1.0 if training.precision == "fp32" else 0.5
    side = max(training.multi_scale or (training.image_size,)) / training.image_size
    images = -(-training.batch_size // job.processes)
    activations = counted["activation_bytes"] * images * width * side**2
    return (counted["state_bytes"] + activations) / 2**30 + _CONTEXT_GIB
