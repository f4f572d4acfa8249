"""States of all random generators of a trainer process, for checkpoints."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "restore", "seed_all"]


def seed_all(seed: int, *, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices); each rank gets its own stream, for dropout."""
    stream = (seed + rank * 0x9E3779B9) % 2**32
    random.seed(stream)
    np.random.seed(stream)  # noqa: NPY002  # other libraries use the global generator
    torch.manual_seed(stream)


def capture() -> dict[str, Any]:
    """The generators' states: tensors and JSON values only."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(state: Mapping[str, Any]) -> None:
    """Restore the states of ``capture``. A CUDA state is ignored on a machine without CUDA."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
