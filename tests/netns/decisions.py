# SPDX-License-Identifier: Apache-2.0
"""A node among pods, backends and strangers, a table with a frontend of every kind, and what its clients must meet.

What they must meet is what `svcproxy.frontends.decision` says, whichever way the rules get into the node.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.script import script
from svcproxy.frontends.addresses import host_network
from svcproxy.frontends.decision import SourceKind, admits, decide, lookup
from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKey,
    FrontendKind,
    NodePort,
    Refusal,
    Scope,
    ServicePortName,
    TrafficPolicy,
)
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol, family_of
from svcproxy.testing.traffic import PATIENCE, SILENCE, Client, Met, Server, serving
from tests.netns.namespaces import Namespace

FLOWS = 40
"""Of each client to each destination: enough to meet each of three backends but once in four million times."""
FLOWS_TO_NOBODY = 2
AT_ONCE = 10
PROTOCOLS = (Protocol.TCP, Protocol.UDP)
PORT, BACKEND_PORT, NODE_PORT = 80, 8080, 30000
UNLISTED_PORT = 81
UNALLOCATED = 99
"""Of the Service CIDR."""
SERVICE_CIDRS = ("10.96.0.0/24", "fd96::/112")
BY_ADDRESS = Surroundings(pod_cidrs=("10.1.1.0/24", "fd01:1::/64"), service_cidrs=SERVICE_CIDRS)
BY_INTERFACE = Surroundings(pod_interfaces=("cni0", "pod*"), service_cidrs=SERVICE_CIDRS)


def host(family: Family, network: int, number: int) -> str:
    """An address as `Namespace.connect` gives them: network 1 is a pod's, 2 the backends', 3 is outside.

    Number 1 of each is the node's.
    """
    return f"10.1.{network}.{number}" if family is Family.IPV4 else f"fd01:{network}::{number}"


def vip(family: Family, number: int) -> str:
    """An address in the Service CIDR."""
    return f"10.96.0.{number}" if family is Family.IPV4 else f"fd96::{number}"


def external_ip(family: Family, number: int) -> str:
    """An address of nobody's."""
    return f"198.51.100.{number}" if family is Family.IPV4 else f"2001:db8::{number}"


SOURCES = {
    family: {
        SourceKind.POD: host(family, 1, 2),
        SourceKind.OTHER: host(family, 3, 2),
        SourceKind.NODE: host(family, 3, 1),
    }
    for family in Family
}


class World:
    """Namespaces of the node, a pod on it, backends elsewhere, and somebody outside."""

    def __init__(self, stack: ExitStack) -> None:
        self.node, self.pod, self.backends, self.outside = (stack.enter_context(Namespace()) for _ in range(4))
        self.node.forward()
        for number, (other, name) in enumerate(
            ((self.pod, "pod1"), (self.backends, "back0"), (self.outside, "up0")), start=1
        ):
            self.node.connect(other, name, number)
        for family in Family:
            self.node.ip("route", "add", "default", "via", host(family, 3, 2))
            # Whatever the node lets through to an address that no Service has is refused, not lost.
            self.node.ip("route", "add", vip(family, UNALLOCATED), "via", host(family, 2, 2))
            self.backends.ip("addr", "add", host_network(vip(family, UNALLOCATED)), "dev", "lo")
        with self.node.entered():
            for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):  # refusals come thick and fast
                Path("/proc/sys/net", name).write_text("0")

    def of(self, kind: SourceKind) -> Namespace:
        """Where clients of a kind are."""
        return {SourceKind.POD: self.pod, SourceKind.OTHER: self.outside, SourceKind.NODE: self.node}[kind]


@contextmanager
def world() -> Iterator[World]:
    """A world for the length of the block."""
    with ExitStack() as stack:
        yield World(stack)


@dataclass(frozen=True)
class Row:
    """A frontend, and the last numbers of the addresses of its backends."""

    kind: FrontendKind
    policy: TrafficPolicy = TrafficPolicy.CLUSTER
    cluster: tuple[int, ...] = (2, 3, 4)
    local: tuple[int, ...] = ()
    empty: Refusal = Refusal.REJECT
    affinity: int | None = None
    sources: tuple[SourceKind, ...] | None = None
    """Whose networks are in the source ranges."""


_C, _N, _E, _L = FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER
_LOCAL, _DROP = TrafficPolicy.LOCAL, Refusal.DROP

ROWS = (
    Row(_C),
    Row(_C, cluster=(3,)),
    Row(_C, cluster=()),
    Row(_C, _LOCAL, local=(2,)),
    Row(_C, _LOCAL, cluster=(2,), local=(3, 4)),
    Row(_C, _LOCAL, empty=_DROP),
    Row(_C, _LOCAL, cluster=()),
    Row(_C, affinity=60),
    Row(_C, _LOCAL, cluster=(2,), local=(3, 4), affinity=60),
    Row(_N),
    Row(_N, cluster=()),
    Row(_N, _LOCAL, local=(2,)),
    Row(_N, _LOCAL, empty=_DROP),
    Row(_N, affinity=10800),
    Row(_N, _LOCAL, local=(3,), affinity=60),
    Row(_N, sources=(SourceKind.POD,)),
    Row(_E),
    Row(_E, cluster=()),
    Row(_E, _LOCAL, local=(4,)),
    Row(_L),
    Row(_L, sources=(SourceKind.OTHER,)),
    Row(_L, sources=()),
    Row(_L, _LOCAL, local=(2, 3), sources=(SourceKind.POD, SourceKind.OTHER)),
    Row(_L, _LOCAL, empty=_DROP),
    Row(_L, _LOCAL, cluster=(2,), local=(3, 4), affinity=60, sources=(SourceKind.OTHER,)),
)


def cluster_ip(
    family: Family, protocol: Protocol, number: int, *backends: Backend, affinity: int | None = None
) -> FrontendTable:
    """A table of one Service, with the address `vip(family, number)`."""
    port = ServicePortName("test", f"service-{number}", "", protocol)
    key = Address(vip(family, number), protocol, PORT)
    frontend = Frontend(key, port, FrontendKind.CLUSTER_IP, affinity_timeout=affinity)
    return FrontendTable({key: frontend}, {frontend.backend_set(Scope.CLUSTER): set(backends)})


def every_table() -> FrontendTable:
    """Both families, TCP and UDP: frontends of every kind and policy, with all, some and no backends."""
    table = FrontendTable(node_port_addresses=frozenset(host(family, 3, 1) for family in Family))
    for family, protocol, (number, row) in product(Family, PROTOCOLS, enumerate(ROWS, start=1)):
        frontend = Frontend(
            _key(row, family, protocol, number),
            ServicePortName("test", f"row-{number}", "", protocol),
            row.kind,
            row.policy,
            row.empty,
            row.affinity,
            None if row.sources is None else tuple(_network(family, kind) for kind in row.sources),
        )
        table.frontends[frontend.key] = frontend
        for scope, hosts in ((Scope.CLUSTER, row.cluster), (Scope.LOCAL, row.local)):
            if hosts:
                backends = {Backend(host(family, 2, each), BACKEND_PORT) for each in hosts}
                table.backends[frontend.backend_set(scope)] = backends
    return table


def _key(row: Row, family: Family, protocol: Protocol, number: int) -> FrontendKey:
    if row.kind is _N:
        return NodePort(family, protocol, NODE_PORT + number)
    return Address((vip if row.kind is _C else external_ip)(family, number), protocol, PORT)


def _network(family: Family, kind: SourceKind) -> str:
    return host_network(SOURCES[family][kind])


# What clients meet


@dataclass(frozen=True)
class Case:
    """A destination and the client that asks for it."""

    ip: str
    protocol: Protocol
    port: int
    kind: SourceKind

    @property
    def source(self) -> str:
        """Where the client sends from."""
        return SOURCES[family_of(self.ip)][self.kind]


def cases(table: FrontendTable, family: Family, protocol: Protocol, kind: SourceKind) -> Iterator[Case]:
    """Every frontend, and destinations beside them: ports and addresses that no Service has."""
    for key in table.frontends:
        if key.family is family and key.protocol is protocol:
            ip = host(family, 3, 1) if isinstance(key, NodePort) else key.ip
            yield Case(ip, protocol, key.port, kind)
    yield Case(vip(family, 1), protocol, UNLISTED_PORT, kind)
    yield Case(vip(family, UNALLOCATED), protocol, PORT, kind)
    yield Case(host(family, 1, 1), protocol, NODE_PORT + 1 + ROWS.index(Row(_N)), kind)


def decided(table: FrontendTable, case: Case) -> set[str]:
    """What the clients of a case meet between them, as `Client.ask` tells it."""
    frontend = lookup(table, case.ip, case.protocol, case.port)
    if frontend is None:
        return {Met.SILENCE if case.ip == vip(family_of(case.ip), UNALLOCATED) else Met.REFUSED}
    if not admits(frontend, case.source):
        return {Met.SILENCE}
    outcome = decide(table, frontend, case.kind)
    if isinstance(outcome, BackendSetKey):
        return {backend.ip for backend in table.backends[outcome]}
    return {Met.REFUSED if outcome is Refusal.REJECT else Met.SILENCE}


def seen_source(table: FrontendTable, case: Case) -> str:
    """The address that backends see: the client's, or the node's where the way back has to lead through it."""
    frontend = lookup(table, case.ip, case.protocol, case.port)
    assert frontend is not None
    if frontend.kind.external:
        rewritten = frontend.policy is TrafficPolicy.CLUSTER or case.kind is SourceKind.NODE
    else:
        rewritten = case.kind is not SourceKind.POD
    return host(frontend.family, 2, 1) if rewritten else case.source


async def assert_decides(
    world: World, table: FrontendTable, family: Family, protocol: Protocol, kind: SourceKind
) -> None:
    """Every client meets what is decided, spread over all backends unless it keeps one, which sees the right source."""
    with world.backends.entered():
        servers = [Server(host(family, 2, each), protocol, host(family, 2, each), BACKEND_PORT) for each in (2, 3, 4)]
    async with serving(*servers):
        for case in cases(table, family, protocol, kind):
            expected = decided(table, case)
            met = await meet(
                world,
                case,
                flows=FLOWS if expected <= {each.name for each in servers} else FLOWS_TO_NOBODY,
                patience=SILENCE if expected == {Met.SILENCE} else PATIENCE,
            )
            frontend = lookup(table, case.ip, case.protocol, case.port)
            if frontend is not None and frontend.affinity_timeout is not None:
                assert len(met) == 1, case
                assert met <= expected, case
            else:
                assert met == expected, case
            seen = {address for server in servers for address in server.seen}
            assert seen <= {seen_source(table, case)} if seen else not met - set(Met), case
            for server in servers:
                server.seen.clear()


async def meet(world: World, case: Case, flows: int, patience: float = PATIENCE) -> set[str]:
    """What so many flows of a client meet."""
    met: set[str] = set()
    for start in range(0, flows, AT_ONCE):
        met.update(await asyncio.gather(*(_ask(world, case, patience) for _ in range(start, flows)[:AT_ONCE])))
    return met


async def _ask(world: World, case: Case, patience: float) -> str:
    with world.of(case.kind).entered():
        client = Client(case.protocol, case.source, (case.ip, case.port))
    with client:
        for _ in range(2):
            try:
                return await client.ask(patience=patience)
            except PermissionError:
                pass  # the node tells its own programs that a datagram is not sent, and with the next one why
    return Met.SILENCE


# How rules get into a node


def load_script(node: Namespace, table: FrontendTable, surroundings: Surroundings) -> None:
    node.run("nft", "-f", "-", text=script(table, surroundings))


def load_over_netlink(node: Namespace, table: FrontendTable, surroundings: Surroundings) -> None:
    async def program() -> None:
        async with NftablesDataplane(Ground(surroundings=surroundings)) as plane:
            await plane.resync(table)

    with node.entered():
        asyncio.run(program())
