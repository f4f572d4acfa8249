"""``python -m mtl_cloud.train.probe``: measure a job's data and memory in its container, before renting a machine.

Reads a resolved job (``spec.json``) from standard input, opens its data, and builds its network on torch's meta device,
which allocates no memory. Prints one JSON object, or exits with the error's exit code if the job cannot run.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor

from mtl_cloud.errors import MtlCloudError
from mtl_cloud.jobspec.job import JobSpec, PretrainedSpec
from mtl_cloud.jobspec.load import job_from_json
from mtl_cloud.train.build import JobData, open_data
from mtl_cloud.train.nets import build_network

__all__ = ["probe"]

_PAIR = 2
"""Images in the measured forward pass: batch normalisation needs more than one."""
_STATES = {"sgd": 1, "adamw": 2}
"""Tensors that the optimizer keeps for each parameter."""
_BYTES_PER_VALUE = 4


def probe(job: JobSpec) -> dict[str, Any]:
    """Measure a job.

    Returns ``train_images``, ``val_images``, ``tasks``, ``parameters``; ``state_bytes`` of weights, gradients and
    optimizer; ``activation_bytes`` of one image; ``gpus`` that torch sees here. Raises ``MtlCloudError`` if the job
    cannot run.
    """
    data = open_data(job)
    parameters, activations = _network_size(job, data)
    return {
        "train_images": len(data.train),
        "val_images": len(data.val),
        "tasks": list(data.train.info.tasks),
        "parameters": parameters,
        "state_bytes": parameters * _BYTES_PER_VALUE * (2 + _STATES[job.training.optimizer.name]),
        "activation_bytes": activations,
        "gpus": torch.cuda.device_count(),
    }


def _network_size(job: JobSpec, data: JobData) -> tuple[int, int]:
    """Number of parameters, and bytes per image that a forward pass saves for the backward pass."""
    spec = job.model.model_copy(update={"pretrained": PretrainedSpec()})
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # noqa: SLF001  # identifies a meta tensor's storage
        return tensor

    with torch.device("meta"):
        network = build_network(spec, data.classes)
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}  # noqa: SLF001
        images = torch.zeros(_PAIR, 3, job.training.image_size, job.training.image_size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(images)
    del outputs
    activations = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    total = sum(parameter.numel() for parameter in network.parameters())
    return total, activations // _PAIR


def main() -> int:
    try:
        job = job_from_json(sys.stdin.buffer.read(), source="standard input")
        found = probe(job)
    except MtlCloudError as error:
        sys.stderr.write(f"{error.with_hint}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
