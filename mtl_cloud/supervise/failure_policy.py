"""Judgement, as pure functions: how an attempt ended, and whether another one is worth it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtl_cloud.runs.attempts import AttemptOutcome
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.scratch import EXIT_DONE, EXIT_STOPPED, Failure, StopReason
from mtl_cloud.supervise.stop_conditions import Stop

__all__ = ["Ending", "Verdict", "classify", "judge"]

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
_TORCHRUN_EXIT_CODE = re.compile(r"^\s*exitcode\s*:\s*(-?\d+)")  # of its report, "Root Cause (first observed failure)"
_PYTHON_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::.*)?)$")
_TORCHRUN_ERROR = "ChildFailedError"  # its own last line, which hides the worker's
_LOST_PEER = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms for|timeout caused pair closure"  # gloo
    r"|Dist(?:Network|Store)Error|RendezvousConnectionError"  # torch's store, and torchrun over it
    r"|remote process exited or there was a network error|communicator was aborted|operation timeout"  # NCCL
)
"""What those who are left say when another process of the training, or its machine, is gone."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, for its ``exit.json``."""

    outcome: Outcome
    exit_code: int | None
    message: str


def classify(exit_code: int | None, stop: Stop | None, failure: Failure | None, log_tail: Sequence[str]) -> Ending:
    """What a trainer's end means.

    ``exit_code`` is the process's: negative for the signal that ended it, None when it was not started. ``stop`` is
    what it was asked to stop for, if it was. ``log_tail`` holds the last lines that are not blank.
    """
    exit_code = _worker_exit_code(exit_code, log_tail)
    if exit_code == EXIT_DONE:
        return Ending(Outcome.DONE, exit_code, "all rounds are done")
    if stop is not None:
        return Ending(_STOPPED_FOR[stop.reason], exit_code, f"{stop.message}; {_manner(exit_code)}")
    if failure is not None:
        outcome = Outcome.MACHINE_ERROR if failure.kind == "machine" else Outcome.USER_ERROR
        return Ending(outcome, failure.exit_code, "; ".join(filter(None, [failure.message, failure.hint])))
    return _unexplained(exit_code, log_tail)


def _manner(exit_code: int | None) -> str:
    """How the trainer met the wish to stop."""
    if exit_code is None:
        return "the trainer was not started"
    if exit_code == EXIT_STOPPED:
        return "the trainer saved and stopped"
    return f"the trainer {_died(exit_code)} before it had saved: work since its last checkpoint is lost"


def _worker_exit_code(exit_code: int | None, log_tail: Sequence[str]) -> int | None:
    """The failed worker's own code, where torchrun ends with 1 and reports it in the log."""
    matches = [match for line in log_tail if (match := _TORCHRUN_EXIT_CODE.match(line))]
    return int(matches[-1][1]) if exit_code == 1 and matches else exit_code


def _unexplained(exit_code: int | None, log_tail: Sequence[str]) -> Ending:
    if exit_code is not None and exit_code < 0:
        memory = " (out of memory?)" if -exit_code == signal.SIGKILL else ""
        return Ending(Outcome.MACHINE_ERROR, exit_code, f"the trainer {_died(exit_code)}{memory}")
    if exit_code == EXIT_STOPPED:
        message = "the trainer saved and stopped, though its supervisor did not ask it to"
        return Ending(Outcome.MACHINE_ERROR, exit_code, message)
    words = _last_words(log_tail)
    if _LOST_PEER.search(words):
        return Ending(Outcome.MACHINE_ERROR, exit_code, f"the trainer lost another process of its training: {words}")
    return Ending(Outcome.USER_ERROR, exit_code, f"the trainer ended with code {exit_code}: {words}")


def _last_words(log_tail: Sequence[str]) -> str:
    """The last line of the last Python traceback, or the last line of all.

    Of several processes' tracebacks, that of one which did not merely lose another says why.
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
class Verdict:
    """What to do after an attempt: start the next one here, end the run for good, or leave it to another machine."""

    action: Literal["restart", "finish", "leave"]
    outcome: Outcome
    message: str


def judge(attempts: Sequence[AttemptOutcome], max_restarts: int) -> Verdict:
    """What follows from all attempts so far, in order.

    A machine's fault restarts the run in place, unless it did so ``max_restarts`` times already, or the run came no
    further between this fault and the one before it: a crash loop would only burn money.
    """
    last = attempts[-1]
    if last.outcome == Outcome.INTERRUPTED:
        return Verdict("leave", last.outcome, last.message)
    if last.outcome != Outcome.MACHINE_ERROR:
        return Verdict("finish", last.outcome, last.message)
    faults = [life for life in attempts if life.outcome == Outcome.MACHINE_ERROR]
    if len(faults) > max_restarts:
        return Verdict("finish", last.outcome, f"{last.message}; ended after {max_restarts} restarts")
    if len(faults) > 1 and not _came_further(attempts, faults[-2]):
        loop = f"attempts {faults[-2].attempt} and {last.attempt} failed, and between them the run came no further"
        return Verdict("finish", last.outcome, f"{last.message}; crash loop: {loop}")
    return Verdict("restart", last.outcome, last.message)


def _came_further(attempts: Sequence[AttemptOutcome], fault: AttemptOutcome) -> bool:
    """After that one, whoever took the run there: attempts since may have been interrupted, or have vanished."""
    before = [life for life in attempts if life.attempt <= fault.attempt]
    since = [life for life in attempts if life.attempt > fault.attempt]
    return max(life.reached_step for life in since) > max(life.reached_step for life in before) or max(
        life.committed_step for life in since
    ) > max(life.committed_step for life in before)
