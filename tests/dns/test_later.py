# SPDX-License-Identifier: Apache-2.0
"""Responses that are found out later, on real sockets: they hold up nothing, and none is lost or sent twice."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

import pytest

from svcproxy_dns.admission import TcpLimits
from svcproxy_dns.elsewhere import Deliver, Later
from svcproxy_dns.framing import frame
from svcproxy_dns.tcp import UNREAD_MAX
from svcproxy_dns.udp import LATER_BATCH
from tests.dns.test_server import PATIENT, SOON, connected, read_message, receive, serving, udp

__all__ = ["udp"]


class Held:
    """Answers what begins with `now` at once, and holds the rest back until it is released."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bytes, Deliver]] = []
        self.arrived = asyncio.Event()

    def respond(self, message: bytes, _: int) -> bytes | Later:
        return message if message.startswith(b"now") else _Held(self, message)

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.begun) < count:
                self.arrived.clear()
                await self.arrived.wait()

    def release(self, answer: Callable[[bytes], bytes] = lambda message: message) -> None:
        held, self.begun = self.begun, []
        for _, message, deliver in reversed(held):
            deliver(answer(message))


class _Held:
    def __init__(self, owner: Held, message: bytes) -> None:
        self._owner = owner
        self._message = message

    def begin(self, client: str, deliver: Deliver) -> None:
        self._owner.begun.append((client, self._message, deliver))
        self._owner.arrived.set()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0"], ids=["one address", "every address"])
async def test_over_udp_others_are_answered_meanwhile(udp: socket.socket, listen: str) -> None:
    held = Held()
    async with serving(held.respond, listen) as (server, _, port):
        udp.connect(("127.0.0.1", port))
        count = 2 * LATER_BATCH + 1
        for number in range(count):
            udp.send(b"later%d" % number)
        udp.send(b"now")
        assert await receive(udp) == b"now"
        await held.holds(count)
        assert {client for client, *_ in held.begun} == {"127.0.0.1"}
        held.release()
        assert {await receive(udp) for _ in range(count)} == {b"later%d" % number for number in range(count)}
        await server.drain(5)


async def test_over_tcp_others_are_answered_meanwhile() -> None:
    """M13: pipelined, matched by ID."""
    held = Held()
    async with serving(held.respond) as (_, host, port), connected(host, port) as (reader, writer):
        writer.write(frame(b"later1") + frame(b"now1") + frame(b"later2") + frame(b"now2"))
        assert [await read_message(reader) for _ in range(2)] == [b"now1", b"now2"]
        await held.holds(2)
        held.release()
        assert [await read_message(reader) for _ in range(2)] == [b"later2", b"later1"]
        writer.write(frame(b"now3"))
        assert await read_message(reader) == b"now3"


async def test_a_client_that_waits_is_not_idle_and_is_after_that() -> None:
    held = Held()
    limits = TcpLimits(idle=SOON, message=30)
    async with serving(held.respond, limits=limits) as (server, host, port), connected(host, port) as (reader, writer):
        writer.write(frame(b"later"))
        await held.holds(1)
        await asyncio.sleep(5 * SOON)
        assert server.expired == 0
        held.release()
        assert await read_message(reader) == b"later"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
        assert server.expired == 1


async def test_a_client_that_half_closes_gets_what_it_waits_for() -> None:
    held = Held()
    async with serving(held.respond) as (_, host, port), connected(host, port) as (reader, writer):
        writer.write(frame(b"later"))
        writer.write_eof()
        await held.holds(1)
        held.release()
        assert await read_message(reader) == b"later"
        assert await reader.read() == b""


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
async def test_drain_waits_for_what_is_being_found_out(udp: socket.socket, tcp: bool) -> None:
    held = Held()
    async with contextlib.AsyncExitStack() as stack:
        server, host, port = await stack.enter_async_context(serving(held.respond))
        udp.connect((host, port))
        if tcp:
            reader, writer = await stack.enter_async_context(connected(host, port))
            writer.write(frame(b"later"))
        else:
            udp.send(b"later")
        await held.holds(1)
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(server.drain(5), name="drain")
            await asyncio.sleep(SOON)
            assert not draining.done()
            held.release()
            assert (await read_message(reader) if tcp else await receive(udp)) == b"later"


async def test_drain_gives_up_on_what_is_not_found_out(udp: socket.socket) -> None:
    held = Held()
    async with serving(held.respond) as (server, host, port):
        udp.connect((host, port))
        udp.send(b"later")
        await held.holds(1)
        await server.drain(SOON)
        server.close()
        held.release()
        assert server.unsent == 1


async def test_a_client_that_has_reset_is_not_waited_for() -> None:
    held = Held()
    async with serving(held.respond) as (server, host, port):
        async with connected(host, port) as (_, writer):
            resetting = struct.pack("ii", 1, 0)
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, resetting)
            writer.write(frame(b"later"))
            await held.holds(1)
        await server.drain(5)
        assert server.connections == 0
        held.release()


async def test_a_client_that_does_not_read_is_closed_when_it_is_owed_too_much() -> None:
    held = Held()
    async with serving(held.respond, limits=PATIENT) as (server, host, port), connected(host, port) as (_, deaf):
        deaf.transport.pause_reading()  # type: ignore[attr-defined]  # a StreamWriter's transport reads too
        count = 200
        for number in range(count):
            deaf.write(frame(b"later%d" % number))
        await held.holds(count)
        held.release(lambda message: message + bytes(65000))
        async with asyncio.timeout(5):
            while server.connections:  # noqa: ASYNC110  # a closed connection sets no event
                await asyncio.sleep(0.005)
    assert count * 65000 > 10 * UNREAD_MAX
