"""One attempt: runs the trainer, ships its log, sends heartbeats and polls stop conditions."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from mtl_cloud.errors import LaunchError, MissingExtraError
from mtl_cloud.names import ENV_ATTEMPT, ENV_HANG_S, ENV_RUN_ID, ENV_SCRATCH, ENV_STORAGE
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Heartbeat, PlanRecord
from mtl_cloud.runs.scratch import Scratch, StopReason
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import AttemptEnd, classify
from mtl_cloud.supervise.graceful_stop import first_stop, supervise_process
from mtl_cloud.supervise.health import BEAT
from mtl_cloud.supervise.host_metrics import host_readings
from mtl_cloud.supervise.log import LogShipper, append_line
from mtl_cloud.supervise.periodic import Periodic
from mtl_cloud.supervise.preemption import Ec2Watcher
from mtl_cloud.supervise.secrets import NO_SECRETS, Secrets, read_secrets, why_unreadable
from mtl_cloud.supervise.stop_conditions import (
    CancelWatcher,
    DeadlineWatcher,
    HangWatcher,
    OwnerWatcher,
    PolledWatcher,
    Stop,
    Watcher,
)
from mtl_cloud.supervise.trainer_process import TrainerProcess, trainer_command
from mtl_cloud.user_dirs import tail

__all__ = ["Attempt"]

_TAIL_LINES = 200
_SWEEP_EVERY_S = 3600.0
_UNFINISHED_S = 3600.0
"""Older unfinished uploads belong to no running process."""


class _Report(Protocol):
    """Reports what is new since its last call."""

    def __call__(self, *, last: bool = False) -> None: ...


@dataclass(frozen=True)
class Attempt:
    """A claimed attempt. Its subfolder of the scratch folder holds its log and the files shared with the trainer."""

    run: RunRecord
    plan: PlanRecord
    number: int
    context: SupervisorContext
    secrets: Secrets = NO_SECRETS
    """The secrets that ``run_to_end`` has read."""

    @property
    def scratch(self) -> Scratch:
        return Scratch(self.context.scratch / f"{self.number:04d}")

    @property
    def log(self) -> Path:
        return self.scratch.folder / "log.txt"

    def run_to_end(self) -> AttemptEnd:
        """Run the trainer to its end. Afterwards the whole log and the last progress are in the run record."""
        self._make_folder()
        return replace(self, secrets=self._read_secrets())._run()  # noqa: SLF001  # the same attempt

    def _run(self) -> AttemptEnd:
        cancel, owner = CancelWatcher(self.run), OwnerWatcher(self.run, self.number)
        cancel.look()
        with self._reporting():
            exit_code, stop = self._run_trainer([cancel, owner, *self._notices()])
            stop = _true_stop(stop, cancel, owner)
            ending = classify(exit_code, stop, self.scratch.failure(), tail(self.log, _TAIL_LINES))
            ending = replace(ending, message=self.secrets.hide(ending.message.encode()).decode())
            self.say(f"attempt {self.number} ended as {ending.outcome}: {ending.message}")
        return ending

    def say(self, text: str) -> None:
        """Append a line of the supervisor to the log."""
        with contextlib.suppress(OSError):  # a full disk; the run record has the same message
            append_line(self.log, f"mtl-cloud: {text}")

    def _make_folder(self) -> None:
        # This process alone holds the claim, so an existing folder belongs to a deleted run of the same id.
        shutil.rmtree(self.scratch.folder, ignore_errors=True)
        self.scratch.folder.mkdir(parents=True)
        self.log.touch()

    def _read_secrets(self) -> Secrets:
        """On failure, store it as the trainer's failure; the trainer is then not started."""
        try:
            return read_secrets(self.plan.secrets)
        except (LaunchError, MissingExtraError) as error:
            self.scratch.write_failure(why_unreadable(error))
            return NO_SECRETS

    # --- the trainer ---

    def _run_trainer(self, inquirers: Sequence[PolledWatcher]) -> tuple[int | None, Stop | None]:
        """The exit code (None: not started), and the reason if the trainer was asked to stop."""
        watchers = [*self.context.watchers, *self._limits(), *inquirers]
        if self.context.nodes.leads:  # trainers on worker nodes report no progress
            watchers.append(HangWatcher(self.scratch, self.context.settings.hang_s, self.context.clock))
        stop = first_stop(watchers)
        if stop is not None or self.scratch.failure() is not None:
            return None, stop
        command = trainer_command(self.plan, sys.executable, nodes=self.context.nodes, attempt=self.number)
        self.say(f"attempt {self.number} starts {shlex.join(command)}")
        with contextlib.ExitStack() as stack:
            for inquirer in inquirers:
                stack.enter_context(self._repeat(type(inquirer).__name__, inquirer.look, self._every_poll))
            if self.context.nodes.leads:
                stack.enter_context(self._repeat("sweep", self._sweep, lambda _age_s: _SWEEP_EVERY_S))
            trainer = stack.enter_context(TrainerProcess(command, self._trainer_environ(), self.log))
            return supervise_process(trainer, watchers, self.scratch, self.context.settings)

    def _sweep(self) -> None:
        removed = self.run.sweep(self.context.clock.now() - timedelta(seconds=_UNFINISHED_S))
        if removed:
            self.say(f"removed the remains of {removed} unfinished uploads from the storage")

    def _notices(self) -> Iterator[PolledWatcher]:
        if self.context.metadata is not None:
            yield Ec2Watcher(self.context.metadata, self.context.clock, save_early=self._save_early)

    def _save_early(self, because: str) -> None:
        self.say(f"{because}: asking the trainer for a checkpoint")
        self.scratch.request_save()

    def _limits(self) -> Iterator[Watcher]:
        """The deadline and the budget of the run, less what it has used so far."""
        plan, clock = self.plan, self.context.clock
        bill = bill_of(self.run, now=clock.now())
        if plan.deadline_s is not None:
            message = f"the run's {plan.deadline_s / 3600:g} hours are used up"
            yield DeadlineWatcher(StopReason.DEADLINE, plan.deadline_s - bill.seconds, message, clock)
        if plan.budget_usd is not None and plan.usd_per_hour:
            message = f"the budget of ${plan.budget_usd:.2f} is used up"
            left_s = (plan.budget_usd - bill.budgeted_usd(plan.usd_per_hour)) / plan.usd_per_hour * 3600
            yield DeadlineWatcher(StopReason.BUDGET, left_s, message, clock)

    def _trainer_environ(self) -> dict[str, str]:
        return {
            # torch's CPU threads spin while they wait for each other. On shared cores, spinning without limit makes a
            # step many times slower; not spinning at all halves the speed on idle cores.
            "GOMP_SPINCOUNT": "10000",
            **self.context.environ,
            "PYTHONUNBUFFERED": "1",  # the log is live
            **self.plan.env,
            **self.secrets.values,
            ENV_STORAGE: self.run.storage.url,
            ENV_RUN_ID: self.run.run_id,
            ENV_ATTEMPT: str(self.number),
            ENV_SCRATCH: str(self.scratch.folder),
            ENV_HANG_S: str(self.context.settings.hang_s),
        }

    # --- log and heartbeats ---

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Ship the log and send heartbeats; at the end, wait until the storage has the last of both."""
        reports = dict(self._reports())
        with contextlib.ExitStack() as stack:
            for what, report in reports.items():
                stack.enter_context(self._repeat(what, report, self.context.settings.pace))
            yield
        for report in reports.values():
            report(last=True)

    def _reports(self) -> Iterator[tuple[str, _Report]]:
        if self.context.nodes.leads:
            yield "log", LogShipper(self.log, self._send, self.secrets).ship
            yield "heartbeat", self._beat
        if self.context.echo:
            yield "echo", LogShipper(self.log, _print, self.secrets).ship

    def _repeat(self, what: str, action: Callable[[], None], interval_s: Callable[[float], float]) -> Periodic:
        return Periodic(what, action, interval_s=interval_s, report=self.say, clock=self.context.clock)

    def _every_poll(self, _age_s: float) -> float:
        return self.context.settings.poll_s

    def _send(self, number: int, data: bytes) -> None:
        self.run.append_log(self.number, number, data)

    def _beat(self, *, last: bool = False) -> None:  # noqa: ARG002  # the last heartbeat is like any other
        progress = self.scratch.progress()
        phase = str(progress.pop("phase", "starting"))
        record = Heartbeat(
            at=self.context.now(),
            phase="stopping" if self.scratch.stop_reason() else phase,
            progress=progress,
            host=host_readings(self.scratch.folder),
        )
        self.run.write_heartbeat(self.number, record)
        with contextlib.suppress(OSError):  # a full disk
            (self.scratch.folder / BEAT).touch()


def _print(_number: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # standard output was closed; the run record has the whole log
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _true_stop(stop: Stop | None, cancel: CancelWatcher, owner: OwnerWatcher) -> Stop | None:
    """The real reason for a stop, where a second source is more precise than the first.

    Backends cancel by SIGTERM, and a trainer may notice that it was replaced before its supervisor does.
    """
    if stop is None:
        owner.look()
        return owner.poll()
    if stop.reason is StopReason.SIGTERM:
        cancel.look()
        return cancel.poll() or stop
    return stop
