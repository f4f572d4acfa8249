"""Boots the machine once for every scenario of a file: metadata service, fresh bucket, and the boot script itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mtl_cloud.runs.schema import BootRecord

HERE = Path(__file__).parent
LOG = Path("/var/log/cloud-init-output.log")
PROGRAMS = (
    "aws",
    "curl",
    "docker",
    "lsblk",
    "mdadm",
    "mkfs.ext4",
    "mount",
    "mountpoint",
    "shutdown",
    "sleep",
    "systemctl",
)


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: nothing without a token."""

    market = "on-demand"
    notice: str | None = None
    protocol_version = "HTTP/1.0"

    def do_PUT(self) -> None:
        self._answer("secret-token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        known = {
            "instance-id": "i-0123456789abcdef0",
            "instance-type": "p4d.24xlarge",
            "placement/availability-zone": "us-east-1b",
            "instance-life-cycle": self.market,
            "spot/instance-action": self.notice,
        }
        if self.headers["X-aws-ec2-metadata-token"] == "secret-token":
            self._answer(known.get(self.path.removeprefix("/latest/meta-data/")))
        else:
            self._answer(None, refusal=401)

    def _answer(self, text: str | None, refusal: int = 404) -> None:
        self.send_response(refusal if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        pass


def _earlier_boot(instance: str) -> bytes:
    """The record of a machine that an interruption took after an hour."""
    record = BootRecord(
        instance=instance,
        instance_type="p4d.24xlarge",
        zone="us-east-1b",
        market="spot",
        phase="running",
        message="",
        started_at="2026-01-01T00:00:00+00:00",
        at="2026-01-01T01:00:00+00:00",
    )
    return record.encode()


def boot(scenario: dict[str, Any], folder: Path, endpoint: str) -> dict[str, Any]:
    """What was called, in what order, and what lies in the bucket afterwards."""
    Metadata.market = scenario.get("market", "on-demand")
    Metadata.notice = scenario.get("notice")
    shutil.copytree(HERE / "records" / scenario.get("record", "done"), folder / "s3")
    for name in scenario.get("boots", []):
        path = folder / "s3/bucket/runs-of-ada/runs/digits-1/boots" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_earlier_boot(path.stem))
    (folder / "count").write_text("0")
    (folder / "calls").write_text("")
    (folder / "signed").write_text("")
    environ = {
        "PATH": f"{HERE}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "WORLD": str(folder),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint,
        **scenario.get("environ", {}),
    }
    script = HERE / scenario.get("script", "user_data.sh")
    with LOG.open("wb") as log:
        code = subprocess.run(
            ["bash", str(script)], env=environ, stdout=log, stderr=log, check=False, timeout=300
        ).returncode
    bucket = folder / "s3/bucket/runs-of-ada/runs/digits-1"
    kept = [path for path in bucket.rglob("*") if path.is_file()]
    return {
        "code": code,
        "calls": [call.strip() for call in (folder / "calls").read_text().splitlines()],
        "signed": [call.strip() for call in (folder / "signed").read_text().splitlines()],
        "log": LOG.read_text(),
        "files": {str(path.relative_to(bucket)): path.read_text(errors="replace") for path in kept},
    }


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    scenarios = json.loads((HERE / "scenarios.json").read_text())
    results = {}
    for number, (name, scenario) in enumerate(scenarios.items()):
        folder = Path("/work") / str(number)
        folder.mkdir(parents=True)
        results[name] = boot(scenario, folder, f"http://127.0.0.1:{server.server_port}")
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
