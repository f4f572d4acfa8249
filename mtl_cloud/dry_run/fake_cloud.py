"""Fakes of the cloud for a rehearsal: EC2's metadata service, SageMaker's ``/opt/ml``, an S3 server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mtl_cloud.dry_run.imds import SpotNotice, metadata_service
from mtl_cloud.errors import MissingExtraError
from mtl_cloud.names import SAGEMAKER_ROOT, SupervisorFlag

__all__ = ["StandIn", "local_s3", "stand_in"]

_BUCKET = "mtl-cloud-dry-run"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "dry-run",
    "AWS_SECRET_ACCESS_KEY": "dry-run",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class StandIn:
    """The options with which a container uses the fake."""

    options: tuple[str, ...] = ()
    """Options of the engine's ``run``."""
    flags: tuple[str, ...] = ()
    """Flags of the supervisor, as the backend's launcher passes them."""
    notice: SpotNotice | None = None
    """None: the interruption is a SIGTERM."""


@contextmanager
def stand_in(backend: str) -> Iterator[StandIn]:
    """The fake for a job of ``backend``."""
    if backend == "ec2":
        notice = SpotNotice()
        with metadata_service(notice) as url:
            variable = f"AWS_EC2_METADATA_SERVICE_ENDPOINT={url}"
            yield StandIn(("--env", variable, "--network", "host"), (SupervisorFlag.SPOT_NOTICES,), notice)
    elif backend == "sagemaker":
        with TemporaryDirectory(prefix="mtl-cloud-opt-ml-") as folder:
            _write_opt_ml(Path(folder))
            mount = f"type=bind,source={folder},target={SAGEMAKER_ROOT}"
            yield StandIn(("--mount", mount), (SupervisorFlag.SAGEMAKER, SAGEMAKER_ROOT))
    else:
        yield StandIn()


def _write_opt_ml(root: Path) -> None:
    """Write SageMaker's configuration for one host."""
    root.chmod(0o755)
    config = root / "input" / "config"
    config.mkdir(parents=True)
    resources = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"}
    (config / "resourceconfig.json").write_text(json.dumps(resources))


@contextmanager
def local_s3() -> Iterator[str]:
    """The URL of a storage in moto's S3 server on loopback; this process's environment points to that server.

    Raises ``MissingExtraError`` without moto.
    """
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise MissingExtraError("dev", "a local S3 server") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it prints every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with _environment({**_CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
            from mtl_cloud.aws import AwsClients

            AwsClients("us-east-1")("s3").create_bucket(Bucket=_BUCKET)
            yield f"s3://{_BUCKET}/runs"
    finally:
        server.stop()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replace all AWS variables of the environment by ``variables``."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)
