# SPDX-License-Identifier: Apache-2.0
"""TCP clients that take too much, or do what no client should, on the loops that the worker and the tests run on."""

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import dns.message
import pytest
import uvloop

from svcproxy_dns.admission import Refusal, TcpLimits
from svcproxy_dns.framing import frame
from svcproxy_dns.server import DnsServer
from svcproxy_dns.tcp import READ_OCTETS
from tests.dns.test_server import PATIENT, QUERY, SOON, connected, echo, read_message, respond_of_the_cluster, serving
from tests.dns.world import addresses

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset."""

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on one of the loops; an exception that nobody handles fails it."""

    def on_loop(test: Coroutine[Any, Any, None]) -> None:
        unhandled: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            runner.run(test)
        assert unhandled == []

    return on_loop


async def open_from(address: str, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(host, port, local_addr=(address, 0))


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes = b"q") -> bool:
    """Whether a query is answered; if not, the connection has been closed."""
    try:
        async with asyncio.timeout(5):
            writer.write(frame(message))
            return (await read_message(reader))[:-1] == message
    except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in other tasks
            await asyncio.sleep(0)


def test_an_address_with_too_many_connections_is_refused_more_and_no_other(run: Run) -> None:
    async def test() -> None:
        async with serving(echo, limits=TcpLimits(per_address=2)) as (server, host, port):
            first = [await open_from("127.0.0.1", host, port) for _ in range(2)]
            assert [await answered(*each) for each in first] == [True, True]
            third = await open_from("127.0.0.1", host, port)
            other = await open_from("127.0.0.2", host, port)
            assert (await answered(*third), await answered(*other)) == (False, True)
            assert server.refused == {Refusal.ADDRESS: 1, Refusal.NETWORK: 0, Refusal.TOTAL: 0}
            first[0][1].close()
            await until(lambda: server.connections == 2)
            fourth = await open_from("127.0.0.1", host, port)
            assert await answered(*fourth)
            for _, writer in (*first, third, other, fourth):
                writer.close()

    run(test())


def test_where_there_is_no_room_the_longest_idle_makes_it(run: Run) -> None:
    async def test() -> None:
        async with serving(echo, limits=TcpLimits(connections=3, idle=30, message=30)) as (server, host, port):
            busy, oldest, other = [await open_from("127.0.0.1", host, port) for _ in range(3)]
            assert [await answered(*each) for each in (oldest, other, busy)] == [True] * 3
            busy[1].write(b"\0")  # a message has begun
            await until(lambda: len(server._tcp.idle) == 2)
            newcomer = await open_from("127.0.0.1", host, port)
            assert await answered(*newcomer)
            assert (await answered(*oldest), await answered(*other)) == (False, True)
            assert (server.displaced, server.connections) == (1, 3)
            for _, writer in (busy, oldest, other, newcomer):
                writer.close()

    run(test())


def test_where_all_are_busy_another_is_refused(run: Run) -> None:
    async def test() -> None:
        async with serving(echo, limits=TcpLimits(connections=2, message=30)) as (server, host, port):
            there = [await open_from("127.0.0.1", host, port) for _ in range(2)]
            for _, writer in there:
                writer.write(b"\0")
            await until(lambda: server.connections == 2 and not server._tcp.idle)
            another = await open_from("127.0.0.1", host, port)
            assert not await answered(*another)
            assert server.refused[Refusal.TOTAL] == 1
            for _, writer in (*there, another):
                writer.close()

    run(test())


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_one_clients_pipelines_keep_no_other_waiting(run: Run, kind: socket.SocketKind) -> None:
    """10,000 queries at hand on ten connections; another client asks once and is answered among the first."""
    answers = 0

    def respond(message: bytes, _: int) -> bytes:
        nonlocal answers
        answers += 1
        return message

    async def test() -> None:
        async with serving(respond) as (_, host, port):
            many = [await open_from("127.0.0.1", host, port) for _ in range(10)]
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, kind) as other:
                other.bind(("127.0.0.2", 0))
                other.setblocking(False)
                await loop.sock_connect(other, (host, port))
                for _, writer in many:
                    writer.write(frame(b"many") * 1000)
                await until(lambda: answers > 0)
                await loop.sock_sendall(other, b"one" if kind == socket.SOCK_DGRAM else frame(b"one"))
                async with asyncio.timeout(5):
                    assert (await loop.sock_recv(other, 100)).endswith(b"one")
                assert answers < 5000
            for reader, writer in many:
                async with asyncio.timeout(5):
                    assert [await read_message(reader) for _ in range(1000)] == [b"many"] * 1000
                writer.close()

    run(test())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing sent"),
        pytest.param(frame(b"whole")[:3], id="half a message"),
        pytest.param(frame(b"whole") * 10_000, id="answers on their way"),
    ],
)
def test_a_reset_ends_the_connection_and_nothing_else(run: Run, sent: bytes) -> None:
    async def test() -> None:
        async with serving(echo) as (server, host, port):
            with socket.create_connection((host, port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.setblocking(False)
                await until(lambda: server.connections == 1)
                await asyncio.get_running_loop().sock_sendall(client, sent)
            await until(lambda: server.connections == 0)
            reader, writer = await asyncio.open_connection(host, port)
            assert await answered(reader, writer)
            writer.close()

    run(test())


def test_a_client_that_has_gone_before_it_is_accepted_is_no_matter(run: Run) -> None:
    async def test() -> None:
        async with serving(echo) as (server, host, port):
            sockets = [sock.dup() for sock in server.sockets()]
            server.close()
            with socket.create_connection((host, port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            successor = DnsServer(echo, sockets, PATIENT)
            await successor.start()
            reader, writer = await asyncio.open_connection(host, port)
            assert await answered(reader, writer)
            writer.close()
            await until(lambda: successor.connections == 0)
            successor.close()

    run(test())


def test_the_longest_message_is_answered_by_its_beginning(run: Run) -> None:
    """M9: what follows the question is ignored; and little of it is held."""

    async def test() -> None:
        message = QUERY.to_wire()
        async with serving(respond_of_the_cluster()) as (server, host, port), connected(host, port) as (reader, writer):
            writer.write(frame(message + bytes(65535 - len(message)))[:-1])
            await writer.drain()
            await until(lambda: server.connections == 1)
            (connection,) = server._tcp.connections
            assert connection._reader.pending <= READ_OCTETS
            writer.write(b"\0" + frame(message))
            for _ in range(2):
                assert addresses(dns.message.from_wire(await read_message(reader))) == ["10.96.10.1"]

    run(test())


def test_empty_messages_get_no_reply_and_disturb_nothing(run: Run) -> None:
    async def test() -> None:
        respond = respond_of_the_cluster()
        async with serving(respond) as (_, host, port), connected(host, port) as (reader, writer):
            writer.write(frame(b"") * 1000 + frame(QUERY.to_wire()))
            assert addresses(dns.message.from_wire(await read_message(reader))) == ["10.96.10.1"]

    run(test())


def test_a_message_that_comes_in_drops_has_its_time_as_a_whole(run: Run) -> None:
    async def test() -> None:
        limits = TcpLimits(idle=30, message=SOON)
        async with serving(echo, limits=limits) as (server, host, port), connected(host, port) as (reader, writer):
            writer.write(b"\xff\xff")
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b"\0")
                await asyncio.sleep(0)
            await until(lambda: server.connections == 0)
            assert server.expired == 1

    run(test())


def test_a_client_that_reads_slowly_gets_everything(run: Run) -> None:
    async def test() -> None:
        def long(message: bytes, _: int) -> bytes:
            return message * 30000

        async with serving(long) as (server, host, port), connected(host, port) as (reader, writer):
            writer.write(frame(b"ab") * 200)
            await until(lambda: any(connection._blocked for connection in server._tcp.connections))
            for _ in range(200):
                assert len(await read_message(reader)) == 60000
            assert server.expired == 0

    run(test())
