"""Runs on a real S3 server behind a proxy that injects thousands of faults: no loss, no torn file, no round twice.

``MTL_CLOUD_FAULTS`` sets the number of faults of each kind; the default is 50, and 1,000 before a release.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import torch
from examples import EXHAUSTIVE
from fault_proxy import KINDS, FaultProxy
from s3_servers import BUCKET, CREDENTIALS, seaweedfs

from mtl_cloud.clock import Clock
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import AttemptRecord, Heartbeat, RoundRecord
from mtl_cloud.storage import Storage, open_storage, remote
from mtl_cloud.storage.retrying import RetryingStorage
from mtl_cloud.train.checkpoint.async_saver import AsyncSaver
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer

FAULTS = int(os.environ.get("MTL_CLOUD_FAULTS", "1000" if EXHAUSTIVE else "50"))
RUNS = 8  # at a time
STALL_S = 0.6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Makes one request in four fail. Clients time out within ``STALL_S``."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    options = remote._s3_options()
    options["config_kwargs"] |= {"read_timeout": STALL_S / 2}
    monkeypatch.setattr(remote, "_s3_options", lambda: options)
    faults = FaultProxy(server, rate=0.25, stall_s=STALL_S)
    with faults.serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield faults


def state_at(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.randn(3000, generator=torch.Generator().manual_seed(step))}


def round_record(number: int, attempt: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        attempt=attempt,
        step=10 * number,
        epoch=number,
        ended_at="15:00",
        seconds=1.0,
        validation_s=0.1,
        images=number,
        images_per_s=1.0,
        data_wait=0.0,
        train_losses={"classification": 1 / number},
        val_losses={},
        metrics={"classification": {"top1": 0.5}},
    )


def live(storage: Storage, run_id: str, attempt: int) -> None:
    """Run one attempt: restore and check the last state, then save and record two more rounds."""
    run = RunRecord(RetryingStorage(storage, patience_s=300, clock=Clock()), run_id)
    run.claim(AttemptRecord(number=attempt, started_at="15:00", host="h", pid=1, backend="local", nonce=f"{attempt}"))
    restored = Checkpointer(run, attempt, keep=2).load_latest()
    done = 2 * (attempt - 1)
    assert (restored.manifest.round if restored else 0) == done
    assert restored is None or torch.equal(restored.state["w"], state_at(10 * done)["w"])
    saver = AsyncSaver(Checkpointer(run, attempt, keep=2, part_bytes=4000))
    for number in (done + 1, done + 2):
        saver.save(state_at(10 * number), step=10 * number, round=number, reason="round")
        run.append_log(attempt, number - done, f"round {number}\n".encode())
        run.write_heartbeat(attempt, Heartbeat(at="15:00", phase="training", progress={"step": 10 * number}))
        assert run.write_round(round_record(number, attempt)) in (True, False)  # False: an earlier reply was lost
    saver.drain()
    saver.close()


def check(run: RunRecord, attempts: int) -> None:
    """Check, without faults, that every record is complete and exists once."""
    assert [attempt.number for attempt in run.attempts()] == list(range(1, attempts + 1))
    assert run.rounds() == [round_record(n, (n + 1) // 2) for n in range(1, 2 * attempts + 1)]
    assert b"".join(run.read_log(a) for a in range(1, attempts + 1)).count(b"\n") == 2 * attempts
    assert [found.step for found in run.checkpoints()] == [20 * attempts - 10, 20 * attempts]
    restored = Checkpointer(run, attempts, keep=2).load_latest()
    assert restored is not None
    assert torch.equal(restored.state["w"], state_at(20 * attempts)["w"])


def live_through(proxy: FaultProxy, faults: int, name: str) -> None:
    """Do attempts of several runs concurrently until ``faults`` faults of each kind were injected, then check them."""
    storage = open_storage(f"s3://{BUCKET}/{name}")
    with ThreadPoolExecutor(RUNS) as pool:
        for attempt in count(1):
            list(pool.map(lambda n, attempt=attempt: live(storage, f"run-{n}", attempt), range(RUNS)))
            if all(proxy.injected[kind] >= faults for kind in KINDS):
                break
    proxy.rate = 0.0
    for n in range(RUNS):
        check(RunRecord(storage, f"run-{n}"), attempt)


def test_runs_outlive_faults_of_every_kind(proxy: FaultProxy) -> None:
    live_through(proxy, 15, "few")


@pytest.mark.parametrize("kind", ["expired", "skewed"])
def test_training_continues_until_credentials_are_renewed_or_the_clock_is_right(proxy: FaultProxy, kind: str) -> None:
    proxy.rate, proxy.kinds = 0.0, (kind,)
    storage = open_storage(f"s3://{BUCKET}/{kind}")
    run = RunRecord(RetryingStorage(storage, patience_s=300, clock=Clock()), "run-1")
    run.claim(AttemptRecord(number=1, started_at="15:00", host="h", pid=1, backend="local"))
    saver = AsyncSaver(Checkpointer(run, 1, keep=2))
    proxy.rate = 1.0
    saver.save(state_at(1), step=1, round=1, reason="time")
    while proxy.injected[kind] < 3:
        assert saver.is_busy
        time.sleep(0.01)
    proxy.rate = 0.0
    saver.drain()
    saver.close()
    assert run.checkpoints() == [CheckpointId(1, 1)]
    restored = Checkpointer(run, 1, keep=2).load_latest()
    assert restored is not None
    assert torch.equal(restored.state["w"], state_at(1)["w"])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_runs_outlive_many_faults_of_every_kind(proxy: FaultProxy) -> None:
    live_through(proxy, FAULTS, "many")
