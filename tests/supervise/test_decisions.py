"""The failure policy's answers, compared whole: action, outcome and message."""

from __future__ import annotations

import pytest

from mtl_cloud.runs.attempts import AttemptOutcome
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.supervise.failure_policy import AttemptEnd, Decision, classify, decide
from mtl_cloud.supervise.stop_conditions import Stop

KILLED = "the trainer was ended by SIGKILL"


def fault(attempt: int, reached: int = 0, committed: int = 0) -> AttemptOutcome:
    return AttemptOutcome(attempt, Outcome.MACHINE_ERROR, KILLED, reached, committed)


@pytest.mark.parametrize(
    ("attempts", "max_restarts", "decision"),
    [
        (
            [fault(1), AttemptOutcome(2, Outcome.INTERRUPTED, "spot took the machine")],
            0,
            Decision("leave", Outcome.INTERRUPTED, "spot took the machine"),
        ),
        (
            [AttemptOutcome(1, Outcome.DONE, "all rounds are done")],
            3,
            Decision("finish", Outcome.DONE, "all rounds are done"),
        ),
        ([fault(1)], 1, Decision("restart", Outcome.MACHINE_ERROR, KILLED)),
        (
            [fault(1)],
            0,
            Decision("finish", Outcome.MACHINE_ERROR, f"{KILLED}; no restarts left (max_restarts: 0)"),
        ),
        (
            [fault(1, 5), fault(2, 5)],
            9,
            Decision(
                "finish",
                Outcome.MACHINE_ERROR,
                f"{KILLED}; crash loop: attempts 1 and 2 failed without progress between them",
            ),
        ),
        ([fault(1, 5), fault(2, 6)], 9, Decision("restart", Outcome.MACHINE_ERROR, KILLED)),
        ([fault(1, 5, 2), fault(2, 5, 3)], 9, Decision("restart", Outcome.MACHINE_ERROR, KILLED)),
    ],
)
def test_a_decision_says_what_to_do_with_which_outcome_and_why(
    attempts: list[AttemptOutcome], max_restarts: int, decision: Decision
) -> None:
    assert decide(attempts, max_restarts) == decision


@pytest.mark.parametrize(
    ("exit_code", "manner"),
    [
        (None, "the trainer was not started"),
        (75, "the trainer saved and stopped"),
        (1, "the trainer ended with code 1 before it had saved: work since its last checkpoint is lost"),
        (-15, "the trainer was ended by SIGTERM before it had saved: work since its last checkpoint is lost"),
    ],
)
def test_a_stop_that_was_requested_keeps_the_trainers_exit_code(exit_code: int | None, manner: str) -> None:
    stop = Stop(StopReason.CANCEL, "cancelled by ann")
    expected = AttemptEnd(Outcome.CANCELLED, exit_code, f"cancelled by ann; {manner}")
    assert classify(exit_code, stop, None, []) == expected


def test_a_lost_peer_keeps_the_trainers_exit_code() -> None:
    error = "RuntimeError: Connection closed by peer"
    expected = AttemptEnd(Outcome.MACHINE_ERROR, 1, f"the trainer lost another process of its training: {error}")
    assert classify(1, None, None, [error]) == expected
