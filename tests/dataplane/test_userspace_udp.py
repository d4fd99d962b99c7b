# SPDX-License-Identifier: Apache-2.0
"""UDP sessions on real sockets: their ends, their number, and what errors do."""

import asyncio
import socket

import pytest

from svcproxy.config import UserspaceConfig
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind
from svcproxy.frontends.table import FrontendDelta
from svcproxy.model.meta import Protocol
from svcproxy.testing.dataplane_conformance import cluster_ip, grow, service_port, shrink
from svcproxy.testing.traffic import PATIENCE, QUESTION_OCTETS, SILENCE, Client, Met, Server, ask, serving
from tests.dataplane.world import PORT, SOURCES, UserspaceHarness, userspace

UDP = Protocol.UDP
SOURCE = SOURCES[SourceKind.POD]


def dns(harness: UserspaceHarness) -> Frontend:
    """The frontend of these tests."""
    return cluster_ip(harness.address(0, UDP), service_port(0, UDP))


def serve(harness: UserspaceHarness, *backends: Backend) -> FrontendDelta:
    return FrontendDelta(frontends=(dns(harness),), backends=(grow(dns(harness), *backends),))


def client(harness: UserspaceHarness) -> Client:
    return Client(UDP, SOURCE, (harness.ip(1), PORT))


async def test_a_client_keeps_its_session_until_it_is_idle() -> None:
    async with userspace(UserspaceConfig(udp_idle_timeout=120.0)) as harness:
        server = Server("here", UDP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(serve(harness, server.backend))
            with client(harness) as asking:
                for _ in range(4):
                    assert await asking.ask() == "here"
                    await harness.pass_time(119.0)
                assert (harness.plane.sessions, harness.plane.totals.flows) == (1, 1)
                await harness.pass_time(1.0)
                assert harness.plane.sessions == 0
                assert await asking.ask() == "here"
                assert (harness.plane.sessions, harness.plane.totals.flows) == (1, 2)


async def test_the_longest_idle_session_makes_room() -> None:
    async with userspace(UserspaceConfig(udp_sessions_max=2)) as harness:
        server = Server("here", UDP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(serve(harness, server.backend))
            with client(harness) as first, client(harness) as second, client(harness) as third:
                for asking, flows in ((first, 1), (second, 2), (first, 2), (third, 3), (first, 3), (second, 4)):
                    assert await asking.ask() == "here"
                    assert harness.plane.totals.flows == flows
            assert harness.plane.sessions == harness.plane.totals.active == 2


async def test_a_backend_that_is_unreachable_is_replaced() -> None:
    """The first datagram is lost, as UDP may; the next goes to another backend."""
    async with userspace(random=lambda: 0.0) as harness:
        server = Server("good", UDP, harness.backend_ips[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind((harness.backend_ips[1], 0))
            bad = Backend(*nobody.getsockname())
        async with serving(server):
            await harness.plane.apply(serve(harness, bad, server.backend))
            with client(harness) as asking:
                assert await asking.ask(patience=SILENCE) == Met.SILENCE
                assert await asking.ask() == "good"
            assert harness.plane.totals.connect_failures == 1


async def test_affinity_lets_go_of_a_backend_that_is_unreachable() -> None:
    async with userspace(random=lambda: 0.0) as harness:
        server = Server("good", UDP, harness.backend_ips[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind((harness.backend_ips[1], 0))
            bad = Backend(*nobody.getsockname())
        sticky = Frontend(harness.address(0, UDP), service_port(0, UDP), FrontendKind.CLUSTER_IP, affinity_timeout=60)
        async with serving(server):
            backends = (grow(sticky, bad, server.backend),)
            await harness.plane.apply(FrontendDelta(frontends=(sticky,), backends=backends))
            with client(harness) as asking:
                assert await asking.ask(patience=SILENCE) == Met.SILENCE
                assert await asking.ask() == "good"
            assert await ask(UDP, SOURCE, (harness.ip(1), PORT)) == "good"


async def test_a_lone_backend_that_restarts_is_used_again() -> None:
    async with userspace() as harness:
        first = Server("before", UDP, harness.backend_ips[0])
        with client(harness) as asking:
            async with serving(first):
                await harness.plane.apply(serve(harness, first.backend))
                assert await asking.ask() == "before"
            assert await asking.ask(patience=SILENCE) == Met.SILENCE
            second = Server("after", UDP, first.backend.ip, first.backend.port)
            async with serving(second):
                assert await asking.ask() == "after"


async def test_the_reply_on_its_way_arrives_when_the_backend_is_removed() -> None:
    async with userspace() as harness:
        with client(harness) as asking, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as backend:
            backend.bind((harness.backend_ips[0], 0))
            backend.setblocking(False)
            there = Backend(*backend.getsockname())
            await harness.plane.apply(serve(harness, there))
            assert await asking.ask(b"slow", patience=SILENCE) == Met.SILENCE
            question, relay = backend.recvfrom(100)
            await harness.plane.apply(FrontendDelta(backends=(shrink(dns(harness), there),)))
            backend.sendto(b"late " + question, relay)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(asking.sock, 100) == b"late slow"


@pytest.mark.parametrize("octets", [0, 1, 1472, 9000, QUESTION_OCTETS - len("here ")])
async def test_datagrams_of_every_size_pass_whole(octets: int) -> None:
    async with userspace() as harness:
        server = Server("here", UDP, harness.backend_ips[0])
        async with serving(server):
            await harness.plane.apply(serve(harness, server.backend))
            with client(harness) as asking:
                assert await asking.ask(bytes(octets)) == "here"


async def test_sources_outside_the_ranges_are_dropped_and_counted() -> None:
    async with userspace() as harness:
        server = Server("here", UDP, harness.backend_ips[0])
        key = harness.address(0, UDP)
        ranges = (f"{SOURCES[SourceKind.OTHER]}/32",)
        frontend = Frontend(key, service_port(0, UDP), FrontendKind.LOAD_BALANCER, source_ranges=ranges)
        async with serving(server):
            await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, server.backend),)))
            assert await ask(UDP, SOURCE, (harness.ip(1), PORT), SILENCE) == Met.SILENCE
            assert (harness.plane.counters[key].not_admitted, harness.plane.sessions) == (1, 0)
            assert not server.seen


async def test_ipv6() -> None:
    async with userspace() as harness:
        server = Server("here", UDP, "::1")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
            port = probe.getsockname()[1]
        frontend = cluster_ip(Address("::1", UDP, port), service_port(0, UDP))
        async with serving(server):
            await harness.plane.apply(FrontendDelta(frontends=(frontend,)))
            assert await ask(UDP, "::1", ("::1", port)) == Met.REFUSED
            await harness.plane.apply(FrontendDelta(backends=(grow(frontend, server.backend),)))
            assert await ask(UDP, "::1", ("::1", port)) == "here"
