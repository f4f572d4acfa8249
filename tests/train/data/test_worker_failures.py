"""Dead loader workers end the run with an explanation; errors raised by a dataset keep their traceback."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from dataset_harness import Altered

from mtl_cloud.datasets.base import HintFor, Sample
from mtl_cloud.datasets.formats.embedded import open_embedded
from mtl_cloud.errors import TrainingError, WorkerDiedError
from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.supervise.failure_policy import classify
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.loader import Collate, validation_batches
from mtl_cloud.train.data.worker_failures import explain_worker_deaths


@dataclass(frozen=True)
class Trapped(Altered):
    """A dataset that calls ``trap`` when it loads one of its samples."""

    trap: Callable[[], None]
    at: int = 9

    def load(self, index: int, hint_for: HintFor) -> Sample:
        if index == self.at:
            self.trap()
        return super().load(index, hint_for)


def batches(trap: Callable[[], None]) -> Iterator[Batch]:
    """Batches of four, from two workers."""
    data = Trapped(open_embedded(None, "val"), trap)
    training = TrainingSpec(batch_size=4, eval_batch_size=4, loader_workers=2, image_size=32)
    return validation_batches(data, training, Collate(data.info.classes, multi_label=True), rank=0, world=1, pin=False)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_shared_memory() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def left() -> None:
    os._exit(3)


def mistaken() -> None:
    raise ValueError("no such colour")


@pytest.mark.parametrize(
    ("trap", "kind", "message", "hint"),
    [
        (killed, WorkerDiedError, r"loader worker \d+ was ended by SIGKILL", "out of memory"),
        pytest.param(
            out_of_shared_memory,
            WorkerDiedError,
            r"loader worker \d+ was ended by SIGBUS",
            "--shm-size",
            marks=pytest.mark.slow,
        ),
        pytest.param(left, TrainingError, r"loader worker \d+ ended with code 3", "in the log", marks=pytest.mark.slow),
    ],
)
def test_a_workers_end_names_it_and_what_probably_killed_it(
    trap: Callable[[], None], kind: type[TrainingError], message: str, hint: str
) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        list(batches(trap))
    assert type(caught.value) is kind
    assert hint in str(caught.value.hint)


def test_an_error_raised_by_a_dataset_in_a_worker_is_a_user_error_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="no such colour") as caught:
        list(batches(mistaken))
    log = "".join(traceback.format_exception(caught.value)).splitlines()
    assert any("in mistaken" in line for line in log)
    ending = classify(1, None, None, log)
    assert (ending.outcome, ending.message) == (
        Outcome.USER_ERROR, "the trainer ended with code 1: ValueError: no such colour",
    )  # fmt: skip


def send_half_a_batch(results: Any) -> None:
    """Acts as a worker that is killed while it sends a batch; it blocks the others from sending, too."""
    results._wlock.acquire()
    os.write(results._writer.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_its_turn(results: Any) -> None:
    results._wlock.acquire()


@pytest.mark.timeout(60)
def test_the_reader_does_not_wait_for_the_rest_of_a_dead_workers_batch() -> None:
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    workers = [context.Process(target=what, args=(results,)) for what in (wait_for_its_turn, send_half_a_batch)]
    workers[1].start()
    workers[1].join()
    workers[0].start()
    loader = SimpleNamespace(_workers=workers, _worker_result_queue=results)
    explained = pytest.raises(WorkerDiedError, match=rf"{workers[1].pid} was ended by SIGKILL")
    with explained, explain_worker_deaths(loader, patience_s=0.1):
        results.get()
    workers[0].join()
    assert workers[0].exitcode == -signal.SIGKILL
