"""When training counts as diverged: judged from every step's losses, without a wait for the device in a step.

The losses of some steps are kept where they are, and looked at together. The judgement is a function of the sequence of
losses alone, not of when one looks: a resumed run comes to the same one at the same step.
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

__all__ = ["DivergenceError", "DivergenceWatch", "require_finite"]

WINDOW_STEPS = 100
"""Of the running median; half as many must be known before a loss is held against it."""
_HINT = (
    "lower training.optimizer.lr, lengthen training.schedule.warmup_steps, or use precision: fp32; "
    "`training.on_divergence: rewind` goes back and lowers the rate by itself"
)


class DivergenceError(TrainingError):
    """Training has diverged: what happened at which step, to which tasks."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, hint=_HINT)
        self.step = step

    def after(self, rewinds: int) -> DivergenceError:
        """The error of a run that went back so many times in vain."""
        return DivergenceError(f"{self}; {rewinds} rewinds did not help", self.step)


@dataclass
class _Course:
    """One task's losses so far, as far as the judgement needs them."""

    first: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    steps_above: int = 0

    def judge(self, loss: float, spec: DivergenceSpec) -> str | None:
        """What is wrong with the next loss; None when nothing is."""
        if not math.isfinite(loss):
            return f"is {loss}"
        self.first = loss if self.first is None else self.first
        median = statistics.median(self.recent) if 2 * len(self.recent) >= WINDOW_STEPS else math.inf
        # A loss that is nearly nothing may jump by any factor; one that is over its untrained value has lost it all.
        self.steps_above = self.steps_above + 1 if loss > max(spec.loss_ratio * median, self.first) else 0
        self.recent.append(loss)
        if self.steps_above < spec.patience_steps:
            return None
        return f"is {loss:.4g}, for {self.steps_above} steps over {spec.loss_ratio:g} times its median of {median:.4g},"


class DivergenceWatch:
    """Sees every step's losses. Equal in all processes, because the losses are."""

    def __init__(self, tasks: Sequence[Task], spec: DivergenceSpec, *, every_steps: int) -> None:
        """``every_steps``: how many steps to look at together; each look waits for the device once."""
        self._courses = {task: _Course() for task in tasks}
        self._spec = spec
        self._every_steps = every_steps
        self._unseen: list[tuple[int, Tensor]] = []

    def add(self, step: int, losses: Tensor) -> None:
        """Take note of [2, tasks] totals and counts of ``step``. Raises as ``look`` when it is time for one."""
        self._unseen.append((step, losses))
        if len(self._unseen) >= self._every_steps:
            self.look()

    def look(self) -> None:
        """Judge what was not judged yet. Raises ``DivergenceError`` for the first step at which training diverged."""
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        rows = torch.stack([losses for _, losses in unseen]).tolist()
        for (step, _), (totals, counts) in zip(unseen, rows, strict=True):
            self._judge(step, zip(self._courses.items(), totals, counts, strict=True))

    def _judge(self, step: int, losses: Iterable[tuple[tuple[Task, _Course], float, float]]) -> None:
        found = [(task, course.judge(total / count, self._spec)) for (task, course), total, count in losses if count]
        if words := [f"the {task} loss {wrong}" for task, wrong in found if wrong]:
            raise DivergenceError(f"{' and '.join(words)} at step {step}", step)

    def state_dict(self) -> dict[str, Any]:
        """Of what was looked at; look before."""
        courses = self._courses.items()
        return {task: {**vars(course), "recent": list(course.recent)} for task, course in courses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unseen = []
        for task, course in state.items():
            self._courses[task] = _Course(course["first"], deque(course["recent"], WINDOW_STEPS), course["steps_above"])  # type: ignore[index]


def require_finite(network: nn.Module, step: int) -> None:
    """Raise ``DivergenceError`` when a parameter is not finite: the update of ``step`` did it, no loss shows it yet.

    Waits for the device.
    """
    finite = torch.stack([parameter.isfinite().all() for parameter in network.parameters()])
    if not finite.all():
        bad = [name for (name, _), good in zip(network.named_parameters(), finite.tolist(), strict=True) if not good]
        verb = "is" if len(bad) == 1 else "are"
        message = f"{len(bad)} of {len(finite)} parameters {verb} not finite after step {step}, first {bad[0]}"
        raise DivergenceError(message, step)
