"""What an end means, and what follows from it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from narrowing import present
from waiting import PATIENCE_S

from mtl_cloud.runs.attempts import AttemptOutcome
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.scratch import Failure, StopReason
from mtl_cloud.supervise.failure_policy import AttemptEnd, Decision, classify, decide
from mtl_cloud.supervise.stop_conditions import Stop
from mtl_cloud.user_dirs import tail

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
        (0, None, [], AttemptEnd(Outcome.DONE, 0, "all rounds are done")),
        (1, USER, TRACEBACK, AttemptEnd(Outcome.USER_ERROR, 9, "no images in /data; mount it")),
        (1, MACHINE, [], AttemptEnd(Outcome.MACHINE_ERROR, 10, "NCCL timed out")),
        (
            1,
            None,
            TRACEBACK,
            AttemptEnd(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
        (
            1,
            None,
            [*TRACEBACK, "bye"],
            AttemptEnd(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
        (3, None, ["bad flag"], AttemptEnd(Outcome.USER_ERROR, 3, "the trainer ended with code 3: bad flag")),
        (3, None, [], AttemptEnd(Outcome.USER_ERROR, 3, "the trainer ended with code 3: it wrote no log")),
        (
            -9,
            None,
            TRACEBACK,
            AttemptEnd(Outcome.MACHINE_ERROR, -9, "the trainer was ended by SIGKILL (out of memory?)"),
        ),
        (-7, None, [], AttemptEnd(Outcome.MACHINE_ERROR, -7, "the trainer was ended by SIGBUS")),
        (-35, None, [], AttemptEnd(Outcome.MACHINE_ERROR, -35, "the trainer was ended by signal 35")),
        (
            75,
            None,
            [],
            AttemptEnd(
                Outcome.MACHINE_ERROR, 75, "the trainer saved and stopped, though its supervisor did not ask it to"
            ),
        ),
        (
            1,
            None,
            _torchrun(-9),
            AttemptEnd(Outcome.MACHINE_ERROR, -9, "the trainer was ended by SIGKILL (out of memory?)"),
        ),
        (
            1,
            None,
            _torchrun(1),
            AttemptEnd(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes"),
        ),
    ],
)
def test_an_end_that_nobody_asked_for(
    exit_code: int, failure: Failure | None, log: list[str], expected: AttemptEnd
) -> None:
    assert classify(exit_code, None, failure, log) == expected


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:{}] {} [10.0.0.7]:5519{}. This is typically caused by a "
    "remote worker crashing. Check the logs of the remote worker before reporting an error. GLHF! 🏖️"
)
"""As torch 2.15 prints it."""
NCCL = "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


@pytest.mark.parametrize(
    "words",
    [
        "[rank1]: RuntimeError: " + GLOO.format(561, "Connection closed by peer", ""),
        "[rank1]: RuntimeError: " + GLOO.format(545, "Read error", ": Connection reset by peer"),
        "[rank1]: RuntimeError: [../unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete",
        "[rank3]: " + NCCL + "remote process exited or there was a network error, NCCL version 2.28.8",
        "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms",
        "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /default_pg/0//cpu//0",
    ],
)
def test_a_lost_peer_is_the_machines_fault(words: str) -> None:
    ending = classify(1, None, None, [*TRACEBACK[:2], words, *_torchrun(1)[3:]])
    assert ending.outcome == Outcome.MACHINE_ERROR
    assert ending.message == f"the trainer lost another process of its training: {words.partition(']: ')[2] or words}"


@pytest.mark.parametrize("words", ["unhandled cuda error", "invalid usage"])
def test_other_errors_of_nccl_are_no_lost_peer(words: str) -> None:
    assert classify(1, None, None, [NCCL + words]).outcome == Outcome.USER_ERROR


def test_an_error_that_took_its_peers_along_is_the_cause() -> None:
    """Whoever ended first, and in whatever order they wrote."""
    lost = "[rank1]: RuntimeError: " + GLOO.format(561, "Connection closed by peer", "")
    expected = AttemptEnd(Outcome.USER_ERROR, 1, "the trainer ended with code 1: ValueError: too few classes")
    user = [f"[rank0]: {line}" for line in TRACEBACK]
    assert classify(1, None, None, [*user, lost, *_torchrun(1)[3:]]) == expected
    assert classify(1, None, None, [lost, *user, *_torchrun(1)[3:]]) == expected


LIVES_TOGETHER = """
import os, signal, sys, torch
import torch.distributed as dist
rank, port = map(int, sys.argv[1:])
store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, wait_for_workers=False)
print(store.port, flush=True)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
for step in range(100):
    if step == 20 and dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(3))
"""


@pytest.mark.slow
def test_what_gloo_says_when_a_peer_is_killed_is_understood(tmp_path: Path) -> None:
    """Each process on a host of its own, as their supervisors see it."""
    command = [sys.executable, "-c", LIVES_TOGETHER]
    with (
        (tmp_path / "log.txt").open("wb+") as log,
        subprocess.Popen([*command, "0", "0"], stdout=subprocess.PIPE) as first,
        subprocess.Popen([*command, "1", present(first.stdout).readline().strip()], stdout=log, stderr=log) as second,
    ):
        assert (first.wait(PATIENCE_S), second.wait(PATIENCE_S)) == (-signal.SIGKILL, 1)
    ending = classify(1, None, None, tail(tmp_path / "log.txt", 200))
    assert ending.outcome == Outcome.MACHINE_ERROR
    assert "the trainer lost another process of its training: RuntimeError: " in ending.message


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


def _fault(attempt: int, reached: int = 0, committed: int = 0) -> AttemptOutcome:
    return AttemptOutcome(attempt, Outcome.MACHINE_ERROR, "SIGKILL", reached, committed)


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.USER_ERROR, Outcome.CANCELLED, Outcome.OUT_OF_TIME])
def test_an_end_for_good_finishes_the_run(outcome: Outcome) -> None:
    assert decide([_fault(1), AttemptOutcome(2, outcome, "so")], 3) == Decision("finish", outcome, "so")


def test_an_interruption_leaves_the_run_to_the_next_machine() -> None:
    assert decide([AttemptOutcome(1, Outcome.INTERRUPTED, "spot")], 0).action == "leave"


@pytest.mark.parametrize(
    ("lives", "max_restarts", "action"),
    [
        ([_fault(1)], 1, "restart"),
        ([_fault(1)], 0, "finish"),
        ([_fault(1, reached=5), _fault(2, reached=9)], 3, "restart"),
        ([_fault(1, reached=9), _fault(2, reached=9)], 3, "finish"),
        ([_fault(1, reached=9, committed=4), _fault(2, reached=8, committed=6)], 3, "restart"),
        ([_fault(1, 5), AttemptOutcome(2, Outcome.INTERRUPTED, "spot", 8), _fault(3, 7)], 3, "restart"),
        ([_fault(1, 5), AttemptOutcome(2, Outcome.INTERRUPTED, "spot", 8), _fault(3, 7)], 1, "finish"),
        ([_fault(1, 5), _fault(2, 8), _fault(3, 6)], 9, "finish"),
        ([_fault(1, 5), AttemptOutcome(2, Outcome.INTERRUPTED, "spot", 8), _fault(3)], 3, "restart"),
        (
            [_fault(1, 5), AttemptOutcome(2, Outcome.INTERRUPTED, "it vanished", committed_step=4), _fault(3)],
            3,
            "restart",
        ),
        ([_fault(1, 5), AttemptOutcome(2, Outcome.INTERRUPTED, "spot", 8), _fault(3), _fault(4)], 9, "finish"),
        ([_fault(1, 5, 4), AttemptOutcome(2, Outcome.INTERRUPTED, "spot", 5, 4), _fault(3, 5, 4)], 3, "finish"),
    ],
)
def test_a_machines_fault_restarts_while_the_run_comes_further(
    lives: list[AttemptOutcome], max_restarts: int, action: str
) -> None:
    assert decide(lives, max_restarts).action == action


def test_the_end_of_a_crash_loop_names_its_attempts() -> None:
    assert decide([_fault(1), _fault(3)], 5).message == (
        "SIGKILL; crash loop: attempts 1 and 3 failed without progress between them"
    )
