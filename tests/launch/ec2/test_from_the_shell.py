"""One run on EC2 from nothing to nothing, as a user types it, against moto's server: every command is a process.

moto lacks three things. It has no deep learning image in SSM, and its API, as AWS's own, takes no name below ``/aws/``:
the parameter is put into moto's own table, in this process. It has no Price List: a page that refuses at once has its
place, and the shipped tables stand in. And it boots no machine: what one writes, the test writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aws_stack import keep_outputs
from ec2_harness import end_run, work
from s3_servers import CREDENTIALS, moto

from mtl_cloud.aws import AwsClients
from mtl_cloud.image import CLOUD_PLATFORM, image_content
from mtl_cloud.lookup.account import AMI_PARAMETER
from mtl_cloud.run_record import RunRecord
from mtl_cloud.storage import open_storage

# moto leaves the bucket's policy out, and says so.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Tried to parse AWS")]

RUN = "digits-1"
ACCOUNT = "123456789012"
COMPUTE = {"backend": "ec2", "instance_type": "c5.9xlarge", "gpu_count": 0, "max_hours": 2}
Shell = Callable[..., str]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsClients]:
    with moto() as url:
        for name, value in {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": url,
            "AWS_ENDPOINT_URL_PRICING": f"{url}/moto-api/nothing",
        }.items():
            monkeypatch.setenv(name, value)
        keep_outputs(monkeypatch)
        clients = AwsClients("us-east-1")
        _publish_machine_image(clients)
        yield clients


def _publish_machine_image(clients: AwsClients) -> None:
    from moto.ssm.models import ssm_backends

    image = clients("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    clients("ssm").put_parameter(Name="/image", Value=image, Type="String")
    table = ssm_backends[ACCOUNT][clients.region]._parameters
    table[AMI_PARAMETER] = table["/image"]


@pytest.fixture
def shell(aws: AwsClients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A function that runs ``mtl-cloud`` with its arguments, as a new user, and returns what it prints."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def shell(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mtl_cloud", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return shell


def push_image(aws: AwsClients, repository: str) -> None:
    """As ``mtl-cloud image push`` leaves it."""
    tag = image_content({}, platform=CLOUD_PLATFORM).tag
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"})
    aws("ecr").put_image(repositoryName=repository.rpartition("/")[2], imageManifest=manifest, imageTag=tag)


def alive(aws: AwsClients) -> list[str]:
    """Ids of the run's instances. moto brings an interrupted one's replacement at a look at the group."""
    aws("autoscaling").describe_auto_scaling_groups()
    filters = [
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
        {"Name": "tag:mtl-cloud:run", "Values": [RUN]},
    ]
    found = aws("ec2").describe_instances(Filters=filters)["Reservations"]
    return [instance["InstanceId"] for held in found for instance in held["Instances"]]


def test_a_run_from_an_empty_account_to_nothing_left(aws: AwsClients, shell: Shell, tmp_path: Path) -> None:
    outputs = json.loads(shell("bootstrap", "--yes", "--json"))["outputs"]
    push_image(aws, outputs["repository_uri"])
    job = {"compute": COMPUTE, "dataset": {"name": "embedded"}, "storage": f"{outputs['storage']}/ada"}
    (tmp_path / "job.yaml").write_text(json.dumps({"name": "digits", **job}))

    planned = json.loads(shell("plan", "job.yaml", "--run-id", RUN, "--json"))
    checks = {check["name"]: check["status"] for check in planned["facts"]["checks"]}
    assert (checks["permission"], checks["storage"]) == ("ok", "ok")
    for _ in range(2):
        assert json.loads(shell("submit", "job.yaml", "--run-id", RUN, "--detach", "--json"))["outcome"] is None
    (first,) = alive(aws)
    assert "requesting: c5.9xlarge, on demand, in us-east-1" in shell("status", RUN)

    aws("ec2").terminate_instances(InstanceIds=[first])
    (second,) = alive(aws)
    assert second != first
    run = RunRecord(open_storage(job["storage"]), RUN)
    work(run, second, datetime.now(UTC), instance_type="c5.9xlarge")
    assert json.loads(shell("status", RUN, "--json"))["state"] == "running"
    assert shell("logs", RUN) == "epoch 1\n"
    assert "nothing is left" in shell("gc", "--dry-run")  # it may go on
    end_run(run)

    assert json.loads(shell("cost", RUN, "--json"))["usd"] == pytest.approx(planned["usd_per_hour"])
    assert f"{RUN}: removed" in shell("gc", "--yes")
    assert alive(aws) == []
    assert "nothing is left" in shell("gc", "--dry-run")
