"""An AWS account at moto's server, and a shell that runs each ``mtl-cloud`` command as a process, as a user would.

moto lacks three things. It has no deep learning image in SSM, and its API, as AWS's own, takes no name below ``/aws/``:
the parameter is put into moto's own table, in this process. It has no Price List: a page that refuses at once has its
place, and the shipped tables stand in. And it boots no machine: what one writes, a test writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from aws_stack import keep_outputs
from s3_servers import CREDENTIALS, moto

from mtl_cloud.aws import AwsClients
from mtl_cloud.container.image import CLOUD_PLATFORM, image_content

__all__ = ["ACCOUNT", "Shell", "account", "push_image", "shell"]

ACCOUNT = "123456789012"
AMI_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""As AWS publishes it (release notes of the "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)")."""
Shell: TypeAlias = Callable[..., str]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsClients]:
    """Empty except for AWS's public data."""
    with moto() as url:
        endpoints = {"AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_PRICING": f"{url}/moto-api/nothing"}
        for name, value in {**CREDENTIALS, **endpoints}.items():
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
def shell(account: AwsClients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
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


def push_image(clients: AwsClients, repository: str) -> str:
    """Push an image as ``mtl-cloud image push`` does. Returns its reference by digest."""
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"})
    pushed = clients("ecr").put_image(
        repositoryName=repository.rpartition("/")[2],
        imageManifest=manifest,
        imageTag=image_content({}, platform=CLOUD_PLATFORM).tag,
    )
    return f"{repository}@{pushed['image']['imageId']['imageDigest']}"
