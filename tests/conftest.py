"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_engine import base_image, built, lent_engine, small_content
from examples import EXHAUSTIVE
from hypothesis import HealthCheck, settings
from loopback_only import forbid_other_hosts
from photographs import write_cifar10, write_imagenet, write_voc
from real_data import REAL, SHARED_DATA, unpacked
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the real datasets where these are not: other photographs are there everywhere."""
    if SHARED_DATA.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("real_data")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", params=["shipped", REAL])
def voc_photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``VOCdevkit/VOC2012``."""
    return write_voc(tmp_path_factory.mktemp("voc")) if request.param == "shipped" else unpacked("voc2012_subset")


@pytest.fixture(scope="session", params=["shipped", REAL])
def imagenet_photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ILSVRC2012/{train,val}``, the devkit's files in ``meta``, and ``full_size``."""
    if request.param == "shipped":
        return write_imagenet(tmp_path_factory.mktemp("imagenet"))
    return unpacked("imagenet_sample") / "imagenet_sample"


@pytest.fixture(scope="session", params=["shipped", REAL])
def cifar_photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cifar-10-batches-py`` and ``cifar10_full_jpeg.npz``."""
    return write_cifar10(tmp_path_factory.mktemp("cifar10")) if request.param == "shipped" else unpacked("cifar10")


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
