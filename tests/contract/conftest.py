"""Storages of every kind, fresh for each test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_servers import BUCKET, CREDENTIALS, moto, seaweedfs

from mtl_cloud.storage import FolderStorage, MemoryStorage, Storage, open_storage

S3 = ("moto", "seaweedfs")


@pytest.fixture(scope="module")  # other tests' servers would empty it
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def seaweedfs_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.fixture
def make_storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Storage]:
    """A function from a kind of storage and a scratch folder to an empty storage that can be reopened by its URL."""

    def make(kind: str, scratch: Path) -> Storage:
        if kind == "folder":
            return FolderStorage(scratch / "runs here")
        if kind == "memory":
            storage = open_storage(f"memory://{secrets.token_hex(8)}")
            assert isinstance(storage, MemoryStorage)
            return storage
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue(f"{kind}_url"))
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        return open_storage(f"s3://{BUCKET}/{secrets.token_hex(8)}/a prefix")

    return make


@pytest.fixture(params=["memory", "folder", *S3])
def storage(request: pytest.FixtureRequest, make_storage: Callable[[str, Path], Storage], tmp_path: Path) -> Storage:
    return make_storage(request.param, tmp_path)


@pytest.fixture(params=["folder", *S3])
def shared_storage(
    request: pytest.FixtureRequest, make_storage: Callable[[str, Path], Storage], tmp_path: Path
) -> Storage:
    """One that several processes can share."""
    return make_storage(request.param, tmp_path)


@pytest.fixture(params=S3)
def s3_storage(request: pytest.FixtureRequest, make_storage: Callable[[str, Path], Storage], tmp_path: Path) -> Storage:
    return make_storage(request.param, tmp_path)
