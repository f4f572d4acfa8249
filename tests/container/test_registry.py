"""Pushing: to ECR with a token that is gone afterwards, once for each content; and to a real registry's protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto import mock_aws

from mtl_cloud.aws import AwsClients
from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import image_content
from mtl_cloud.container.registry import push_to_ecr
from mtl_cloud.errors import ImageError

CONTENT = image_content({}, platform="linux/amd64")
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsClients]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        yield AwsClients("eu-west-1")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine that has every image, and writes down what it is asked for and given."""
    program = tmp_path / "engine"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n[ "$1" != login ] || (cat; echo) >> {tmp_path}/asked\n'
        '[ "$1" != image ] || echo "[{}]"\n'
    )
    program.chmod(0o755)
    return Engine(str(program), os.environ)


def test_a_push_logs_in_sends_and_logs_out(clients: AwsClients, engine: Engine, tmp_path: Path) -> None:
    clients("ecr").create_repository(repositoryName="mtl-cloud")
    pushed = push_to_ecr(CONTENT, engine, clients)
    reference = f"{HOST}/mtl-cloud:{CONTENT.tag}"
    assert (pushed.reference, pushed.was_there) == (reference, False)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if not line.startswith("image inspect")] == [
        f"login --username AWS --password-stdin {HOST}",
        "123456789012-auth-token",
        f"tag {CONTENT.reference} {reference}",
        f"push {reference}",
        f"logout {HOST}",
    ]


def test_what_is_there_is_not_pushed_again(clients: AwsClients, engine: Engine, tmp_path: Path) -> None:
    ecr = clients("ecr")
    ecr.create_repository(repositoryName="mtl-cloud")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind})
    ecr.put_image(repositoryName="mtl-cloud", imageManifest=manifest, imageTag=CONTENT.tag)
    assert push_to_ecr(CONTENT, engine, clients).was_there
    assert not (tmp_path / "asked").exists()


def test_a_repository_that_is_missing_is_said_to_be(clients: AwsClients, engine: Engine) -> None:
    with pytest.raises(ImageError, match="no ECR repository 'mtl-cloud' in eu-west-1") as caught:
        push_to_ecr(CONTENT, engine, clients)
    assert "infra" in str(caught.value.hint)


def test_an_image_that_was_not_built_names_the_command_that_builds_it(clients: AwsClients, tmp_path: Path) -> None:
    clients("ecr").create_repository(repositoryName="mtl-cloud")
    program = tmp_path / "empty"
    program.write_text("#!/bin/sh\necho 'Error: No such image: x' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ImageError, match="is not on this machine") as caught:
        push_to_ecr(CONTENT, Engine(str(program), os.environ), clients)
    assert caught.value.hint == "mtl-cloud image build --platform linux/amd64"
