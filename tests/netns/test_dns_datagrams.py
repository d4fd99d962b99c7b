# SPDX-License-Identifier: Apache-2.0
"""Batches of datagrams where the kernel has no room for them."""

import socket

import pytest

from svcproxy_dns.datagrams import SENT_AT, SENT_STRIDE, SLOTS, Slots
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

ABSENT = "10.9.0.2"
"""An address that nobody has: until the kernel gives up looking for it, datagrams to it fill the sender's buffer."""


def test_without_room_the_rest_of_a_batch_is_refused_and_what_comes_later_goes() -> None:
    with Namespace() as space, space.entered():
        space.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        space.ip("addr", "add", "10.9.0.1/24", "dev", "v0")
        for name in ("v0", "v1"):
            space.ip("link", "set", name, "up")
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("10.9.0.1", 0))
            server.setblocking(False)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            client.settimeout(5)
            slots = Slots(server, destinations=False)
            for _ in range(SLOTS):
                client.sendto(b"query", server.getsockname())
            assert slots.receive() == SLOTS
            for number in range(SLOTS):
                slots.sent[SENT_AT + number * SENT_STRIDE] = 1000
                if number < SLOTS - 1:
                    slots.names[number][4:8] = socket.inet_aton(ABSENT)
            assert 1 < slots.send(0, SLOTS) < SLOTS
            space.ip("neigh", "replace", ABSENT, "lladdr", "02:00:00:00:00:01", "dev", "v0", "nud", "permanent")
            assert slots.send(SLOTS - 1, SLOTS) == 0
            assert len(client.recv(2000)) == 1000
