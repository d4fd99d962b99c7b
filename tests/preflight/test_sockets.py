# SPDX-License-Identifier: Apache-2.0
"""Who holds a port, from the kernel's lists."""

import os
import socket

import pytest

from svcproxy.preflight.sockets import Socket, clashes, holders, listening, parse

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0A00600A:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0000000000000000 100 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000   100        0 42 1 0000000000000000 100 0
   2: nonsense
"""
UDP6 = """\
  sl  local_address                         remote_address                        st tx rx tr tm retr uid timeout inode
   9: 00000000000000000000000001000000:14E9 00000000000000000000000000000000:0000 07 0:0 00:0 0 65534 0 43 2 0 0
"""


def test_lists_of_the_kernel_are_read() -> None:
    """As a little-endian machine prints them."""
    assert list(parse(TCP, "tcp", ipv6=False)) == [Socket("tcp", "10.96.0.10", 53, 41, 0)]
    assert list(parse(UDP6, "udp", ipv6=True)) == [Socket("udp", "::1", 5353, 43, 65534)]
    assert list(parse("", "tcp", ipv6=False)) == []


@pytest.mark.parametrize(
    ("held", "wanted", "clash"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", True, id="the same"),
        pytest.param("127.0.0.53", "127.0.0.1", False, id="another"),
        pytest.param("0.0.0.0", "127.0.0.1", True, id="all held"),
        pytest.param("127.0.0.1", "0.0.0.0", True, id="all wanted"),
        pytest.param("0.0.0.0", "::1", False, id="another family"),
        pytest.param("::", "0.0.0.0", True, id="a socket of both families"),
        pytest.param("::1", "::", True, id="all of IPv6"),
        pytest.param("::1", "0.0.0.0", False, id="one of IPv6"),
    ],
)
def test_clashes(held: str, wanted: str, clash: bool) -> None:
    there = [Socket("udp", held, 53, 1, 0), Socket("udp", held, 54, 2, 0), Socket("tcp", held, 53, 3, 0)]
    assert [each.inode for each in clashes(there, wanted, 53, "udp")] == ([1] if clash else [])


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_this_very_process_is_found(kind: socket.SocketKind, family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family, kind) as held:
        held.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            held.listen()
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        [found] = clashes(listening(), address, held.getsockname()[1], protocol)
        assert found.inode == os.fstat(held.fileno()).st_ino
        who = holders([found.inode])[found.inode]
        assert (who.pid, "pytest" in who.command) == (os.getpid(), True)
    assert clashes(listening(), address, found.port, protocol) == []
    assert holders([found.inode]) == {}
