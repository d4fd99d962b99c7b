# SPDX-License-Identifier: Apache-2.0
"""Sockets bound to every address, on a node with several interfaces: replies come from the address that was asked."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy_dns.framing import frame
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.server import DnsServer
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

LINK_LOCAL = "fe80::53"
"""On both interfaces of the node: which one is meant, the scope tells."""
ADDRESSES = ("10.1.1.1", "10.1.1.9", "10.1.2.1", "fd01:1::1", "fd01:1::9", "fd01:2::1", LINK_LOCAL)
"""The node's, asked by either neighbour."""
PORT = 53


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, tuple[Namespace, Namespace]]]:
    """A node, and a neighbour on each of its interfaces."""
    with ExitStack() as stack:
        node, *neighbours = (stack.enter_context(Namespace()) for _ in range(3))
        for number, (name, neighbour) in enumerate(zip(("left", "right"), neighbours, strict=True), 1):
            node.connect(neighbour, name, number)
            node.ip("addr", "add", f"{LINK_LOCAL}/64", "dev", name, "nodad")
        node.ip("addr", "add", "10.1.1.9/24", "dev", "left")
        node.ip("addr", "add", "fd01:1::9/64", "dev", "left", "nodad")
        yield node, (neighbours[0], neighbours[1])


def connected(neighbour: Namespace, address: str, kind: socket.SocketKind) -> socket.socket:
    """A client: it takes nothing but what comes from that address and port."""
    with neighbour.entered():
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        client.settimeout(5)
        scope = (0, socket.if_nametoindex("eth0")) if address == LINK_LOCAL else ()
        client.connect((address, PORT, *scope))
        client.setblocking(False)
        return client


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
async def test_replies_come_from_the_address_that_was_asked(
    namespaces: tuple[Namespace, tuple[Namespace, Namespace]], kind: socket.SocketKind
) -> None:
    node, neighbours = namespaces
    with node.entered():
        sockets = bind_listeners([f"0.0.0.0:{PORT}", f"[::]:{PORT}"])
    server = DnsServer(lambda message, _: message, sockets)
    await server.start()
    loop = asyncio.get_running_loop()
    try:
        for neighbour in neighbours:
            for address in ADDRESSES:
                with connected(neighbour, address, kind) as client:
                    query = frame(address.encode()) if kind == socket.SOCK_STREAM else address.encode()
                    await loop.sock_sendall(client, query)
                    async with asyncio.timeout(5):
                        assert await loop.sock_recv(client, 100) == query, address
        assert server.unsent == 0
    finally:
        server.close()
