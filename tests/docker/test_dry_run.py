"""Whole rehearsals in the real image: green for EC2 and SageMaker, red in the right row for what is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_engine import base_image, built

from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import image_content

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

EC2 = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8, "purchase": "spot"}
SAGEMAKER = {"backend": "sagemaker", "instance_type": "ml.g5.2xlarge"}
Rehearse = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def rehearse(engine: Engine, tmp_path: Path) -> Rehearse:
    """A function from a job's fields and options to the exit code and the document of its dry run."""
    image = built(image_content({}, base=base_image(engine)), engine)

    def rehearse(compute: dict[str, Any], *options: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        document = {"dataset": {"name": "embedded"}, "model": {"width": 0.0625}, "storage": "s3://b/runs", **fields}
        (tmp_path / "job.yaml").write_text(json.dumps({**document, "compute": compute}))
        command = [sys.executable, "-m", "mtl_cloud", "dry-run", "job.yaml", "--image", image, "--json", *options]
        environ = {**os.environ, "MTL_CLOUD_ENGINE": engine.program}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return rehearse


def failed(document: dict[str, Any]) -> list[str]:
    return [row["check"] for row in document["checks"] if row["state"] == "failed"]


@pytest.mark.parametrize(("compute", "options"), [(EC2, ()), (SAGEMAKER, ("--s3",))], ids=["ec2", "sagemaker"])
def test_a_job_that_works_is_green_in_every_row(
    rehearse: Rehearse, compute: dict[str, Any], options: tuple[str, ...]
) -> None:
    code, document = rehearse(compute, *options)
    for row in document["checks"]:
        print(f"{row['check']:22}{row['state']:13}{row['detail']}")
    assert (code, document["ok"], failed(document)) == (0, True, [])
    assert document["estimates"][0]["hours"][0] > 0


@pytest.mark.parametrize(
    ("options", "fields", "row"),
    [
        (["--data", "."], {"dataset": {"name": "voc", "uri": "s3://b/voc"}}, "dataset"),
        (["--image", "mtl-cloud:nowhere"], {}, "image"),
        (["--storage", "/proc/nowhere"], {}, "storage"),
        (["--memory", "100m"], {}, "memory"),
        (
            ["--data", "embedded"],
            {"model": {"pretrained": {"classification": "https://127.0.0.1:9/w.pth"}}},
            "forward and backward",
        ),
    ],
    ids=["broken dataset", "missing image", "unwritable storage", "out of memory", "trainer that raises"],
)
def test_what_is_broken_is_red_in_its_row(
    rehearse: Rehearse, options: list[str], fields: dict[str, Any], row: str
) -> None:
    code, document = rehearse(EC2, *options, **fields)
    assert (code, failed(document)) == (7, [row])
    print(*(found["detail"] for found in document["checks"] if found["state"] == "failed"))
