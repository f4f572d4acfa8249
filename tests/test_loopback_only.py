"""Tests reach this machine and no other."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

ELSEWHERE = ("192.0.2.1", 80)
"""Of the addresses that RFC 5737 keeps for documentation."""


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_no_socket_leads_to_another_host(connect: str) -> None:
    with socket.socket() as stream, pytest.raises(pytest.fail.Exception, match=r"reached for 192\.0\.2\.1"):
        getattr(stream, connect)(ELSEWHERE)


def test_no_datagram_goes_to_another_host() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender, pytest.raises(pytest.fail.Exception, match="reached for"):
        sender.sendto(b"x", ELSEWHERE)


def test_no_other_hosts_name_is_looked_up() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"reached for s3\.amazonaws\.com"):
        socket.create_connection(("s3.amazonaws.com", 443))


def test_asyncio_is_no_way_around() -> None:
    with pytest.raises(pytest.fail.Exception, match="reached for"):
        asyncio.run(asyncio.open_connection(*ELSEWHERE))


def test_this_machine_is_reached_by_name_by_address_and_by_path(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as one:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        one.connect(str(tmp_path / "socket"))
