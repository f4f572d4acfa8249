"""Kill a command at each of its requests in turn, and start it again.

The seam is the maker of clients: whatever a command asks of AWS goes through one, so a command written later can be
killed here as well. A kill before a request means that AWS never heard of it, one after it that we never heard back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Killed(BaseException):
    """Simulates the death of the process: no code of it may catch this."""


def _kill() -> None:
    raise Killed


class Mortal:
    """Makers of clients that raise at request ``at`` (1, 2, ...), ``before`` or after AWS has acted on it.

    Or have something else ``happen`` there, as another process may do it in the midst of this one.
    """

    def __init__(
        self, clients: Callable[[str], Any], at: int, *, before: bool, happen: Callable[[], None] = _kill
    ) -> None:
        self._clients = clients
        self._left = at
        self._before = before
        self._happen = happen

    def __call__(self, region: str) -> _MortalMaker:
        return _MortalMaker(self, self._clients(region))

    def ask(self, request: Callable[..., Any], parameters: dict[str, Any]) -> Any:
        self._left -= 1
        happens = self._left == 0
        if happens and self._before:
            self._happen()
        answer = request(**parameters)
        if happens and not self._before:
            self._happen()
        return answer


class _MortalMaker:
    def __init__(self, mortal: Mortal, maker: Any) -> None:
        self._mortal = mortal
        self._maker = maker
        self.region = maker.region

    def __call__(self, service: str, **options: Any) -> _MortalClient:
        return _MortalClient(self._mortal, self._maker(service, **options))


class _MortalClient:
    def __init__(self, mortal: Mortal, client: Any) -> None:
        self._mortal = mortal
        self._client = client

    def get_paginator(self, method: str) -> Any:
        return _MortalPages(self._mortal, self._client.get_paginator(method))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda **parameters: self._mortal.ask(getattr(self._client, method), parameters)


class _MortalPages:
    def __init__(self, mortal: Mortal, pages: Any) -> None:
        self._mortal = mortal
        self._pages = pages

    def paginate(self, **parameters: Any) -> Any:
        return self._mortal.ask(self._pages.paginate, parameters)


def kills(make_world: Callable[[], Any], command: Callable[[Any, Any], None]) -> Iterator[Any]:
    """Worlds in each of which ``command(world, clients)`` was killed once: before its first request, after it, before
    its second, ... until it comes through unharmed. ``world.cloud.clients`` are the immortal ones."""
    at = 0
    while True:
        at += 1
        for before in (True, False):
            world = make_world()
            try:
                command(world, Mortal(world.cloud.clients, at, before=before))
            except Killed:
                yield world
            else:
                return
