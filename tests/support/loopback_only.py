"""Tests reach this machine and no other.

An audit hook refuses sockets to other hosts, and the look-up of other hosts' names, in the process that runs the tests:
in all its threads, and for every library that uses Python's sockets (asyncio, aiohttp and botocore among them).

It does not see the sockets of C++ libraries (torch's gloo, the AWS Common Runtime) and of child processes. Children
have no credentials of AWS (``conftest.py``), and their environment names a proxy that nothing listens on.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["forbid_other_hosts", "package_index"]

_PROXIES = [case(f"{scheme}_proxy") for scheme in ("http", "https", "all") for case in (str.lower, str.upper)]
_DEAD_PROXY = "http://127.0.0.1:9"
_outside = {name: os.environ.get(name) for name in _PROXIES}
_HOST_OR_ADDRESS = {
    "socket.connect": 1,  # connect_ex too
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
"""Audit event (Python's "Audit events table") -> which of its arguments says where it goes."""
_HERE = {"", "localhost", "0.0.0.0", "::", socket.gethostname()}


def forbid_other_hosts() -> None:
    """Cut this process off, for as long as it runs: a test that reaches for another host fails."""
    sys.addaudithook(_check)
    os.environ |= dict.fromkeys(_PROXIES, _DEAD_PROXY)
    os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")


@contextmanager
def package_index() -> Iterator[None]:
    """Child processes that are started here find the package index, as they do outside of tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _outside.items():
            patch.delenv(name) if value is None else patch.setenv(name, value)
        yield


def _check(event: str, arguments: tuple[object, ...]) -> None:
    where = _HOST_OR_ADDRESS.get(event)
    if where is None:
        return
    address = arguments[where]
    if isinstance(address, tuple):
        host = address[0]
    elif event == "socket.connect":
        return  # a path: AF_UNIX
    else:
        host = address
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and not _is_here(host):
        pytest.fail(f"a test reached for {host} ({event}): tests reach no other host than this one")


def _is_here(host: str) -> bool:
    try:
        return host in _HERE or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
