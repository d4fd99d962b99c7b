# SPDX-License-Identifier: Apache-2.0
"""Batches of datagrams on real sockets."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy_dns.datagrams import (
    RECEIVED_AT,
    RECEIVED_STRIDE,
    SENT_AT,
    SENT_STRIDE,
    SLOT_OCTETS,
    SLOTS,
    Slots,
)
from svcproxy_dns.listeners import report_destination


class Pair:
    """A socket with slots, and a client of it."""

    def __init__(self, stack: ExitStack, address: str, *, destinations: bool = False) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server, self.client = (stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2))
        self.server.bind((address, 0))
        self.server.setblocking(False)
        self.client.settimeout(5)
        if destinations:
            report_destination(self.server)
        self.slots = Slots(self.server, destinations=destinations)

    def received(self, number: int) -> bytes:
        return bytes(self.slots.slots[number][: self.slots.received[RECEIVED_AT + number * RECEIVED_STRIDE]])

    def write(self, number: int, octets: bytes) -> None:
        self.slots.slots[number][: len(octets)] = octets
        self.slots.sent[SENT_AT + number * SENT_STRIDE] = len(octets)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_each_slot_has_its_datagram_and_its_sender(stack: ExitStack, address: str) -> None:
    pair = Pair(stack, address)
    other = stack.enter_context(socket.socket(pair.client.family, socket.SOCK_DGRAM))
    for client, message in ((pair.client, b"one"), (other, b"another"), (pair.client, b"")):
        client.sendto(message, pair.server.getsockname())
    assert pair.slots.receive() == 3
    assert [pair.received(number) for number in range(3)] == [b"one", b"another", b""]
    assert pair.slots.sender(0)[:2] == (address, pair.client.getsockname()[1])
    assert pair.slots.sender(1)[:2] == (address, other.getsockname()[1])
    assert pair.slots.source(0) == []


def test_fewer_than_slots_means_that_nothing_waits(stack: ExitStack) -> None:
    pair = Pair(stack, "127.0.0.1")
    for number in range(SLOTS + 1):
        pair.client.sendto(bytes([number]), pair.server.getsockname())
    assert [pair.slots.receive() for _ in range(3)] == [SLOTS, 1, 0]


def test_what_is_longer_than_a_slot_is_cut(stack: ExitStack) -> None:
    pair = Pair(stack, "127.0.0.1")
    pair.client.sendto(bytes(SLOT_OCTETS + 1), pair.server.getsockname())
    pair.client.sendto(b"next", pair.server.getsockname())
    assert pair.slots.receive() == 2
    assert (len(pair.received(0)), pair.received(1)) == (SLOT_OCTETS, b"next")


def test_slots_are_sent_to_those_who_sent_them(stack: ExitStack) -> None:
    pair = Pair(stack, "127.0.0.1")
    clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(SLOTS)]
    for client in clients:
        client.settimeout(5)
        client.sendto(b"query", pair.server.getsockname())
    assert pair.slots.receive() == SLOTS
    for number in range(SLOTS):
        pair.write(number, b"response %d" % number)
    assert pair.slots.send(0, SLOTS) == 0
    assert [client.recv(99) for client in clients] == [b"response %d" % number for number in range(SLOTS)]


@pytest.mark.parametrize("refused", [[0], [2], [4], [0, 1, 3], [0, 1, 2, 3, 4]])
def test_what_the_kernel_refuses_holds_up_nothing_else(stack: ExitStack, refused: list[int]) -> None:
    """Port 0 cannot be sent to: the name of a slot is overwritten with it."""
    pair = Pair(stack, "127.0.0.1")
    for number in range(5):
        pair.client.sendto(bytes([number]), pair.server.getsockname())
    assert pair.slots.receive() == 5
    for number in refused:
        pair.slots.names[number][2:4] = bytes(2)
    for number in range(5):
        pair.write(number, bytes([number]))
    assert pair.slots.send(0, 5) == len(refused)
    assert [pair.client.recv(9) for _ in range(5 - len(refused))] == [
        bytes([number]) for number in range(5) if number not in refused
    ]


@pytest.mark.parametrize(("address", "asked"), [("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.0.0.7"), ("::", "::1")])
def test_the_source_is_the_address_that_was_asked(stack: ExitStack, address: str, asked: str) -> None:
    """Of a whole batch, and of what is sent alone; a connected socket takes nothing from elsewhere."""
    pair = Pair(stack, address, destinations=True)
    port = pair.server.getsockname()[1]
    pair.client.connect((asked, port))
    other = stack.enter_context(socket.socket(pair.client.family, socket.SOCK_DGRAM))
    other.settimeout(5)
    other.connect(("::1" if ":" in asked else "127.0.0.1", port))
    for client in (pair.client, other, pair.client):
        client.send(b"query")
    assert pair.slots.receive() == 3
    for number in range(3):
        pair.write(number, b"response %d" % number)
    assert pair.slots.send(0, 3) == 0
    pair.server.sendmsg([b"alone"], pair.slots.source(0), 0, pair.slots.sender(0))
    assert [pair.client.recv(99) for _ in range(3)] == [b"response 0", b"response 2", b"alone"]
    assert other.recv(99) == b"response 1"


def test_a_closed_socket_receives_and_sends_nothing(stack: ExitStack) -> None:
    pair = Pair(stack, "127.0.0.1")
    pair.server.close()
    assert pair.slots.receive() == 0
    assert pair.slots.send(0, 2) == 2
