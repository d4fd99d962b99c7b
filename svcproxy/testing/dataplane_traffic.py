# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the name of a test says what holds
"""What packets must meet, whatever data plane moves them. Row numbers are those of kube-proxy's acceptance cases.

Two backends: `here` is on this node, `there` is not. Which of them exist, and in which sets, is the row's; how such
sets come about is decided in `svcproxy.frontends`.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import ClassVar, Protocol

import pytest

from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import (
    Address,
    Frontend,
    FrontendKind,
    NodePort,
    Refusal,
    Scope,
    TrafficPolicy,
)
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta
from svcproxy.model.meta import Family
from svcproxy.model.meta import Protocol as Transport
from svcproxy.testing.dataplane_conformance import DataplaneLaws, Harness, cluster_ip, grow, service_port, shrink
from svcproxy.testing.traffic import PATIENCE, SILENCE, Client, Met, Server, serving

NODE_PORT = 20080
QUESTIONS = 25
"""Asked by each of the clients under changing endpoints."""
CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
POD, NODE, OTHER = SourceKind.POD, SourceKind.NODE, SourceKind.OTHER
TRANSPORTS = pytest.mark.parametrize("transport", [Transport.TCP, Transport.UDP])


class TrafficHarness(Harness, Protocol):
    """A data plane whose frontends can be connected to."""

    @property
    def backend_ips(self) -> tuple[str, str, str]:
        """Addresses that backends can be bound to and the data plane can reach."""
        ...

    def source(self, kind: SourceKind) -> str:
        """An address that clients of this kind can be bound to."""
        ...

    def inside(self, ip: str) -> AbstractContextManager[None]:
        """The block is where sockets can be bound to that source or backend address. Nothing is awaited in it."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Let the data plane's time pass."""
        ...


class Row:
    """A frontend, its two sets, a client, and what the client meets."""

    def __init__(
        self,
        kind: FrontendKind,
        policy: TrafficPolicy,
        cluster: Sequence[str],
        local: Sequence[str],
        source: SourceKind,
        meets: str,
        *,
        empty: Refusal = Refusal.REJECT,
    ) -> None:
        self.kind = kind
        self.policy = policy
        self.cluster = cluster
        self.local = local
        self.source = source
        self.meets = meets
        self.empty = empty


_C, _N, _E, _L = FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER
_DROP = Refusal.DROP

ROWS = [
    pytest.param(Row(_C, CLUSTER, ["here"], ["here"], POD, "here"), id="1 ClusterIP from a pod"),
    pytest.param(Row(_C, CLUSTER, ["there"], [], NODE, "there"), id="2 ClusterIP from the node"),
    pytest.param(Row(_C, CLUSTER, ["there"], [], OTHER, "there"), id="4 ClusterIP from outside"),
    pytest.param(Row(_C, CLUSTER, [], [], POD, Met.REFUSED), id="5 no endpoints: ClusterIP from a pod"),
    pytest.param(Row(_C, CLUSTER, [], [], NODE, Met.REFUSED), id="5 no endpoints: ClusterIP from the node"),
    pytest.param(Row(_N, CLUSTER, [], [], OTHER, Met.REFUSED), id="5 no endpoints: NodePort from outside"),
    pytest.param(Row(_L, CLUSTER, [], [], OTHER, Met.REFUSED), id="5 no endpoints: VIP from outside"),
    pytest.param(Row(_E, CLUSTER, [], [], OTHER, Met.REFUSED), id="5 no endpoints: external IP from outside"),
    pytest.param(Row(_C, LOCAL, ["there"], [], POD, Met.SILENCE, empty=_DROP), id="6 iTP Local from a pod"),
    pytest.param(Row(_C, LOCAL, ["there"], [], NODE, Met.SILENCE, empty=_DROP), id="6 iTP Local from the node"),
    pytest.param(Row(_C, LOCAL, [], [], POD, Met.REFUSED), id="7 iTP Local, nothing anywhere, from a pod"),
    pytest.param(Row(_C, LOCAL, [], [], NODE, Met.REFUSED), id="7 iTP Local, nothing anywhere, from the node"),
    pytest.param(Row(_N, CLUSTER, ["there"], [], OTHER, "there"), id="8 NodePort, eTP Cluster"),
    pytest.param(Row(_N, LOCAL, ["here", "there"], ["here"], OTHER, "here"), id="9 NodePort, eTP Local"),
    pytest.param(Row(_L, LOCAL, ["here", "there"], ["here"], OTHER, "here"), id="9 VIP, eTP Local"),
    pytest.param(
        Row(_N, LOCAL, ["there"], [], OTHER, Met.SILENCE, empty=_DROP), id="10 NodePort, eTP Local, none here"
    ),
    pytest.param(Row(_L, LOCAL, ["there"], [], POD, "there", empty=_DROP), id="11 VIP, eTP Local, from a pod"),
    pytest.param(Row(_N, LOCAL, ["there"], [], POD, "there", empty=_DROP), id="11 NodePort, eTP Local, from a pod"),
    pytest.param(Row(_L, LOCAL, ["there"], [], NODE, "there", empty=_DROP), id="12 VIP, eTP Local, from the node"),
    pytest.param(Row(_L, LOCAL, ["there"], ["here"], OTHER, "here"), id="14 the local set alone has the terminating"),
    pytest.param(Row(_L, LOCAL, ["there"], ["here"], POD, "there"), id="14 a pod gets the ready one elsewhere"),
]


class DataplaneTraffic(DataplaneLaws):
    """The laws, and what real clients meet."""

    moves_traffic: ClassVar[bool] = True
    drop_is_refusal: ClassVar[bool] = False
    """Whether a client that should meet silence may be refused: the data plane cannot drop the packets of others."""
    excused: ClassVar[Mapping[str, str]] = {}
    """Tests that do not hold for the data plane by itself, and why."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in cls.excused:
            getattr(cls, name)

    @pytest.fixture(autouse=True)
    def _skip_what_is_excused(self, request: pytest.FixtureRequest) -> None:
        if reason := self.excused.get(request.function.__name__):
            pytest.skip(reason)

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[TrafficHarness]:
        """A harness with an empty data plane, closed at the end."""

    @TRANSPORTS
    @pytest.mark.parametrize("row", ROWS)
    async def test_decisions(self, row: Row, transport: Transport) -> None:
        async with self.open() as harness:
            servers = _servers(harness, transport, "here", "there")
            key = NodePort(Family.IPV4, transport, NODE_PORT) if row.kind is _N else harness.address(0, transport)
            frontend = Frontend(key, service_port(0, transport), row.kind, row.policy, row.empty)
            delta = FrontendDelta(
                frontends=(frontend,),
                backends=(
                    grow(frontend, *(servers[name].backend for name in row.cluster)),
                    grow(frontend, *(servers[name].backend for name in row.local), scope=Scope.LOCAL),
                ),
                node_port_addresses=frozenset(harness.node_ips),
            )
            async with serving(*servers.values()):
                await harness.plane.apply(delta)
                for target in _targets(harness, frontend):
                    await self._expect(harness, row.meets, transport, harness.source(row.source), target)

    @TRANSPORTS
    @pytest.mark.parametrize(
        ("kind", "sources", "meets"),
        [
            pytest.param(_L, [OTHER], "here", id="32 a source inside"),
            pytest.param(_L, [POD], Met.SILENCE, id="32 a source outside"),
            pytest.param(_L, [POD, OTHER], "here", id="33 one of two ranges"),
            pytest.param(_L, [], Met.SILENCE, id="no range of the family"),
        ],
    )
    async def test_source_ranges(
        self, kind: FrontendKind, sources: list[SourceKind], meets: str, transport: Transport
    ) -> None:
        async with self.open() as harness:
            servers = _servers(harness, transport, "here")
            ranges = tuple(f"{harness.source(source)}/32" for source in sources)
            frontend = Frontend(harness.address(0, transport), service_port(0, transport), kind, source_ranges=ranges)
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(frontends=(frontend,), backends=(grow(frontend, servers["here"].backend),))
                )
                await self._expect(harness, meets, transport, harness.source(OTHER), _targets(harness, frontend)[0])
                assert len(servers["here"].seen) == (meets == "here")

    async def test_node_ports_are_open_on_the_chosen_addresses_alone(self) -> None:
        """Row 35, and a change of the addresses."""
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "here")
            frontend = Frontend(NodePort(Family.IPV4, Transport.TCP, NODE_PORT), service_port(0), _N)
            first, second = harness.node_ips
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(
                        frontends=(frontend,),
                        backends=(grow(frontend, servers["here"].backend),),
                        node_port_addresses=frozenset((first,)),
                    )
                )
                source = harness.source(OTHER)
                await self._expect(harness, "here", Transport.TCP, source, (first, NODE_PORT))
                await self._expect(harness, Met.REFUSED, Transport.TCP, source, (second, NODE_PORT))
                await harness.plane.apply(FrontendDelta(node_port_addresses=frozenset((second,))))
                await self._expect(harness, Met.REFUSED, Transport.TCP, source, (first, NODE_PORT))
                await self._expect(harness, "here", Transport.TCP, source, (second, NODE_PORT))

    async def test_an_address_of_a_service_beats_a_node_port(self) -> None:
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "address", "node-port")
            ip = harness.node_ips[0]
            node_port = Frontend(NodePort(Family.IPV4, Transport.TCP, NODE_PORT), service_port(0), _N)
            address = Frontend(Address(ip, Transport.TCP, NODE_PORT), service_port(1), _E)
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(
                        frontends=(node_port, address),
                        backends=(
                            grow(node_port, servers["node-port"].backend),
                            grow(address, servers["address"].backend),
                        ),
                        node_port_addresses=frozenset((ip,)),
                    )
                )
                source = harness.source(OTHER)
                await self._expect(harness, "address", Transport.TCP, source, (ip, NODE_PORT))
                await harness.plane.apply(FrontendDelta(removed=(address.key,)))
                await self._expect(harness, "node-port", Transport.TCP, source, (ip, NODE_PORT))

    async def test_one_protocol_without_endpoints_leaves_the_other_alone(self) -> None:
        """Row 36."""
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "tcp")
            tcp, udp = (
                cluster_ip(harness.address(0, transport), service_port(0, transport))
                for transport in (Transport.TCP, Transport.UDP)
            )
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(frontends=(tcp, udp), backends=(grow(tcp, servers["tcp"].backend),))
                )
                source = harness.source(POD)
                await self._expect(harness, "tcp", Transport.TCP, source, _targets(harness, tcp)[0])
                await self._expect(harness, Met.REFUSED, Transport.UDP, source, _targets(harness, udp)[0])

    @TRANSPORTS
    async def test_affinity_keeps_a_client_until_it_was_idle(self, transport: Transport) -> None:
        """Rows 37 and 38; the two frontends share one assignment."""
        async with self.open() as harness:
            servers = _servers(harness, transport, "a", "b")
            frontends = [
                Frontend(harness.address(n, transport), service_port(0, transport), kind, affinity_timeout=60)
                for n, kind in ((0, _C), (1, _E))
            ]
            targets = [_targets(harness, frontend)[0] for frontend in frontends]
            source, other = harness.source(POD), harness.source(OTHER)
            backends = {name: server.backend for name, server in servers.items()}
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(frontends=tuple(frontends), backends=(grow(frontends[0], *backends.values()),))
                )
                pinned = await _ask(harness, transport, source, targets[0])
                kept = await _ask(harness, transport, other, targets[0])
                for target in targets * 6:
                    await harness.pass_time(30.0)
                    assert await _ask(harness, transport, source, target) == pinned
                    assert await _ask(harness, transport, other, target) == kept
                rest = {"a": "b", "b": "a"}[pinned]
                await harness.plane.apply(FrontendDelta(backends=(shrink(frontends[0], backends[pinned]),)))
                await harness.plane.apply(FrontendDelta(backends=(grow(frontends[0], backends[pinned]),)))
                await harness.plane.apply(FrontendDelta(backends=(shrink(frontends[0], backends[pinned]),)))
                assert await _ask(harness, transport, source, targets[0]) == rest
                await harness.plane.apply(FrontendDelta(backends=(grow(frontends[0], backends[pinned]),)))
                assert [await _ask(harness, transport, source, target) for target in targets] == [rest, rest]
                met = set()
                for _ in range(40):
                    await harness.pass_time(60.0)
                    met.add(await _ask(harness, transport, source, targets[0]))
                assert met == {"a", "b"}

    async def test_new_connections_are_spread(self) -> None:
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "a", "b", "c")
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            async with serving(*servers.values()):
                backends = (server.backend for server in servers.values())
                await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, *backends),)))
                for _ in range(60):
                    await _ask(harness, Transport.TCP, harness.source(POD), _targets(harness, frontend)[0])
            assert min(len(server.seen) for server in servers.values()) > 0

    async def test_a_connection_outlives_its_backend_and_its_frontend(self) -> None:
        """Row 43."""
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "old", "new")
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            old, new = servers["old"].backend, servers["new"].backend
            source, target = harness.source(POD), _targets(harness, frontend)[0]
            async with serving(*servers.values()):
                await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, old),)))
                with _client(harness, Transport.TCP, source, target) as client:
                    assert await client.ask() == "old"
                    change = BackendSetDelta(frontend.backend_set(Scope.CLUSTER), added=(new,), removed=(old,))
                    await harness.plane.apply(FrontendDelta(backends=(change,)))
                    assert await client.ask() == "old"
                    assert await _ask(harness, Transport.TCP, source, target) == "new"
                    await harness.plane.apply(FrontendDelta(removed=(frontend.key,)))
                    assert await client.ask() == "old"

    async def test_a_datagram_sender_follows_its_endpoints(self) -> None:
        """Rows 40 and 41, with one socket throughout."""
        async with self.open() as harness:
            servers = _servers(harness, Transport.UDP, "old", "new")
            frontend = cluster_ip(harness.address(0, Transport.UDP), service_port(0, Transport.UDP))
            old, new = servers["old"].backend, servers["new"].backend
            apply = harness.plane.apply
            async with serving(*servers.values()):
                await apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, old),)))
                with _client(harness, Transport.UDP, harness.source(POD), _targets(harness, frontend)[0]) as client:
                    assert await client.ask() == "old"
                    await apply(FrontendDelta(backends=(grow(frontend, new),)))
                    assert await client.ask() == "old"
                    await apply(FrontendDelta(backends=(shrink(frontend, old),)))
                    assert await client.ask() == "new"
                    await apply(FrontendDelta(backends=(shrink(frontend, new),)))
                    assert await client.ask() == Met.REFUSED
                    await apply(FrontendDelta(backends=(grow(frontend, old),)))
                    assert await client.ask() == "old"
                    await apply(FrontendDelta(removed=(frontend.key,)))
                    assert await client.ask() == Met.REFUSED
            assert len(servers["old"].seen) == 3

    @TRANSPORTS
    async def test_nothing_fails_while_endpoints_come_and_go(self, transport: Transport) -> None:
        """Clients ask all the time; at every moment some endpoint exists, and no question goes unanswered."""
        async with self.open() as harness:
            servers = _servers(harness, transport, "a", "b", "c")
            frontend = cluster_ip(harness.address(0, transport), service_port(0, transport))
            backends = [server.backend for server in servers.values()]
            source, target = harness.source(POD), _targets(harness, frontend)[0]
            met: list[str] = []

            async def keep_asking(times: int) -> None:
                for _ in range(times):
                    met.append(await _ask(harness, transport, source, target))

            async with serving(*servers.values()):
                await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, backends[0]),)))
                async with asyncio.TaskGroup() as group:
                    clients = [group.create_task(keep_asking(QUESTIONS), name=f"client {n}") for n in range(4)]
                    turn = 0
                    while not all(client.done() for client in clients):
                        leaving, staying = backends[turn % 3], backends[(turn + 1) % 3]
                        await harness.plane.apply(FrontendDelta(backends=(grow(frontend, staying),)))
                        await asyncio.sleep(0)
                        await harness.plane.apply(FrontendDelta(backends=(shrink(frontend, leaving),)))
                        await asyncio.sleep(0)
                        turn += 1
            assert len(met) == 4 * QUESTIONS
            assert set(met) <= {"a", "b", "c"}
            assert turn > len(backends)

    async def test_draining_refuses_the_new_and_waits_for_the_old(self) -> None:
        async with self.open() as harness:
            servers = _servers(harness, Transport.TCP, "here")
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            source, target = harness.source(POD), _targets(harness, frontend)[0]
            async with serving(*servers.values()):
                await harness.plane.apply(
                    FrontendDelta(frontends=(frontend,), backends=(grow(frontend, servers["here"].backend),))
                )
                async with asyncio.TaskGroup() as group:
                    with _client(harness, Transport.TCP, source, target) as client:
                        assert await client.ask() == "here"
                        drain = group.create_task(harness.plane.drain(PATIENCE), name="drain")
                        await asyncio.sleep(0)  # the drain has begun
                        assert await _ask(harness, Transport.TCP, source, target) == Met.REFUSED
                        assert not drain.done()
                        assert await client.ask() == "here"
                    await drain

    async def _expect(
        self, harness: TrafficHarness, meets: str, transport: Transport, source: str, target: tuple[str, int]
    ) -> None:
        silent = meets == Met.SILENCE
        allowed = {meets, Met.REFUSED} if silent and self.drop_is_refusal else {meets}
        assert await _ask(harness, transport, source, target, SILENCE if silent else PATIENCE) in allowed


def _servers(harness: TrafficHarness, transport: Transport, *names: str) -> dict[str, Server]:
    """Bound backends by name; `serving` runs and closes them."""
    servers = {}
    for name, ip in zip(names, harness.backend_ips, strict=False):
        with harness.inside(ip):
            servers[name] = Server(name, transport, ip)
    return servers


def _client(harness: TrafficHarness, transport: Transport, source: str, target: tuple[str, int]) -> Client:
    with harness.inside(source):
        return Client(transport, source, target)


async def _ask(
    harness: TrafficHarness, transport: Transport, source: str, target: tuple[str, int], patience: float = PATIENCE
) -> str:
    """Ask once, over a flow of its own."""
    with _client(harness, transport, source, target) as client:
        return await client.ask(patience=patience)


def _targets(harness: TrafficHarness, frontend: Frontend) -> list[tuple[str, int]]:
    """Where clients of a frontend connect."""
    key = frontend.key
    return [(key.ip, key.port)] if isinstance(key, Address) else [(ip, key.port) for ip in harness.node_ips]
