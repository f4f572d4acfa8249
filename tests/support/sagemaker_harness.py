"""SageMaker for tests: the package's fake behind the real SDK, and plans of runs for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_harness import no_cloud_environ
from s3_servers import CREDENTIALS
from waiting import PATIENCE_S

from mtl_cloud.testing.sagemaker import SageMakerDouble

__all__ = ["COMPUTE", "ROLE", "plan_on", "sagemaker_double"]

ROLE = "arn:aws:iam::123456789012:role/mtl-cloud-sagemaker-us-east-1"
COMPUTE = {"backend": "sagemaker", "instance_type": "ml.c5.9xlarge", "gpu_count": 0, "role": ROLE, "image": "mtl:1"}


def plan_on(backend: str, **compute: Any) -> dict[str, Any]:
    """Plan fields for the backend, for ``make_run``."""
    if backend != "sagemaker":
        return {"backend": backend}
    return {"backend": backend, "compute": {**COMPUTE, **compute}, "image": "mtl:1", "deadline_s": 3600.0}


@pytest.fixture
def sagemaker_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMakerDouble]:
    """The fake service that this test's launchers and commands use."""
    patience = {"pending_s": PATIENCE_S, "grace_s": PATIENCE_S}
    with SageMakerDouble(tmp_path / "sagemaker", environ=no_cloud_environ(), **patience) as double:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", double.url)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        yield double
