"""Failure policy, as pure functions: why an attempt ended, and whether to restart, finish or leave the run."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtl_cloud.names import TrainerExit
from mtl_cloud.runs.attempts import AttemptOutcome
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.scratch import Failure, StopReason
from mtl_cloud.supervise.stop_conditions import Stop

__all__ = ["AttemptEnd", "Decision", "classify", "decide"]

_STOPPED_FOR = {
    StopReason.CANCEL: Outcome.CANCELLED,
    StopReason.DEADLINE: Outcome.OUT_OF_TIME,
    StopReason.BUDGET: Outcome.OUT_OF_BUDGET,
    StopReason.SIGTERM: Outcome.INTERRUPTED,
    StopReason.SPOT: Outcome.INTERRUPTED,
    StopReason.MAINTENANCE: Outcome.INTERRUPTED,
    StopReason.HANG: Outcome.MACHINE_ERROR,
    None: Outcome.INTERRUPTED,
}
_TORCHRUN_EXIT_CODE = re.compile(
    r"^\s*exitcode\s*:\s*(-?\d+)"
)  # in torchrun's report, below "Root Cause (first observed failure)"
_PYTHON_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::.*)?)$")
_TORCHRUN_ERROR = "ChildFailedError"  # torchrun's own last line, which hides the error of the worker
_LOST_PEER = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms for|timeout caused pair closure"  # gloo
    r"|Dist(?:Network|Store)Error|RendezvousConnectionError"  # torch's store, and torchrun over it
    r"|remote process exited or there was a network error|communicator was aborted|operation timeout"  # NCCL
)
"""Errors that the remaining processes raise when another process of the training, or its machine, is gone."""


@dataclass(frozen=True)
class AttemptEnd:
    """The end of an attempt, for its ``exit.json``."""

    outcome: Outcome
    exit_code: int | None
    message: str


def classify(exit_code: int | None, stop: Stop | None, failure: Failure | None, log_tail: Sequence[str]) -> AttemptEnd:
    """Derive the outcome of an attempt from how its trainer ended.

    ``exit_code`` is that of the process: negative for the signal that ended it, None when it was not started. ``stop``
    is the reason for which the trainer was asked to stop, if it was. ``log_tail`` holds the last lines that are not
    blank.
    """
    exit_code = _worker_exit_code(exit_code, log_tail)
    if exit_code == TrainerExit.DONE:
        return AttemptEnd(Outcome.DONE, exit_code, "all rounds are done")
    if stop is not None:
        return AttemptEnd(_STOPPED_FOR[stop.reason], exit_code, f"{stop.message}; {_manner(exit_code)}")
    if failure is not None:
        outcome = Outcome.MACHINE_ERROR if failure.kind == "machine" else Outcome.USER_ERROR
        return AttemptEnd(outcome, failure.exit_code, "; ".join(filter(None, [failure.message, failure.hint])))
    return _unexplained(exit_code, log_tail)


def _manner(exit_code: int | None) -> str:
    """How the trainer responded to the request to stop."""
    if exit_code is None:
        return "the trainer was not started"
    if exit_code == TrainerExit.STOPPED:
        return "the trainer saved and stopped"
    return f"the trainer {_died(exit_code)} before it had saved: work since its last checkpoint is lost"


def _worker_exit_code(exit_code: int | None, log_tail: Sequence[str]) -> int | None:
    """The exit code of the failed worker. torchrun itself exits with 1 and reports the worker's code in the log."""
    matches = [match for line in log_tail if (match := _TORCHRUN_EXIT_CODE.match(line))]
    return int(matches[-1][1]) if exit_code == 1 and matches else exit_code


def _unexplained(exit_code: int | None, log_tail: Sequence[str]) -> AttemptEnd:
    if exit_code is not None and exit_code < 0:
        memory = " (out of memory?)" if -exit_code == signal.SIGKILL else ""
        return AttemptEnd(Outcome.MACHINE_ERROR, exit_code, f"the trainer {_died(exit_code)}{memory}")
    if exit_code == TrainerExit.STOPPED:
        message = "the trainer saved and stopped, though its supervisor did not ask it to"
        return AttemptEnd(Outcome.MACHINE_ERROR, exit_code, message)
    error = _last_error_line(log_tail)
    if _LOST_PEER.search(error):
        return AttemptEnd(
            Outcome.MACHINE_ERROR, exit_code, f"the trainer lost another process of its training: {error}"
        )
    return AttemptEnd(Outcome.USER_ERROR, exit_code, f"the trainer ended with code {exit_code}: {error}")


def _last_error_line(log_tail: Sequence[str]) -> str:
    """The last line of the last Python traceback, or the last line of all.

    When several processes failed, errors that only report a lost peer are ignored: another process names the cause.
    """
    errors = [match[1] for line in log_tail if _TORCHRUN_ERROR not in line and (match := _PYTHON_ERROR.match(line))]
    causes = [error for error in errors if not _LOST_PEER.search(error)]
    lines = causes or errors or log_tail or ["it wrote no log"]
    return lines[-1].strip()


def _died(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt: restart here, finish the run for good, or leave it to another machine."""

    action: Literal["restart", "finish", "leave"]
    outcome: Outcome
    message: str


def decide(attempts: Sequence[AttemptOutcome], max_restarts: int) -> Decision:
    """Decide what to do after the last of ``attempts``, which are in order.

    A machine error restarts the run in place, unless that happened ``max_restarts`` times already or the run made no
    progress between this machine error and the one before it: a crash loop would only cost money.
    """
    last = attempts[-1]
    if last.outcome == Outcome.INTERRUPTED:
        return Decision("leave", last.outcome, last.message)
    if last.outcome != Outcome.MACHINE_ERROR:
        return Decision("finish", last.outcome, last.message)
    faults = [attempt for attempt in attempts if attempt.outcome == Outcome.MACHINE_ERROR]
    if len(faults) > max_restarts:
        return Decision("finish", last.outcome, f"{last.message}; no restarts left (max_restarts: {max_restarts})")
    if len(faults) > 1 and not _made_progress(attempts, faults[-2]):
        loop = f"attempts {faults[-2].attempt} and {last.attempt} failed without progress between them"
        return Decision("finish", last.outcome, f"{last.message}; crash loop: {loop}")
    return Decision("restart", last.outcome, last.message)


def _made_progress(attempts: Sequence[AttemptOutcome], fault: AttemptOutcome) -> bool:
    """Whether any attempt after ``fault`` took the run further, even one that was interrupted or vanished."""
    before = [attempt for attempt in attempts if attempt.attempt <= fault.attempt]
    since = [attempt for attempt in attempts if attempt.attempt > fault.attempt]
    return max(attempt.reached_step for attempt in since) > max(attempt.reached_step for attempt in before) or max(
        attempt.committed_step for attempt in since
    ) > max(attempt.committed_step for attempt in before)
