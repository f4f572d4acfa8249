"""An IMDSv2 server over real HTTP, for interruption notices."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["MAINTENANCE", "REBALANCE", "SPOT", "FakeImds"]

SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
MAINTENANCE = "/latest/meta-data/events/maintenance/scheduled"


class FakeImds(ThreadingHTTPServer):
    """Answers 401 without a valid token, and 404 for paths that are not in ``documents``.

    A document is sent as JSON, bytes as they are.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.documents: dict[str, Any] = {MAINTENANCE: []}
        self.tokens = 0
        """The number of requested tokens; only the newest is valid."""

    @property
    def environ(self) -> dict[str, str]:
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.server_port}"}

    @contextmanager
    def serving(self) -> Iterator[FakeImds]:
        with self:
            thread = threading.Thread(target=self.serve_forever, args=(0.01,))
            thread.start()
            yield self
            self.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeImds

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return self._answer(400)
        self.server.tokens += 1
        return self._answer(200, f"token-{self.server.tokens}".encode())

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != f"token-{self.server.tokens}":
            self._answer(401)
        elif self.path in self.server.documents:
            document = self.server.documents[self.path]
            self._answer(200, document if isinstance(document, bytes) else json.dumps(document).encode())
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""
