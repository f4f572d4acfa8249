"""A proxy in front of an S3 server that injects faults, each of a kind that S3 and its network have."""

from __future__ import annotations

import http.client
import math
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from waiting import PATIENCE_S

__all__ = ["KINDS", "READ_KINDS", "FaultProxy"]

KINDS = (
    "503",
    "500",
    "expired",
    "skewed",
    "lost 500",
    "cut",
    "reset",
    "lost reply",
    "timeout",
    "flip in PUT",
    "flip in GET",
)
"""``lost``: the server executed the request, but its reply is lost."""
READ_KINDS = ("503", "500", "cut", "reset", "timeout", "slow", "flip in GET")
"""Faults while reading data. ``slow``: the answer arrives in small pieces, but complete."""
_PIECES = 5
_ANSWERS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "lost 500": (500, "InternalError"),
    "expired": (400, "ExpiredToken"),  # the credentials
    "skewed": (403, "RequestTimeTooSkewed"),  # the clock
}
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


class FaultProxy:
    """A context manager: requests to ``url`` reach the server at ``upstream`` through injected faults.

    Each request meets one of ``kinds`` with the probability ``rate``; ``injected`` counts them by kind. ``stall_s`` is
    how long a request that times out gets no answer. After ``in_a_row`` faults, the same request comes through.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rate: float,
        stall_s: float,
        seed: int = 0,
        kinds: Collection[str] = KINDS,
        in_a_row: float = math.inf,
    ) -> None:
        self.kinds = kinds
        self.rate = rate
        self.injected: Counter[str] = Counter()
        self.in_a_row = in_a_row
        self._met: Counter[str] = Counter()
        self._stall_s = stall_s
        self._upstream = urlsplit(upstream).netloc
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        proxy = self

        class Handler(_Handler):
            faults = proxy

        with _Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
        for connection in self._connections:
            connection.close()

    def choose(self, method: str, path: str, size: int, part: str = "") -> str | None:
        """The fault for a request (of the range ``part``), chosen among those that apply to it, or None."""
        # A listing has no checksum of its own: over TLS, which it is for, no bit of it can flip.
        reads_object = method == "GET" and "?" not in path
        can_flip = {"flip in PUT": method == "PUT" and size > 0, "flip in GET": reads_object}
        possible = [kind for kind in self.kinds if can_flip.get(kind, True)]
        request = f"{method} {path} {part}"
        with self._lock:
            if not possible or self._met[request] >= self.in_a_row or self._chance.random() >= self.rate:
                self._met[request] = 0
                return None
            self._met[request] += 1
            kind = min(self._chance.sample(possible, len(possible)), key=lambda kind: self.injected[kind])
            self.injected[kind] += 1
            return kind

    def flipped(self, body: bytes) -> bytes:
        with self._lock:
            bit = self._chance.randrange(8 * len(body))
        spoilt = bytearray(body)
        spoilt[bit // 8] ^= 1 << bit % 8
        return bytes(spoilt)

    def stall(self, part: float = 1.0) -> None:
        time.sleep(part * self._stall_s)

    def forward(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the server's answer. Each thread reuses its connection."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self._upstream, timeout=PATIENCE_S)
            self._connections.append(self._local.connection)
        connection = self._local.connection
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as answer:
            return answer.status, answer.getheaders(), answer.read()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client may close the connection of a stalled request; that is expected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer's body waits for the acknowledgement of its head: 40 ms
    faults: FaultProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.faults.choose(self.command, self.path, len(body), self.headers.get("Range", ""))
        if fault == "timeout":
            self.faults.stall()
        if fault in ("reset", "timeout"):
            return self._reset()
        if fault in _ANSWERS and fault != "lost 500":
            return self._fail(fault)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        spoilt = self.faults.flipped(body) if fault == "flip in PUT" else body
        return self._answer(fault, *self.faults.forward(self.command, self.path, headers, spoilt))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # names of http.server

    def _answer(self, fault: str | None, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if fault == "lost reply":
            return self._reset()
        if fault == "lost 500":
            return self._fail(fault)
        if fault == "flip in GET" and body and status < 300:
            body = self.faults.flipped(body)
        return self._send(status, headers, body, fault)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            return self._reset()
        pieces = _PIECES if fault == "slow" else 1
        if self.command != "HEAD":
            self._write(body, pieces)
        return None

    def _write(self, body: bytes, pieces: int) -> None:
        size = -(-len(body) // pieces)
        for start in range(0, len(body), max(1, size)):
            self.wfile.write(body[start : start + size])
            if pieces > 1:
                self.faults.stall(1 / pieces)

    def _fail(self, fault: str) -> None:
        status, code = _ANSWERS[fault]
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], body)

    def _reset(self) -> None:
        """Close the connection with RST instead of FIN, as when a machine vanishes."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in http.server
        """Silence."""
