"""Sums over a round. They stay on the device, so that no step waits for it, and are part of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_cloud.tasks import Task

__all__ = ["LossMeter", "RoundMeter"]


class LossMeter:
    """Each task's mean loss over many batches: sum of losses divided by sum of counts."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.tasks = tuple(tasks)
        self.totals = torch.zeros(len(self.tasks), dtype=torch.float64, device=device)
        self.counts = torch.zeros(len(self.tasks), dtype=torch.float64, device=device)

    def add(self, totals: Tensor, counts: Tensor) -> None:
        """Add one batch: [tasks] sums and counts, in the order of ``tasks``."""
        self.totals += totals.detach()
        self.counts += counts.detach()

    def means(self) -> dict[Task, float | None]:
        """Mean loss of each task, None if nothing was labelled. Waits for the device."""
        pairs = zip(self.tasks, self.totals.tolist(), self.counts.tolist(), strict=True)
        return {task: total / count if count else None for task, total, count in pairs}

    def reset(self) -> None:
        self.totals.zero_()
        self.counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.totals.copy_(state["totals"])
        self.counts.copy_(state["counts"])


class RoundMeter:
    """Losses, images and times of the current round, over all attempts."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.losses = LossMeter(tasks, device)
        self.images = 0
        self.seconds = 0.0
        self.wait_s = 0.0

    def reset(self) -> None:
        self.losses.reset()
        self.images, self.seconds, self.wait_s = 0, 0.0, 0.0

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Fraction of the time (0..1) that the loop waited for data."""
        return self.wait_s / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.losses.state_dict(),
            "images": self.images,
            "seconds": self.seconds,
            "wait_s": self.wait_s,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses.load_state_dict(state)
        self.images, self.seconds, self.wait_s = state["images"], state["seconds"], state["wait_s"]
