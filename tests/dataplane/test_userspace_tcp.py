# SPDX-License-Identifier: Apache-2.0
"""TCP relays on real sockets: ends, resets, slow peers, backends that fail, and resources that run out."""

import asyncio
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest

from svcproxy.config import UserspaceConfig
from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.userspace.relay import READ_OCTETS
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, Scope
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta
from svcproxy.model.meta import Protocol
from svcproxy.testing.dataplane_conformance import cluster_ip, grow, service_port
from svcproxy.testing.traffic import Client, Met, Server, ask, serving
from tests.dataplane.world import PORT, SOURCES, UserspaceHarness, until, userspace

TCP = Protocol.TCP
SOURCE = SOURCES[SourceKind.POD]
SMALL_BUFFER = 4096
PATIENCE = 10.0


@asynccontextmanager
async def relayed(
    harness: UserspaceHarness,
) -> AsyncIterator[tuple[asyncio.AbstractEventLoop, socket.socket, socket.socket]]:
    """A client's and a backend's end of one relayed connection, with small kernel buffers."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        server.setblocking(False)
        server.bind((harness.backend_ips[0], 0))
        server.listen()
        await harness.plane.apply(web(harness, Backend(*server.getsockname())))
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(client, (harness.ip(1), PORT))
            backend, _ = await loop.sock_accept(server)
            stack.enter_context(backend)
            yield loop, client, backend


def web(harness: UserspaceHarness, *backends: Backend) -> FrontendDelta:
    """The frontend of these tests, and its backends."""
    frontend = cluster_ip(harness.address(0, TCP), service_port(0))
    return FrontendDelta(frontends=(frontend,), backends=(grow(frontend, *backends),))


def target(harness: UserspaceHarness) -> tuple[str, int]:
    return harness.ip(1), PORT


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def all_closed(harness: UserspaceHarness) -> None:
    """Return when the data plane has no connection."""
    async with asyncio.timeout(PATIENCE):
        await harness.plane.drain(PATIENCE)
    assert harness.plane.connections == 0
    assert harness.plane.totals.active == 0


@pytest.mark.parametrize("first", ["client", "backend"])
async def test_one_end_is_passed_on_and_the_other_direction_goes_on(first: str) -> None:
    async with userspace() as harness, relayed(harness) as (loop, client, backend):
        ending, other = (client, backend) if first == "client" else (backend, client)
        await loop.sock_sendall(ending, b"last words")
        ending.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(other, 100) == b"last words"
        assert await loop.sock_recv(other, 100) == b""
        for _ in range(3):
            await loop.sock_sendall(other, b"still here")
            assert await loop.sock_recv(ending, 100) == b"still here"
        assert harness.plane.connections == 1
        other.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(ending, 100) == b""
        await all_closed(harness)


@pytest.mark.parametrize("first", ["client", "backend"])
async def test_a_reset_is_passed_on(first: str) -> None:
    async with userspace() as harness, relayed(harness) as (loop, client, backend):
        ending, other = (client, backend) if first == "client" else (backend, client)
        reset(ending)
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(other, 100)
        await all_closed(harness)


@pytest.mark.parametrize("sender", ["client", "backend"])
async def test_a_peer_that_does_not_read_holds_back_one_that_writes(sender: str) -> None:
    """All octets arrive in the end, in order; meanwhile the relay holds one read at most, so the writer stalls."""
    async with userspace() as harness, relayed(harness) as (loop, client, backend):
        writer, reader = (client, backend) if sender == "client" else (backend, client)
        sent = 0
        pattern = bytes(range(256)) * 256
        quiet_turns = 0
        while quiet_turns < 100:
            try:
                sent += writer.send(pattern[sent % 256 :])
                quiet_turns = 0
            except BlockingIOError:
                quiet_turns += 1
            await asyncio.sleep(0)
        counters = harness.plane.totals
        taken = counters.octets_in if sender == "client" else counters.octets_out
        assert 0 < taken <= sent
        writer.setblocking(False)
        received = bytearray()
        while len(received) < sent:
            received += await loop.sock_recv(reader, READ_OCTETS)
        assert bytes(received) == (pattern * (sent // len(pattern) + 1))[:sent]
        await loop.sock_sendall(writer, b"on")
        assert await loop.sock_recv(reader, 100) == b"on"


@pytest.mark.parametrize("ending", ["client", "backend"])
async def test_a_reset_reaches_a_paused_connection(ending: str) -> None:
    """The writer is held back and dies: nobody waits for it."""
    async with userspace() as harness, relayed(harness) as (_, client, backend):
        writer = client if ending == "client" else backend
        quiet_turns = 0
        while quiet_turns < 100:
            try:
                writer.send(bytes(READ_OCTETS))
                quiet_turns = 0
            except BlockingIOError:
                quiet_turns += 1
            await asyncio.sleep(0)
        reset(writer)
        await all_closed(harness)


async def test_a_client_that_says_nothing_harms_nobody() -> None:
    async with userspace() as harness, relayed(harness):
        server = Server("here", TCP, harness.backend_ips[1])
        async with serving(server):
            frontend = cluster_ip(harness.address(0, TCP), service_port(1))
            await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),)))
            assert await ask(TCP, SOURCE, target(harness)) == "here"


@contextmanager
def closed_ports(ip: str, count: int) -> Iterator[list[Backend]]:
    """Backends that refuse: bound sockets that do not listen."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((ip, 0))
        yield [Backend(*sock.getsockname()) for sock in sockets]


async def test_a_backend_that_refuses_is_replaced_by_another() -> None:
    async with userspace(random=lambda: 0.0) as harness:
        server = Server("good", TCP, harness.backend_ips[0])
        with closed_ports(harness.backend_ips[1], 2) as bad:
            async with serving(server):
                await harness.plane.apply(web(harness, *bad, server.backend))
                assert await ask(TCP, SOURCE, target(harness)) == "good"
                counters = harness.plane.counters[harness.address(0, TCP)]
                assert (counters.connect_failures, counters.flows_failed) == (2, 0)


async def test_no_more_backends_are_tried_than_configured() -> None:
    async with userspace(UserspaceConfig(connect_attempts=2), random=lambda: 0.0) as harness:
        server = Server("good", TCP, harness.backend_ips[0])
        with closed_ports(harness.backend_ips[1], 2) as bad:
            async with serving(server):
                await harness.plane.apply(web(harness, *bad, server.backend))
                assert await ask(TCP, SOURCE, target(harness)) == Met.REFUSED
                counters = harness.plane.counters[harness.address(0, TCP)]
                assert (counters.connect_failures, counters.flows_failed, counters.active) == (2, 1, 0)


async def test_a_backend_that_does_not_answer_is_replaced_after_the_timeout() -> None:
    """A full backlog drops the handshake, as a dead host would."""
    async with userspace(UserspaceConfig(connect_timeout=0.01), random=lambda: 0.0) as harness:
        server = Server("good", TCP, harness.backend_ips[0])
        with ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind((harness.backend_ips[1], 0))
            full.listen(0)
            filler = stack.enter_context(socket.socket())
            filler.connect(full.getsockname())
            async with serving(server):
                await harness.plane.apply(web(harness, Backend(*full.getsockname()), server.backend))
                assert await ask(TCP, SOURCE, target(harness)) == "good"
                assert harness.plane.totals.connect_failures == 1


async def test_connections_over_the_limit_are_refused_and_counted() -> None:
    async with userspace(UserspaceConfig(connections_max=1)) as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(web(harness, server.backend))
            with Client(TCP, SOURCE, target(harness)) as client:
                assert await client.ask() == "here"
                assert await ask(TCP, SOURCE, target(harness)) == Met.REFUSED
                assert await client.ask() == "here"
            await until(lambda: not harness.plane.connections)
            assert await ask(TCP, SOURCE, target(harness)) == "here"
            assert harness.plane.totals.over_limit == 1


async def test_who_is_not_admitted_is_reset_and_counted() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        key = harness.address(0, TCP)
        ranges = (f"{SOURCES[SourceKind.OTHER]}/32",)
        frontend = Frontend(key, service_port(0), FrontendKind.LOAD_BALANCER, source_ranges=ranges)
        async with serving(server):
            await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),)))
            assert await ask(TCP, SOURCE, target(harness)) == Met.REFUSED
            assert harness.plane.counters[key].not_admitted == 1
            assert not server.seen


async def test_accepting_goes_on_when_descriptors_are_there_again() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(web(harness, server.backend))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with Client(TCP, SOURCE, target(harness)) as client:
                with socket.socket() as highest:
                    lowered = highest.fileno()
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, hard))
                    async with asyncio.TaskGroup() as group:
                        asking = group.create_task(client.ask(), name="client")
                        await until(lambda: bool(harness.notices))
                        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                        assert await asking == "here"
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert [notice.message for notice in harness.notices] == ["connections cannot be taken"]
            harness.now += 60.0
            assert await ask(TCP, SOURCE, target(harness)) == "here"
            assert harness.notices[-1].message == "connections are taken again"


async def test_a_change_of_backends_keeps_the_socket() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        frontend = cluster_ip(harness.address(0, TCP), service_port(0))
        name = f"tcp/{harness.ip(1)}:{PORT}"
        async with serving(server):
            await harness.plane.apply(FrontendDelta(frontends=(frontend,)))
            bound = harness.plane.sockets()[name]
            for _ in range(3):
                assert await ask(TCP, SOURCE, target(harness)) == Met.REFUSED
                await harness.plane.apply(FrontendDelta(backends=(grow(frontend, server.backend),)))
                assert await ask(TCP, SOURCE, target(harness)) == "here"
                gone = BackendSetDelta(frontend.backend_set(Scope.CLUSTER), removed=(server.backend,))
                await harness.plane.apply(FrontendDelta(backends=(gone,)))
            assert harness.plane.sockets()[name] is bound


async def test_octets_are_counted_both_ways() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(web(harness, server.backend))
            with Client(TCP, SOURCE, target(harness)) as client:
                assert await client.ask(b"12345") == "here"
            counters = harness.plane.counters[harness.address(0, TCP)]
            assert (counters.flows, counters.octets_in, counters.octets_out) == (1, 5, len("here 12345"))


async def test_ipv6() -> None:
    async with userspace() as harness:
        server = Server("here", TCP, "::1")
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            port = probe.getsockname()[1]
        frontend = cluster_ip(Address("::1", TCP, port), service_port(0))
        async with serving(server):
            delta = FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),))
            assert await harness.plane.apply(delta) == {frontend.key: APPLIED}
            assert await ask(TCP, "::1", ("::1", port)) == "here"
            assert list(harness.plane.sockets()) == [f"tcp/[::1]:{port}"]
