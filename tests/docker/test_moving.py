"""A run moves from this machine's container to EC2, to SageMaker and back, each time with facts of the new backend.

Every move is a command. EC2 is moto's, where no machine boots: that attempt is never begun. SageMaker is the package's
double, whose containers are processes of this machine. All of them share a bucket at moto's server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_engine import base_image, built
from shell_harness import Shell, account, push_image, shell
from waiting import wait_for

from mtl_cloud.aws import AwsClients
from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import image_content
from mtl_cloud.names import container_name
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import open_storage
from mtl_cloud.testing.sagemaker import SageMakerDouble

__all__ = ["account", "shell"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:Tried to parse AWS"),  # moto leaves the bucket's policy out, and says so
]

RUN = "moved-1"
LONGEST_S = 600.0
TRAINING = {"rounds": 2, "epochs_per_round": 2000, "batch_size": 4, "image_size": 32, "loader_workers": 0}
"""It never ends by itself: every move finds it at work."""


@pytest.fixture
def sagemaker(account: AwsClients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMakerDouble]:
    with SageMakerDouble(tmp_path / "sagemaker", environ=dict(os.environ)) as double:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", double.url)
        yield double


@pytest.fixture
def image(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MTL_CLOUD_ENGINE", engine.program)
    yield built(image_content({}, base=base_image(engine)), engine)
    engine.ask("rm", "--force", container_name(RUN))


def move(shell: Shell, backend: str, **compute: Any) -> None:
    options = [f"--set=compute.{name}={value}" for name, value in {**compute, "gpu_count": 0}.items()]
    shell("submit", "--resume", RUN, "--backend", backend, *options, "--detach")


def goes_on(run: RunRecord, attempt: int) -> bool:
    """The attempt has trained, from the checkpoint of the one before it."""
    start, beat = run.start(attempt), run.heartbeat(attempt)
    trains = beat is not None and bool(beat.progress.get("step"))
    return trains and start is not None and start.checkpoint_attempt == (attempt - 1 or None)


def test_a_run_moves_between_container_ec2_and_sagemaker_with_facts_of_each(
    account: AwsClients, shell: Shell, sagemaker: SageMakerDouble, image: str, tmp_path: Path
) -> None:
    stack = json.loads(shell("bootstrap", "--yes", "--json"))["outputs"]
    pushed = push_image(account, stack["repository_uri"])
    job = {"name": "moved", "dataset": {"name": "embedded"}, "model": {"width": 0.0625}, "training": TRAINING}
    folder = f"{stack['storage']}/ada"
    place = {"storage": folder, "compute": {"backend": "docker", "gpu_count": 0, "image": image}}
    (tmp_path / "job.yaml").write_text(json.dumps({**job, **place}))
    shell("submit", "job.yaml", "--run-id", RUN, "--detach")
    run = RunRecord(open_storage(folder), RUN)
    wait_for(lambda: goes_on(run, 1), LONGEST_S, every_s=0.3)

    move(shell, "ec2", instance_type="c5.9xlarge")
    facts: Any = run.plan().facts
    assert run.plan().image == pushed
    assert facts["ec2"]["subnets"] == stack["subnets"]
    assert facts["ec2"]["ami"]["id"] == account("ssm").get_parameter(Name="/image")["Parameter"]["Value"]
    (group,) = account("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["AutoScalingGroupName"], group["DesiredCapacity"]) == (f"mtl-cloud-{RUN}", 1)

    move(shell, "sagemaker", instance_type="ml.c5.9xlarge")
    facts = run.plan().facts
    assert (facts["sagemaker"]["role"], run.plan().image) == (stack["sagemaker_role_arn"], pushed)
    assert "ec2" not in facts
    assert account("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    wait_for(lambda: goes_on(run, 2), LONGEST_S, every_s=0.3)

    move(shell, "docker", image=image)
    assert run.plan().image == image
    assert not {"ec2", "sagemaker"} & run.plan().facts.keys()
    wait_for(lambda: goes_on(run, 3), LONGEST_S, every_s=0.3)
    assert [attempt.backend for attempt in run.attempts()] == ["docker", "sagemaker", "docker"]
    assert json.loads(shell("cancel", RUN, "--wait", "--json"))["outcome"] == "cancelled"
