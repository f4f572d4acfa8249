"""Fixtures that several test modules share."""

from __future__ import annotations

import fcntl
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container_engine import base_image, built, lent_engine, small_content
from examples import EXHAUSTIVE
from hypothesis import HealthCheck, settings
from loopback_only import forbid_other_hosts
from sagemaker_harness import sagemaker_double
from wheels import make_wheel

__all__ = ["sagemaker_double"]

from mtl_cloud.container.engine import Engine

# No time limits: on a busy machine any example may take long. CI tries the same examples every time.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("local", UNHURRIED)
settings.register_profile("ci", UNHURRIED, derandomize=True)
settings.register_profile("exhaustive", UNHURRIED, max_examples=1000)
settings.load_profile("exhaustive" if EXHAUSTIVE else "ci" if os.environ.get("CI") else "local")

forbid_other_hosts()

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from an archive's name (without extension) to the folder that it is unpacked in.

    The archives are real images that are no part of the product; they lie beside the checkout, and are unpacked once
    into a cache outside of it.
    """
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images of {SHARED_DATA} are not on this machine")
    return _unpacked


def _unpacked(name: str) -> Path:
    (archive,) = SHARED_DATA.glob(f"{name}.tar*")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mtl-cloud-tests"
    target = cache / f"{name}-{archive.stat().st_size}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
            partial.rename(target)
    return target


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The container engine of this machine; a test is skipped where there is none."""
    with lent_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def small_image(engine: Engine) -> str:
    """An image by the product's recipe, without torch."""
    return built(small_content(base_image(engine)), engine)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel."""
    return make_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True)
def _no_ambient_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can reach a real account by accident."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
