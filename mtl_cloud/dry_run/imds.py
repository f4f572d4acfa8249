"""An instance metadata service on loopback that issues a spot notice on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["SpotNotice", "metadata_service"]

_TOKEN = "dry-run"  # noqa: S105  # of a service that keeps no secret
_WARNING = timedelta(minutes=2)
"""EC2 issues the notice this long before the interruption."""


class SpotNotice:
    """Whether the notice is issued, and the time of the interruption."""

    def __init__(self) -> None:
        self.action: dict[str, str] | None = None

    def give(self) -> None:
        end = datetime.now(UTC) + _WARNING
        self.action = {"action": "terminate", "time": end.isoformat(timespec="seconds").replace("+00:00", "Z")}

    def withdraw(self) -> None:
        self.action = None


@contextmanager
def metadata_service(notice: SpotNotice) -> Iterator[str]:
    """The URL of a service that implements the part of IMDSv2 that the supervisor uses."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200, _TOKEN.encode())

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
                self._answer(401, b"")
            elif not self.path.endswith("/spot/instance-action") or notice.action is None:
                self._answer(404, b"")
            else:
                self._answer(200, json.dumps(notice.action).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class's names
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
