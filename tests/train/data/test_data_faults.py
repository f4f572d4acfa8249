"""Training from shards in a faulty S3 has the same samples and losses, and ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import cifar_batch
from fault_proxy import READ_KINDS, FaultProxy
from loss_sequence import sequence_of, sequence_of_process
from s3_servers import BUCKET, CREDENTIALS, moto, seaweedfs
from trainer_harness import small_job
from waiting import wait_for

from mtl_cloud.datasets.formats.cifar10 import open_cifar10
from mtl_cloud.datasets.preparation.prepare import Options, prepare
from mtl_cloud.datasets.preparation.sources import CifarSource
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.storage import FolderStorage, open_storage, remote

REMOTE = f"s3://{BUCKET}/cifar10"
STALL_S = 0.1
Put = Callable[[str], AbstractContextManager[FaultProxy]]


def write_images(folder: Path) -> None:
    """All images differ, so that a swapped sample changes the loss."""
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(cifar_batch(name, data=pixels))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-10 as shards."""
    write_images(tmp_path / "original")
    sources = {split: CifarSource.of(open_cifar10(str(tmp_path / "original"), split)) for split in ("train", "test")}
    prepare("cifar10", sources, FolderStorage(tmp_path / "shards"), Options(shard_bytes=60_000))
    return tmp_path / "shards"


@pytest.fixture
def put(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts the shards on a server, behind a proxy that injects no faults yet."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    @contextmanager
    def put(server: str) -> Iterator[FaultProxy]:
        proxy = FaultProxy(server, rate=0.0, stall_s=STALL_S, kinds=READ_KINDS, in_a_row=3)
        with proxy.serving() as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            here = FolderStorage(folder)
            for entry in here.list(""):
                open_storage(REMOTE).write(entry.key, here.read(entry.key))
            yield proxy

    return put


def job(uri: str | Path, **training: Any) -> JobSpec:
    """A job whose losses show a wrong sample from that step on."""
    small = small_job(batch_size=10, image_size=32, epochs_per_round=1, **training)
    dataset = {"name": "cifar10", "uri": str(uri), "splits": {"val": "test"}, "max_val_samples": 8}
    return JobSpec.model_validate(small.model_dump() | {"dataset": dataset})


@pytest.mark.slow
def test_losses_are_the_same_through_faults(folder: Path, put: Put, tmp_path: Path) -> None:
    few = {"cache_gib": 0, "rounds": 1, "max_steps_per_epoch": 2}
    straight = sequence_of(job(folder, **few), tmp_path)
    with moto() as server, put(server) as proxy:
        proxy.rate = 0.4
        assert sequence_of(job(REMOTE, **few), tmp_path) == straight
    assert proxy.injected.keys() == set(READ_KINDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("loader", [{"loader_workers": n, "cache_gib": gib} for n in (0, 2) for gib in (0, 1)])
def test_losses_are_the_same_through_faults_of_a_real_server(
    server: str, folder: Path, put: Put, tmp_path: Path, loader: dict[str, int]
) -> None:
    straight = sequence_of(job(folder, rounds=1), tmp_path)
    assert len({key for keys in straight["keys"] for key in keys}) == 100
    with put(server) as proxy:
        proxy.rate = 0.4
        train = sequence_of_process if loader["loader_workers"] else sequence_of
        assert train(job(REMOTE, rounds=1, **loader), tmp_path) == straight
    assert proxy.injected.keys() == set(READ_KINDS)
    assert bool(list((tmp_path / "cache").rglob("*.tar"))) == bool(loader["cache_gib"])


@pytest.mark.slow
def test_an_outage_of_the_data_is_waited_for(server: str, folder: Path, put: Put, tmp_path: Path) -> None:
    """Also when it is longer than the storage's own patience."""
    straight = sequence_of(job(folder, rounds=1), tmp_path)
    with put(server) as proxy, ThreadPoolExecutor() as pool:
        proxy.kinds, proxy.rate = ("slow",), 0.5
        waiting = pool.submit(sequence_of, job(REMOTE, rounds=1, cache_gib=0), tmp_path)
        wait_for(lambda: proxy.injected["slow"] >= 10, seconds=120)
        proxy.kinds, proxy.rate, proxy.in_a_row = ("503",), 1.0, math.inf
        time.sleep(1.2 * remote._PATIENCE_S)
        proxy.rate = 0.0
        assert waiting.result() == straight
    assert proxy.injected["503"] >= 5
