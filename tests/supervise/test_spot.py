"""Spot notices, from a metadata service that speaks IMDSv2 over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from run_harness import FakeClock, logged, make_run, start_supervisor, wait_for

from mtl_cloud.storage import FolderStorage
from mtl_cloud.supervise.contract import StopReason
from mtl_cloud.supervise.spot import SpotWatcher
from mtl_cloud.supervise.watch import Stop


class Service(ThreadingHTTPServer):
    """IMDSv2, as far as spot notices go: 401 without a token, 404 while there is no notice."""

    notice: dict[str, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        has_ttl = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if has_ttl and self.path == "/latest/api/token" else 400, "secret")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "secret":
            self._answer(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.notice:
            self._answer(200, json.dumps(self.server.notice))
        else:
            self._answer(404)

    def _answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_notice_leaves_its_time_less_a_margin(service: Service) -> None:
    watcher = SpotWatcher({"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url + "/"}, FakeClock())
    watcher.look()
    assert watcher.poll() is None
    service.notice = {"action": "terminate", "time": "2026-01-01T00:02:00Z"}
    watcher.look()
    message = "EC2 takes the spot instance back at 2026-01-01T00:02:00Z (terminate)"
    assert watcher.poll() == Stop(StopReason.SPOT, message, grace_s=110.0)


def test_no_metadata_service_is_an_error_to_try_again(service: Service) -> None:
    watcher = SpotWatcher({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{service.url}/elsewhere"}, FakeClock())
    with pytest.raises(OSError, match="400"):
        watcher.look()


def test_a_noticed_trainer_saves_and_the_run_is_left_to_the_next_machine(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    run = make_run(FolderStorage(tmp_path / "storage"), "print('up', flush=True); work()")
    with start_supervisor(run, tmp_path / "scratch", "--spot-notices") as process:
        wait_for(logged(run, "\nup\n"))
        service.notice = {"action": "terminate", "time": (datetime.now(UTC) + timedelta(minutes=2)).isoformat()}
        assert process.wait(20) == 75
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code) == ("interrupted", 75)
    assert run.result() is None
