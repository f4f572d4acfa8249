"""The attempt's log: one local file that trainer and supervisor append to, shipped in segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtl_cloud.supervise.secrets import NO_SECRETS, Secrets

__all__ = ["LogShipper", "append_line"]

SEGMENT_BYTES = 1 << 20


class LogShipper:
    """Ships a growing file as numbered segments, each byte once and in order.

    The file is the buffer: a storage outage of an hour costs neither memory nor a line. A segment is always retried
    with the same bytes, since the storage may have stored it although the request failed. Secrets are redacted in what
    is sent; the file keeps them.
    """

    def __init__(self, path: Path, send: Callable[[int, bytes], None], secrets: Secrets = NO_SECRETS) -> None:
        self._path = path
        self._send = send
        self._secrets = secrets
        self._offset = 0
        self._number = 1
        self._offered = b""

    def ship(self, *, last: bool = False) -> None:
        """Send all new complete lines; the ``last`` call also sends an incomplete one. Raises what ``send`` raises."""
        while data := self._offered or self._unsent(last=last):
            self._offered = data
            self._send(self._number, self._secrets.hide(data))
            self._offered = b""
            self._number += 1
            self._offset += len(data)

    def _unsent(self, *, last: bool) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(SEGMENT_BYTES)
        lines = data[: data.rfind(b"\n") + 1]
        if len(data) == SEGMENT_BYTES:
            return lines or data[: self._secrets.sendable(data)]
        return lines or (data if last else b"")


def append_line(path: Path, text: str) -> None:
    """Append a line, after a line break where the file ends in an incomplete line."""
    with path.open("ab+") as file:
        file.seek(max(0, path.stat().st_size - 1))
        unfinished = file.read() not in {b"", b"\n"}
        file.write(b"\n" * unfinished + text.encode() + b"\n")
