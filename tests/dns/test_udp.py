# SPDX-License-Identifier: Apache-2.0
"""What a batch of queries over UDP comes to when some of it is out of the ordinary."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import pytest

from svcproxy_dns.datagrams import SLOT_OCTETS, SLOTS
from svcproxy_dns.elsewhere import Deliver, Later
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.panics import Panics
from svcproxy_dns.server import DnsServer
from svcproxy_dns.traffic import Traffic
from svcproxy_dns.udp import LATER_BATCH

QUERY = dns.message.make_query("web.shop.svc.cluster.local.", "A", use_edns=0)


class Asked(Later):
    """Answers with its message when told to."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.deliver: Deliver | None = None

    def begin(self, client: str, deliver: Deliver) -> None:
        assert client == "127.0.0.1"
        self.deliver = deliver
        if self.message == b"broken":
            raise ZeroDivisionError


class Server:
    """A server whose responses depend on what the message says, and a client of it."""

    def __init__(self, listen: str = "127.0.0.1:0") -> None:
        self.traffic, self.panics = Traffic(), Panics()
        self.later: list[Asked] = []
        self.server = DnsServer(self.respond, bind_listeners([listen]), traffic=self.traffic, panics=self.panics)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.setblocking(False)
        self.client.connect(("127.0.0.1", self.server.sockets()[0].getsockname()[1]))

    def respond(self, message: bytes, transport: int) -> bytes | Later | None:
        assert transport == 0
        match message.partition(b" ")[0]:
            case b"silence":
                return None
            case b"long":
                return bytes(SLOT_OCTETS + 1)
            case b"longest":
                return bytes(65535)
            case b"later" | b"broken":
                self.later.append(Asked(message))
                return self.later[-1]
            case b"fault":
                raise ZeroDivisionError
            case _ if message[2:] == QUERY.to_wire()[2:]:
                raise ZeroDivisionError
            case _:
                return message

    @property
    def quiet(self) -> bool:
        """Whether nothing is being found out: then draining takes no time."""
        (listener,) = self.server._udp_listeners
        return listener.quiet.is_set()

    async def ask(self, *messages: bytes, count: int) -> list[bytes]:
        """Send all before any is read, and receive."""
        for message in messages:
            self.client.send(message)
        return [await self.receive() for _ in range(count)]

    async def receive(self) -> bytes:
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(self.client, 65535)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.server.start()
    yield made
    made.server.close()
    made.client.close()


async def test_what_gets_no_response_holds_up_nothing(server: Server) -> None:
    found = await server.ask(b"silence", b"1", b"silence", b"silence", b"2", b"3", b"silence", count=3)
    assert found == [b"1", b"2", b"3"]


async def test_a_response_longer_than_a_slot_is_sent_whole_and_in_order(server: Server) -> None:
    found = await server.ask(b"1", b"long", b"2", count=3)
    assert found == [b"1", bytes(SLOT_OCTETS + 1), b"2"]
    assert server.server.unsent == 0


async def test_a_response_longer_than_a_datagram_is_counted_and_the_others_are_sent(server: Server) -> None:
    assert await server.ask(b"1", b"longest", b"2", count=2) == [b"1", b"2"]
    assert server.server.unsent == 1


async def test_a_query_that_raises_gets_servfail_and_the_others_their_responses(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        one, failed, two = await server.ask(b"1", QUERY.to_wire(), b"fault", b"2", count=3)
    assert (one, two) == (b"1", b"2")
    response = dns.message.from_wire(failed)
    assert QUERY.is_response(response)
    assert (response.rcode(), response.edns) == (dns.rcode.SERVFAIL, 0)
    assert server.panics.count == 2
    assert len(caplog.records) == 1, "a client must not fill the log"
    assert "ZeroDivisionError" in caplog.text


async def test_more_to_be_found_out_than_is_begun_in_one_turn_is_begun_all_the_same(server: Server) -> None:
    messages = [b"later %d" % number for number in range(SLOTS + LATER_BATCH)]
    await server.ask(*messages, b"last", count=1)
    assert [each.message for each in server.later] == messages
    assert not server.quiet
    for each in server.later:
        assert each.deliver is not None
        each.deliver(each.message)
    assert [await server.receive() for _ in messages] == messages
    assert server.quiet


async def test_one_that_cannot_be_begun_is_counted_and_delivered_once(server: Server) -> None:
    assert await server.ask(b"broken", b"1", count=1) == [b"1"]
    assert server.panics.count == 1
    assert server.quiet
    (broken,) = server.later
    assert broken.deliver is not None
    broken.deliver(b"too late")
    assert await server.ask(b"2", count=1) == [b"2"]


async def test_times_are_counted_by_whose_name_it_is(server: Server) -> None:
    await server.ask(b"1", b"silence", b"2", b"later", count=2)
    (later,) = server.later
    assert later.deliver is not None
    later.deliver(b"response")
    assert await server.receive() == b"response"
    zones, elsewhere = server.traffic.zones.durations, server.traffic.elsewhere.durations
    assert (sum(zones.counts), sum(elsewhere.counts)) == (2, 1)
    assert zones.sum > 0


async def test_what_is_found_out_comes_from_the_address_that_was_asked() -> None:
    made = Server("0.0.0.0:0")
    await made.server.start()
    try:
        await made.ask(b"later", b"1", count=1)
        (later,) = made.later
        assert later.deliver is not None
        later.deliver(b"response")
        assert await made.receive() == b"response"
    finally:
        made.server.close()
        made.client.close()
