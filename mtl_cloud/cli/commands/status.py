"""``mtl-cloud status``: the state of a run, once or until it is over."""

from __future__ import annotations

from dataclasses import asdict
from itertools import takewhile
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json, print_pairs, print_warnings
from mtl_cloud.cli.status_lines import state_words
from mtl_cloud.errors import LaunchError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from mtl_cloud.clock import Clock
    from mtl_cloud.runs.events import MachineNews
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.runs.summary import RunSummary


@click.command("status", epilog=run_examples("status", "status 3fa1", "status --follow"))
@run_options
@click.option("-f", "--follow", is_flag=True, help="Show the live view until the run is over; Ctrl-C detaches.")
@output_options
def command(*, run: str, storage: str | None, follow: bool, as_json: bool) -> None:
    """Show the state of a run.

    With --follow the exit code is 7 unless the run ends as done.

    JSON: {run_id, name, backend, storage, created_at, state, attempt, round, rounds, metrics, best, started_at,
    seconds, usd, machine}. best is as in `metrics --json`. The state is queued, running, stopping or lost;
    or, when the run is over, done, user_error, machine_error, interrupted, cancelled, out_of_time or out_of_budget.
    machine is a list of texts, the backend's last news of a machine that the run waits for; empty otherwise.
    """
    from mtl_cloud.clock import Clock
    from mtl_cloud.runs.summary import summarize

    if follow and as_json:
        raise UsageError("--follow and --json exclude each other", hint="mtl-cloud logs --follow --json gives events")
    record, clock = open_run(run, storage), Clock()
    if follow:
        _follow(record, clock)
    elif as_json:
        summary = summarize(record, clock.now())
        print_json({**asdict(summary), "machine": _machine(record, summary)})
    else:
        _print_summary(record, summarize(record, clock.now()))


def _follow(record: RunRecord, clock: Clock) -> None:
    from mtl_cloud.cli.attach import attach, require_done
    from mtl_cloud.cli.live_view import open_view

    require_done(record.run_id, attach(record, open_view(record.plan()), clock))


def _print_summary(record: RunRecord, summary: RunSummary) -> None:
    from mtl_cloud.report.formatting import dollars, duration, instant
    from mtl_cloud.report.metrics import describe_best

    plan, result = record.plan(), record.result()
    print_pairs(
        [
            ("run", summary.run_id),
            ("state", state_words(summary.state)),
            ("reason", result.message if result else ""),
            ("now", _now(record, summary)),
            *(("machine", words) for words in _machine(record, summary)),
            ("rounds", f"{summary.round} of {summary.rounds}"),
            *((task, value) for task, value in _metrics(summary)),
            ("best", describe_best(summary.best) if summary.best else ""),
            ("attempt", str(summary.attempt or "none yet")),
            ("created", instant(summary.created_at)),
            ("time", duration(summary.seconds)),
            ("cost", "" if summary.usd is None else dollars(summary.usd)),
            ("backend", summary.backend),
            ("storage", summary.storage),
        ]
    )
    print_warnings(plan.warnings)


def _now(record: RunRecord, summary: RunSummary) -> str:
    """The trainer's newest progress; empty when the run is over or nothing was reported yet."""
    from mtl_cloud.cli.status_lines import loss_words, position_words, speed_words

    beat = record.heartbeat(summary.attempt) if summary.attempt else None
    if beat is None or record.result() is not None:
        return ""
    progress = beat.progress
    parts = (beat.phase, position_words(progress), loss_words(progress), speed_words(progress))
    return " · ".join(part for part in parts if part)


def _machine(record: RunRecord, summary: RunSummary) -> list[str]:
    """The backend's latest news of a run without a running attempt, or its error."""
    from mtl_cloud.cli.attach import renting_launcher
    from mtl_cloud.launch import RunHandle

    launcher = renting_launcher(record) if summary.state in {"queued", "lost"} else None
    if launcher is None:
        return []
    try:
        news = launcher.watch(RunHandle.of(record.plan())).look()
    except (LaunchError, MissingExtraError) as error:
        return [f"{summary.backend} does not answer: {error}"]
    return [f"{one.phase}: {one.message}" for one in _last(news)]


def _last(news: list[MachineNews]) -> list[MachineNews]:
    """The newest news; if it is a refusal, all refusals since the last machine."""
    refusals = list(takewhile(lambda one: one.phase == "refused", reversed(news)))
    return refusals[::-1] or news[-1:]


def _metrics(summary: RunSummary) -> list[tuple[str, str]]:
    from mtl_cloud.report.metrics import format_metric, label
    from mtl_cloud.tasks import HEADLINE

    names = {str(task): metric for task, metric in HEADLINE.items()}
    values = summary.metrics.items()
    return [(task, f"{label(names[task], task)} {format_metric(names[task], value)}") for task, value in values]
