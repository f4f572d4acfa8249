"""Exponential moving average (EMA) of the weights, which is validated and exported if ``training.ema`` is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["MovingAverage"]


class MovingAverage:
    """A copy of a network that holds the moving average of that network's weights.

    Update n (0-based) uses the decay ``min(decay, (1 + n) / (10 + n))``: TensorFlow's warm-up, so that the initial
    weights do not dominate a long average. Running statistics of batch normalisation are averaged like weights, as in
    torchvision's recipes and timm; counters are copied.

    The arithmetic is torch's ``get_ema_multi_avg_fn``. Its ``AveragedModel`` is not used, because each of its updates
    moves a counter to the device and waits for it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).requires_grad_(requires_grad=False)
        self._decay = decay
        self._updates = 0
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average. Call it after each optimizer step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        own, current = ([tensor.detach() for tensor in side] for side in zip(*self._averaged, strict=True))
        get_ema_multi_avg_fn(decay)(own, current, self._updates)
        for counter, newest in self._copied:
            counter.copy_(newest)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        self.network.load_state_dict(state["network"])


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
