"""The view of a run in progress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

from mtl_cloud.cli.output import console
from mtl_cloud.cli.status_lines import loss_words, position_words, result_words, round_words, speed_words, state_words
from mtl_cloud.runs.events import (
    AttemptEnded,
    AttemptStarted,
    Finished,
    Lost,
    MachineNews,
    Progress,
    RoundDone,
    RunEvent,
)
from mtl_cloud.runs.schema import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from mtl_cloud.runs.schema import Heartbeat, PlanRecord

__all__ = ["LineView", "LiveView", "SilentView", "View", "open_view"]


class View(Protocol):
    """A context manager that shows a run's events."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, event: RunEvent) -> None: ...


def open_view(plan: PlanRecord) -> View:
    """The live view if standard output is a terminal, else the line view."""
    return LiveView(plan) if sys.stdout.isatty() else LineView(plan)


def milestone_words(event: RunEvent, rounds: int) -> str:
    """The line for a milestone; empty for other events (progress, log, an attempt that ended well)."""
    match event:
        case AttemptStarted(attempt):
            words = f"attempt {attempt.number} on {attempt.host}" + (f" ({attempt.device})" if attempt.device else "")
        case MachineNews(_, phase, message):
            words = f"{phase}: {message}"
        case RoundDone(record):
            words = round_words(record, rounds)
        case AttemptEnded(number, None):
            words = f"attempt {number} stopped reporting"
        case AttemptEnded(number, ending) if ending is not None and ending.outcome != Outcome.DONE:
            words = f"attempt {number} ended: {state_words(ending.outcome)}, {ending.message}"
        case Finished(result):
            words = result_words(result)
        case Lost(_, message):
            words = message
        case _:
            words = ""
    return words


class SilentView:
    """Shows nothing, for scripts that read only the result."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: RunEvent) -> None:
        pass


class LineView(SilentView):
    """Prints one line for each milestone and each epoch."""

    def __init__(self, plan: PlanRecord, write: Callable[[str], None] = click.echo) -> None:
        self._plan = plan
        self._write = write
        self._shown: tuple[object, ...] = ()

    def show(self, event: RunEvent) -> None:
        if isinstance(event, Progress):
            self._show_progress(event.heartbeat)
        elif line := milestone_words(event, self._plan.rounds):
            self._write(line)

    def _show_progress(self, heartbeat: Heartbeat) -> None:
        progress = heartbeat.progress
        now = (heartbeat.phase, progress.get("epoch"))
        if now != self._shown:
            self._shown = now
            parts = (heartbeat.phase, position_words(progress), loss_words(progress), speed_words(progress))
            self._write(" · ".join(part for part in parts if part))


class LiveView:
    """Prints milestones above a progress bar with losses and speed, which is redrawn at each heartbeat."""

    def __init__(self, plan: PlanRecord) -> None:
        from rich.live import Live

        self._plan = plan
        self._live: Live = Live(
            self._frame(None), console=console(), auto_refresh=False, transient=True, redirect_stderr=False
        )

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, event: RunEvent) -> None:
        if isinstance(event, Progress):
            self._live.update(self._frame(event.heartbeat), refresh=True)
        elif line := milestone_words(event, self._plan.rounds):
            self._live.console.print(line, markup=False)

    def _frame(self, heartbeat: Heartbeat | None) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        if heartbeat is None:
            return Text(f"{self._plan.run_id}: waiting for a machine", style="dim")
        progress = heartbeat.progress
        lines = (position_words(progress), loss_words(progress), speed_words(progress))
        title = Text.assemble((self._plan.run_id, "bold"), "  ", (heartbeat.phase, "cyan"))
        return Group(title, _bar(progress.get("step"), progress.get("steps")), *(Text(line) for line in lines if line))


def _bar(step: object, steps: object) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    if not isinstance(step, int) or not isinstance(steps, int) or not steps:
        return ProgressBar(total=1, completed=0, width=48)
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(
        ProgressBar(total=steps, completed=step, width=48, complete_style="cyan", finished_style="green"),
        f"{step / steps:.0%}",
    )
    return row
