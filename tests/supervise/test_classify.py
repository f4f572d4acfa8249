"""What an end means, and what follows from it."""

from __future__ import annotations

import pytest

from mtl_cloud.records import Outcome
from mtl_cloud.supervise.classify import Ending, Life, Verdict, classify, judge
from mtl_cloud.supervise.contract import Failure, StopReason
from mtl_cloud.supervise.watch import Stop

USER = Failure(exit_code=9, message="no images in /data", hint="mount it")
MACHINE = Failure(exit_code=10, message="NCCL timed out", kind="machine")
TRACEBACK = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "ValueError: too few classes"]
TORCHRUN = [
    *(f"[rank0]: {line}" for line in TRACEBACK),
    "E1123 15:00:00.0 12 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1)",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    "Root Cause (first observed failure):",
    "  rank      : 0 (local_rank: 0)",
    "  exitcode  : {code} (pid: 12)",
    "============================================================",
]


def _torchrun(code: int) -> list[str]:
    return [line.format(code=code) for line in TORCHRUN]


@pytest.mark.parametrize(
    ("exit_code", "failure", "log", "expected"),
    [
        (0, None, [], Ending(Outcome.DONE, 0, "all rounds are done")),
        (1, USER, TRACEBACK, Ending(Outcome.USER_ERROR, 9, "no images in /data; mount it")),
        (1, MACHINE, [], Ending(Outcome.MACHINE_ERROR, 10, "NCCL timed out")),
        (
            1,
            None,
            TRACEBACK,
            Ending(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
        (
            1,
            None,
            [*TRACEBACK, "bye"],
            Ending(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
        (3, None, ["bad flag"], Ending(Outcome.USER_ERROR, 3, "the trainer ended with code 3: bad flag")),
        (3, None, [], Ending(Outcome.USER_ERROR, 3, "the trainer ended with code 3: it wrote no log")),
        (-9, None, TRACEBACK, Ending(Outcome.MACHINE_ERROR, -9, "the trainer was ended by SIGKILL (out of memory?)")),
        (-7, None, [], Ending(Outcome.MACHINE_ERROR, -7, "the trainer was ended by SIGBUS")),
        (
            75,
            None,
            [],
            Ending(Outcome.MACHINE_ERROR, 75, "the trainer saved and stopped, though its supervisor did not ask it to"),
        ),
        (
            1,
            None,
            _torchrun(-9),
            Ending(Outcome.MACHINE_ERROR, -9, "the trainer was ended by SIGKILL (out of memory?)"),
        ),
        (
            1,
            None,
            _torchrun(1),
            Ending(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
    ],
)
def test_an_end_that_nobody_asked_for(
    exit_code: int, failure: Failure | None, log: list[str], expected: Ending
) -> None:
    assert classify(exit_code, None, failure, log) == expected


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (StopReason.CANCEL, Outcome.CANCELLED),
        (StopReason.DEADLINE, Outcome.OUT_OF_TIME),
        (StopReason.BUDGET, Outcome.OUT_OF_BUDGET),
        (StopReason.SIGTERM, Outcome.INTERRUPTED),
        (StopReason.SPOT, Outcome.INTERRUPTED),
        (None, Outcome.INTERRUPTED),
    ],
)
@pytest.mark.parametrize(
    ("exit_code", "log", "manner"),
    [
        (75, [], "the trainer saved and stopped"),
        (1, _torchrun(75), "the trainer saved and stopped"),
        (None, [], "the trainer was not started"),
        (-9, [], "the trainer was ended by SIGKILL before it had saved: work since its last checkpoint is lost"),
    ],
)
def test_an_end_that_was_asked_for_has_the_outcome_of_the_reason(
    reason: StopReason | None, outcome: Outcome, exit_code: int | None, log: list[str], manner: str
) -> None:
    ending = classify(exit_code, Stop(reason, "because"), None, log)
    assert (ending.outcome, ending.message) == (outcome, f"because; {manner}")


def test_a_trainer_that_was_done_before_it_saw_the_wish_is_done() -> None:
    assert classify(0, Stop(StopReason.CANCEL, "by ann"), None, []).outcome == Outcome.DONE


def _fault(attempt: int, reached: int = 0, committed: int = 0) -> Life:
    return Life(attempt, Outcome.MACHINE_ERROR, "SIGKILL", reached, committed)


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.USER_ERROR, Outcome.CANCELLED, Outcome.OUT_OF_TIME])
def test_an_end_for_good_finishes_the_run(outcome: Outcome) -> None:
    assert judge([_fault(1), Life(2, outcome, "so")], 3) == Verdict("finish", outcome, "so")


def test_an_interruption_leaves_the_run_to_the_next_machine() -> None:
    assert judge([Life(1, Outcome.INTERRUPTED, "spot")], 0).action == "leave"


@pytest.mark.parametrize(
    ("lives", "max_restarts", "action"),
    [
        ([_fault(1)], 1, "restart"),
        ([_fault(1)], 0, "finish"),
        ([_fault(1, reached=5), _fault(2, reached=9)], 3, "restart"),
        ([_fault(1, reached=9), _fault(2, reached=9)], 3, "finish"),
        ([_fault(1, reached=9, committed=4), _fault(2, reached=8, committed=6)], 3, "restart"),
        ([_fault(1, 5), Life(2, Outcome.INTERRUPTED, "spot", 8), _fault(3, 7)], 3, "restart"),
        ([_fault(1, 5), Life(2, Outcome.INTERRUPTED, "spot", 8), _fault(3, 7)], 1, "finish"),
        ([_fault(1, 5), _fault(2, 8), _fault(3, 6)], 9, "finish"),
    ],
)
def test_a_machines_fault_restarts_while_the_run_comes_further(
    lives: list[Life], max_restarts: int, action: str
) -> None:
    assert judge(lives, max_restarts).action == action


def test_the_end_of_a_crash_loop_names_its_attempts() -> None:
    assert judge([_fault(1), _fault(3)], 5).message == (
        "SIGKILL; crash loop: attempts 1 and 3 failed, and between them the run came no further"
    )
