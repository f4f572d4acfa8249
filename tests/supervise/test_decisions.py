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


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [(StopReason.MAINTENANCE, Outcome.INTERRUPTED), (StopReason.HANG, Outcome.MACHINE_ERROR)],
)
def test_maintenance_is_an_interruption_and_a_hang_the_machines_error(reason: StopReason, outcome: Outcome) -> None:
    assert classify(-9, Stop(reason, "because"), None, []).outcome == outcome


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: [gloo/transport/tcp/pair.cc:1] Write error [10.0.0.7]:5519: Broken pipe",
        "RuntimeError: Application timeout caused pair closure",
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection has failed.",
        "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 1.",
        "torch.distributed.DistBackendError: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)",
    ],
)
def test_each_backends_message_of_a_lost_peer_is_the_machines_error(error: str) -> None:
    """As gloo, torchrun's rendezvous and NCCL word it."""
    assert classify(1, None, None, [error]).outcome == Outcome.MACHINE_ERROR


@pytest.mark.parametrize("error", ["Exception: too few classes", "SystemExit: 3", "KeyboardInterrupt", "a.b.OwnError"])
def test_the_last_exception_is_the_cause_though_other_lines_follow_it(error: str) -> None:
    """Libraries print as the interpreter ends."""
    expected = AttemptEnd(Outcome.USER_ERROR, 1, f"the trainer ended with code 1: {error}")
    assert classify(1, None, None, [error, "wandb: run ended"]) == expected


def test_a_lost_peer_keeps_the_trainers_exit_code() -> None:
    error = "RuntimeError: Connection closed by peer"
    expected = AttemptEnd(Outcome.MACHINE_ERROR, 1, f"the trainer lost another process of its training: {error}")
    assert classify(1, None, None, [error]) == expected
