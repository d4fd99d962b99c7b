# SPDX-License-Identifier: Apache-2.0
"""The shells on real sockets of the loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.asyncquery
import dns.message
import pytest

from svcproxy_dns.admission import TcpLimits
from svcproxy_dns.elsewhere import Later
from svcproxy_dns.framing import frame
from svcproxy_dns.listeners import UDP_RECEIVE_OCTETS, bind_listeners, parse_listen, receive_room
from svcproxy_dns.rendered import TCP
from svcproxy_dns.server import DnsServer
from svcproxy_dns.udp import BATCH, Respond
from tests.dns.world import Client, addresses, records, synced_zone

WEB = "web.shop.svc.cluster.local."
QUERY = dns.message.make_query(WEB, "A", id=7)
PATIENT = TcpLimits(idle=30, message=30, write=30)
SOON = 0.02
"""Seconds: what a client may take where the test waits for the end of it."""


def respond_of_the_cluster() -> Respond:
    return Client(synced_zone(records())).core.respond


def echo(message: bytes, transport: int) -> bytes | None:
    """Makes visible what arrived: the message and the transport."""
    return message + bytes([transport]) if message != b"silence" else None


@asynccontextmanager
async def serving(
    respond: Respond, listen: str = "127.0.0.1:0", limits: TcpLimits = PATIENT
) -> AsyncIterator[tuple[DnsServer, str, int]]:
    server = DnsServer(respond, bind_listeners([listen]), limits)
    host, port = server.sockets()[0].getsockname()[:2]
    await server.start()
    try:
        yield server, host, port
    finally:
        server.close()


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        yield client


async def receive(client: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(client, 65535)


@asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


@pytest.mark.parametrize(
    ("listen", "transport"), [pytest.param("127.0.0.1:0", 0, id="IPv4"), pytest.param("[::1]:0", 1, id="IPv6")]
)
async def test_both_protocols_and_families(listen: str, transport: int) -> None:
    seen: list[int] = []
    respond = respond_of_the_cluster()

    def spy(message: bytes, number: int) -> bytes | Later | None:
        seen.append(number)
        return respond(message, number)

    async with serving(spy, listen) as (_, host, port):
        over_udp = await dns.asyncquery.udp(QUERY, host, port=port, timeout=5)
        over_tcp = await dns.asyncquery.tcp(QUERY, host, port=port, timeout=5)
    assert addresses(over_udp) == addresses(over_tcp) == ["10.96.10.1"]
    assert seen == [transport, TCP | transport]


async def test_truncated_over_udp_whole_over_tcp() -> None:
    query = dns.message.make_query("big.shop.svc.cluster.local.", "A")
    async with serving(respond_of_the_cluster()) as (_, host, port):
        answer, fell_back = await dns.asyncquery.udp_with_fallback(query, host, port=port, timeout=5)
    assert fell_back
    assert len(addresses(answer)) == 200


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        pytest.param("0.0.0.0:0", "127.0.0.1", id="IPv4"),
        pytest.param("0.0.0.0:0", "127.0.0.3", id="an address that the route would not choose"),
        pytest.param("[::]:0", "::1", id="IPv6"),
    ],
)
async def test_a_reply_comes_from_the_address_that_was_asked(listen: str, host: str) -> None:
    """A connected socket takes nothing from elsewhere."""
    async with serving(echo, listen) as (_, _, port):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect((host, port))
            client.send(b"question")
            assert (await receive(client))[:-1] == b"question"


async def test_a_burst_longer_than_a_batch_is_answered_whole(udp: socket.socket) -> None:
    async with serving(echo) as (_, host, port):
        udp.connect((host, port))
        for number in range(2 * BATCH + 1):
            udp.send(number.to_bytes(2, "big"))
        found = [await receive(udp) for _ in range(2 * BATCH + 1)]
    assert [int.from_bytes(octets[:2], "big") for octets in found] == list(range(2 * BATCH + 1))


async def test_a_response_that_cannot_be_sent_is_counted(udp: socket.socket) -> None:
    def too_large(message: bytes, _: int) -> bytes:
        return bytes(65508) if message == b"large" else message

    async with serving(too_large) as (server, host, port):
        udp.connect((host, port))
        udp.send(b"large")
        udp.send(b"small")
        assert await receive(udp) == b"small"
        assert server.unsent == 1


def test_what_finds_no_room_is_counted(udp: socket.socket) -> None:
    """Also by the process that has the socket next: the kernel counts."""
    sockets = bind_listeners(["127.0.0.1:0"])
    room = receive_room(sockets[0])
    assert room >= 2 * min(UDP_RECEIVE_OCTETS, int(Path("/proc/sys/net/core/rmem_max").read_text()))
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    udp.connect(sockets[0].getsockname())
    for _ in range(100):
        udp.send(bytes(500))
    duplicates = [sock.dup() for sock in sockets]
    first, second = DnsServer(echo, sockets), DnsServer(echo, duplicates)
    assert first.receive_drops() == second.receive_drops() > 0
    first.close()
    second.close()
    assert first.receive_drops() == 0


async def test_released_sockets_keep_what_waits_for_the_next_process(udp: socket.socket) -> None:
    """Queries and connections between two servers of the same sockets are answered, none is lost."""
    async with serving(echo) as (server, host, port):
        udp.connect((host, port))
        udp.send(b"first")
        assert (await receive(udp))[:-1] == b"first"
        duplicates = [sock.dup() for sock in server.sockets()]
        server.release()
        udp.send(b"between")
        async with connected(host, port) as (reader, writer):
            writer.write(frame(b"over TCP"))
            server.close()
            successor = DnsServer(echo, duplicates, PATIENT)
            await successor.start()
            try:
                assert (await receive(udp))[:-1] == b"between"
                assert (await read_message(reader))[:-1] == b"over TCP"
            finally:
                successor.close()


# TCP


async def test_queries_in_one_segment_are_answered_in_order() -> None:
    """M13, with more than a turn of the loop takes."""
    messages = [f"query {number}".encode() for number in range(200)]
    async with serving(echo) as (_, host, port), connected(host, port) as (reader, writer):
        writer.write(b"".join(map(frame, messages)))
        assert [(await read_message(reader))[:-1] for _ in messages] == messages


async def test_a_query_octet_by_octet_is_answered() -> None:
    """M14."""
    async with serving(respond_of_the_cluster()) as (_, host, port), connected(host, port) as (reader, writer):
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in frame(QUERY.to_wire()):
            writer.write(bytes([octet]))
            await writer.drain()
        assert addresses(dns.message.from_wire(await read_message(reader))) == ["10.96.10.1"]


async def test_a_message_without_reply_does_not_end_the_connection() -> None:
    async with serving(echo) as (_, host, port), connected(host, port) as (reader, writer):
        writer.write(frame(b"silence") + frame(b"sound"))
        assert (await read_message(reader))[:-1] == b"sound"


async def test_a_client_may_half_close_after_its_last_query() -> None:
    async with serving(echo) as (_, host, port), connected(host, port) as (reader, writer):
        writer.write(b"".join(frame(bytes([number])) for number in range(100)))
        writer.write_eof()
        assert [(await read_message(reader))[0] for _ in range(100)] == list(range(100))
        assert await reader.read() == b""


@pytest.mark.parametrize(
    ("sent", "answers", "limits"),
    [
        pytest.param(b"", 0, TcpLimits(idle=30, message=SOON), id="M15: nothing sent"),
        pytest.param(frame(b"whole")[:-1], 0, TcpLimits(idle=30, message=SOON), id="M15: half a frame"),
        pytest.param(frame(b"whole"), 1, TcpLimits(idle=SOON, message=30), id="M15: idle after an answer"),
        pytest.param(
            frame(b"whole") + frame(b"half")[:-1],
            1,
            TcpLimits(idle=30, message=SOON),
            id="half a frame after a whole one",
        ),
    ],
)
async def test_slow_and_idle_clients_are_closed(sent: bytes, answers: int, limits: TcpLimits) -> None:
    async with serving(echo, limits=limits) as (server, host, port), connected(host, port) as (reader, writer):
        writer.write(sent)
        for _ in range(answers):
            await read_message(reader)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
        assert server.expired == 1


async def test_a_client_that_does_not_read_is_closed_and_blocks_nobody() -> None:
    def long(message: bytes, _: int) -> bytes:
        return message * 30000

    limits = TcpLimits(idle=30, message=30, write=SOON)
    async with serving(long, limits=limits) as (server, host, port), connected(host, port) as (_, deaf):
        deaf.transport.pause_reading()  # type: ignore[attr-defined]  # a StreamWriter's transport reads too
        deaf.write(frame(b"ab") * 2000)
        async with connected(host, port) as (reader, writer):
            writer.write(frame(b"c"))
            assert await read_message(reader) == b"c" * 30000
        await server.drain(5)
        assert (server.expired, server.connections) == (1, 0)


async def test_drain_closes_what_is_answered_and_waits_for_the_rest() -> None:
    async with (
        serving(echo) as (server, host, port),
        connected(host, port) as (idle, asker),
        connected(host, port) as (reader, writer),
    ):
        asker.write(frame(b"first"))
        await read_message(idle)
        writer.write(frame(b"first") + frame(b"second")[:3])
        await read_message(reader)
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(server.drain(5), name="drain")
            assert await idle.read() == b""
            assert not draining.done()
            writer.write(frame(b"second")[3:])
            assert (await read_message(reader))[:-1] == b"second"
            assert await reader.read() == b""
        assert server.connections == 0


async def test_drain_answers_the_first_query_of_a_connection_that_has_just_come() -> None:
    async with (
        serving(echo) as (server, host, port),
        connected(host, port) as (reader, writer),
        connected(host, port) as (idle, asker),
    ):
        asker.write(frame(b"first"))
        await read_message(idle)
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(server.drain(5), name="drain")
            assert await idle.read() == b""
            writer.write(frame(b"only"))
            assert (await read_message(reader))[:-1] == b"only"
            assert await reader.read() == b""
            await draining
        assert server.connections == 0


async def test_drain_gives_up_in_time() -> None:
    async with serving(echo) as (server, host, port), connected(host, port) as (reader, writer):
        writer.write(frame(b"first") + b"x")
        await read_message(reader)
        await server.drain(SOON)
        assert server.connections == 1


# Sockets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("127.0.0.1:53", ("127.0.0.1", 53), id="IPv4"),
        pytest.param("[::1]:0", ("::1", 0), id="IPv6"),
        pytest.param("[FD00:0::1]:53", ("fd00::1", 53), id="IPv6 made canonical"),
    ],
)
def test_addresses_to_listen_on(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:53", "[127.0.0.1]:53", "localhost:53", ":53"],
)
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_listen(text)


def test_an_address_in_use_is_named_and_nothing_stays_open() -> None:
    held = bind_listeners(["127.0.0.1:0"])
    port = held[0].getsockname()[1]
    try:
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            bind_listeners(["127.0.0.1:0", f"127.0.0.1:{port}"])
    finally:
        for sock in held:
            sock.close()


def test_workers_share_an_address() -> None:
    first = bind_listeners(["127.0.0.1:0"], shared=True)
    port = first[0].getsockname()[1]
    second = bind_listeners([f"127.0.0.1:{port}"], shared=True)
    assert {sock.getsockname()[1] for sock in (*first, *second)} == {port}
    for sock in (*first, *second):
        sock.close()
