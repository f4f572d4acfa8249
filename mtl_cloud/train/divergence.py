"""Detection of diverged training from every step's losses, without waiting for the device in each step.

Losses stay on the device and are checked several steps at a time. The result depends only on the sequence of losses,
not on when they are checked: a resumed run detects divergence at the same step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import DivergenceSpec
from mtl_cloud.tasks import Task

__all__ = ["DivergenceError", "DivergenceMonitor", "require_finite"]

WINDOW_STEPS = 100
"""Window of the running median; at least half of it must be filled before losses are compared with the median."""
_HINT = (
    "lower training.optimizer.lr, lengthen training.schedule.warmup_steps, or use precision: fp32; "
    "`training.on_divergence: rewind` returns to the last round and lowers the learning rate automatically"
)


class DivergenceError(TrainingError):
    """Training has diverged. The message names the step and the tasks."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, hint=_HINT)
        self.step = step

    def after(self, rewinds: int) -> DivergenceError:
        """The error after ``rewinds`` rewinds that did not help."""
        return DivergenceError(f"{self}; {rewinds} rewinds did not help", self.step)


@dataclass
class _LossHistory:
    """The part of one task's past losses that the check needs."""

    first: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    steps_above: int = 0

    def problem(self, loss: float, spec: DivergenceSpec) -> str | None:
        """Add the next loss. Returns the problem with it, or None."""
        if not math.isfinite(loss):
            return f"is {loss}"
        self.first = loss if self.first is None else self.first
        median = statistics.median(self.recent) if 2 * len(self.recent) >= WINDOW_STEPS else math.inf
        # A loss near zero may jump by any factor; only a loss above its untrained value counts as diverged.
        self.steps_above = self.steps_above + 1 if loss > max(spec.loss_ratio * median, self.first) else 0
        self.recent.append(loss)
        if self.steps_above < spec.patience_steps:
            return None
        return f"is {loss:.4g}, for {self.steps_above} steps over {spec.loss_ratio:g} times its median of {median:.4g},"


class DivergenceMonitor:
    """Checks every step's losses. All processes reach the same result, because they see the same losses."""

    def __init__(self, tasks: Sequence[Task], spec: DivergenceSpec, *, every_steps: int) -> None:
        """``every_steps``: number of steps to check at a time. Each check waits for the device once."""
        self._histories = {task: _LossHistory() for task in tasks}
        self._spec = spec
        self._every_steps = every_steps
        self._pending: list[tuple[int, Tensor]] = []

    def add(self, step: int, losses: Tensor) -> None:
        """Add [2, tasks] totals and counts of ``step``. Calls ``check`` once ``every_steps`` steps are pending."""
        self._pending.append((step, losses))
        if len(self._pending) >= self._every_steps:
            self.check()

    def check(self) -> None:
        """Check all pending losses. Raises ``DivergenceError`` for the first step at which training diverged."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = torch.stack([losses for _, losses in pending]).tolist()
        for (step, _), (totals, counts) in zip(pending, rows, strict=True):
            self._check_step(step, zip(self._histories.items(), totals, counts, strict=True))

    def _check_step(self, step: int, losses: Iterable[tuple[tuple[Task, _LossHistory], float, float]]) -> None:
        problems = [(task, history.problem(sum_ / n, self._spec)) for (task, history), sum_, n in losses if n]
        if diverged := [f"the {task} loss {problem}" for task, problem in problems if problem]:
            raise DivergenceError(f"{' and '.join(diverged)} at step {step}", step)

    def state_dict(self) -> dict[str, Any]:
        """State of the losses checked so far; call ``check`` first, because pending losses are not saved."""
        histories = self._histories.items()
        return {task: {**vars(history), "recent": list(history.recent)} for task, history in histories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pending = []
        for task, saved in state.items():
            recent = deque(saved["recent"], WINDOW_STEPS)
            self._histories[task] = _LossHistory(saved["first"], recent, saved["steps_above"])  # type: ignore[index]


def require_finite(network: nn.Module, step: int) -> None:
    """Raise ``DivergenceError`` if the update of ``step`` left a parameter that is not finite.

    The losses show it only in the next step. Waits for the device.
    """
    finite = torch.stack([parameter.isfinite().all() for parameter in network.parameters()])
    if not finite.all():
        bad = [name for (name, _), good in zip(network.named_parameters(), finite.tolist(), strict=True) if not good]
        verb = "is" if len(bad) == 1 else "are"
        message = f"{len(bad)} of {len(finite)} parameters {verb} not finite after step {step}, first {bad[0]}"
        raise DivergenceError(message, step)
