# SPDX-License-Identifier: Apache-2.0
"""Connection tracking of a real kernel, with conntrack 1.4.7 to say what it holds; stale flows under real traffic.

A node between a client and backends translates by a `svcproxy` table that is written from the frontends' table, one
backend each, after every change of the objects.
"""

import asyncio
import ctypes
import os
import re
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Set
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from svcproxy.dataplane.nftables import ctnetlink, netfilter
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.cleaner import FlowCleaner
from svcproxy.dataplane.nftables.conntrack import REMOVALS_PER_SEND, Conntrack
from svcproxy.dataplane.nftables.ctnetlink import Filter, Flow
from svcproxy.dataplane.nftables.expressions import Base, dnat, lookup, lookup_to, meta, payload, port_unreachable
from svcproxy.dataplane.nftables.expressions import Meta as MetaKey
from svcproxy.dataplane.nftables.messages import (
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    IPV6_ADDR,
    Attachment,
    Element,
    Hook,
    Request,
    Table,
    concatenation,
)
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.keys import Address, Backend, NodePort, Scope, ServicePortName
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.serving import serving, stopped_serving
from svcproxy.frontends.table import FrontendDelta
from svcproxy.model import Changes, EndpointSlice, NamespacedName, Service, Store, Touched
from svcproxy.model.meta import Family, Protocol
from svcproxy.process.backoff import Backoff
from svcproxy.process.prctl import Capability
from tests.dataplane.world import until
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

UDP = Protocol.UDP
PORT, TARGET, NODE_PORT = 53, 5353, 30053
VIP = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd96::1"}
OTHER_VIP = {Family.IPV4: "10.96.0.2", Family.IPV6: "fd96::2"}
CLIENT = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
NODE = {Family.IPV4: "10.1.1.1", Family.IPV6: "fd01:1::1"}
B1, B2, B3 = ({Family.IPV4: f"10.1.2.{host}", Family.IPV6: f"fd01:2::{host}"} for host in (2, 3, 4))
DADDR = {Family.IPV4: (16, 4), Family.IPV6: (24, 16)}
"""Offset and octets of the destination in the network header."""
FAMILIES = [pytest.param(each, id=each.label) for each in Family]


# Objects


def service(name: str, vip: str, *, node_port: int = 0) -> Service:
    """A Service over UDP."""
    spec = {
        "clusterIP": vip,
        "clusterIPs": [vip],
        "ipFamilies": ["IPv6" if ":" in vip else "IPv4"],
        "type": "NodePort" if node_port else "ClusterIP",
        "ports": [{"name": "dns", "port": PORT, "protocol": "UDP", "nodePort": node_port}],
    }
    return msgspec.convert({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}, Service)


def slice_of(name: str, *ips: str, family: Family, terminating: Iterable[str] = ()) -> EndpointSlice:
    """The slice of a Service: these are ready, those terminate and serve."""
    conditions = {ip: {"ready": True} for ip in ips}
    conditions |= {ip: {"ready": False, "serving": True, "terminating": True} for ip in terminating}
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
            "addressType": family.label,
            "endpoints": [{"addresses": [ip], "conditions": each} for ip, each in conditions.items()],
            "ports": [{"name": "dns", "port": TARGET, "protocol": "UDP"}],
        },
        EndpointSlice,
    )


# Traffic


class Sink:
    """A backend that never answers."""

    def __init__(self, ip: str) -> None:
        self._sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind((ip, TARGET))

    def received(self) -> int:
        """Datagrams since the last call."""
        for count in range(1_000_000):
            try:
                self._sock.recv(100)
            except BlockingIOError:
                return count
        raise AssertionError

    def close(self) -> None:
        self._sock.close()


class Sender:
    """A client on one port for good, that never reads."""

    def __init__(self, source: str, port: int, target: tuple[str, int]) -> None:
        self._sock = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind((source, port))
        self._target = target
        self.port = port

    def send(self) -> None:
        self._sock.sendto(b"one way", self._target)

    def connect(self) -> None:
        """Have errors reported."""
        self._sock.connect(self._target)

    def refused(self) -> bool:
        """Whether a datagram meets port unreachable."""
        try:
            self.send()
            self._sock.recv(1)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
        return False

    def close(self) -> None:
        self._sock.close()


class World:
    """The three namespaces, the objects, and what follows from them."""

    def __init__(self, stack: ExitStack, family: Family) -> None:
        self.family = family
        self._stack = stack
        self.client, self.node, self.backends = (stack.enter_context(Namespace()) for _ in range(3))
        self.node.forward()
        self.node.connect(self.client, "veth1", 1)
        self.node.connect(self.backends, "veth2", 2)
        with self.node.entered():
            self.kernel = stack.enter_context(Kernel())
            self.reader = stack.enter_context(Conntrack())
            conntrack = stack.enter_context(Conntrack())
        self.store = Store()
        node = NodeView("n1", None, frozenset({NODE[family]}), (NODE[family],))
        self.frontends = FrontendBuilder(self.store, node, FrontendOptions())
        self.cleaner = FlowCleaner(conntrack, self.serving)
        self._table = Table(family, "svcproxy")
        assert self.kernel.commit(ruleset(self._table)) == Committed()

    def apply(self, *objects: Service | EndpointSlice) -> None:
        """Objects appear or change."""
        self._take(self.store.apply(Changes.of(Service, [each for each in objects if isinstance(each, Service)])))
        slices = [each for each in objects if isinstance(each, EndpointSlice)]
        self._take(self.store.apply(Changes.of(EndpointSlice, slices)))

    def remove(self, kind: type[Service] | type[EndpointSlice], name: str) -> None:
        """An object goes."""
        gone: Changes[Any] = Changes(kind, (), (NamespacedName("ns", name),))
        self._take(self.store.apply(gone))

    def _take(self, touched: Touched) -> None:
        update = self.frontends.update(touched)
        self.cleaner.note_stopped(stopped_serving(touched))
        self.program()
        self.cleaner.note(update.delta)

    def program(self) -> None:
        """The first backend of each frontend into the kernel, as one transaction."""
        known, to = [], []
        for key, frontend in self.frontends.table.frontends.items():
            ips = self.frontends.table.node_port_addresses if isinstance(key, NodePort) else {key.ip}
            backends = sorted(self.frontends.table.backends_of(frontend, Scope.CLUSTER))
            for ip in ips:
                packed_key = concatenation(packed(ip), b"\x11", key.port.to_bytes(2))
                known.append(Element(packed_key))
                if backends:
                    to.append(Element(packed_key, concatenation(packed(backends[0].ip), backends[0].port.to_bytes(2))))
        requests = [
            nft.flush_set(self._table, "known"),
            nft.flush_set(self._table, "to"),
            *nft.new_elements(self._table, "known", known),
            *nft.new_elements(self._table, "to", to),
        ]
        assert self.kernel.commit(requests) == Committed()

    def sink(self, address: dict[Family, str]) -> Sink:
        with self.backends.entered():
            sink = Sink(address[self.family])
        self._stack.callback(sink.close)
        return sink

    def sender(self, port: int, target: str, target_port: int = PORT) -> Sender:
        with self.client.entered():
            sender = Sender(CLIENT[self.family], port, (target, target_port))
        self._stack.callback(sender.close)
        return sender

    def ids(self, sender: Sender) -> list[tuple[str, str]]:
        """Where the flows of a sender go and their ids, as `conntrack` says."""
        family, port = self.family.label.lower(), str(sender.port)
        listed = self.node.run("conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-src", port, "-o", "id")
        return [
            (each["where"], each["id"])
            for each in re.finditer(r"src=.* src=(?P<where>\S+) dst=.*(?P<id>id=\d+)", listed)
        ]

    def goes(self, sender: Sender) -> list[str]:
        """Where the flows of a sender go."""
        return [where for where, _ in self.ids(sender)]

    def flows(self, wanted: Filter) -> list[Flow]:
        """What our own reader lists."""
        listing = self.reader.listing(wanted)
        return self.reader.listing(wanted, listing.translations, listing.listed).flows

    def serving(self, name: ServicePortName, family: Family) -> Set[Backend]:
        return serving(self.store, name, family)

    def many_flows(self, count: int) -> None:
        """Of as many clients, to the first Service."""
        for port in range(10_000, 10_000 + count):
            with self.client.entered():
                sender = Sender(CLIENT[self.family], port, (VIP[self.family], PORT))
            sender.send()
            sender.close()
        assert self.reader.statistics().entries >= count

    async def quiet(self) -> None:
        """Everything noted has been examined, to the last look after a second."""
        await until(lambda: not self.cleaner.pending)

    @asynccontextmanager
    async def cleaning(self) -> AsyncIterator[None]:
        """The cleaner runs for the length of the block."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.cleaner.run(), name="flow cleaner")
            try:
                yield
            finally:
                task.cancel()


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def ruleset(table: Table) -> list[Request]:
    """`to` leads frontends to their backend; a frontend that is `known` and has none refuses."""
    offset, octets = DADDR[table.family]
    word = octets // 4
    key = (
        payload(Base.NETWORK, offset, octets, to=0),
        meta(MetaKey.L4PROTO, to=word),
        payload(Base.TRANSPORT, 2, 2, to=word + 1),
    )
    address = IPV6_ADDR if table.family is Family.IPV6 else IPV4_ADDR
    types = (address, INET_PROTO, INET_SERVICE)
    return [
        nft.new_table(table),
        nft.new_set(table, nft.Set("to", types, (address, INET_SERVICE))),
        nft.new_set(table, nft.Set("known", types, id=2)),
        nft.new_chain(table, "prerouting", Attachment("nat", Hook.PREROUTING, -101)),
        nft.new_rule(
            table, "prerouting", (*key, lookup_to("to", word=0, to=0), dnat(table.family, address=0, port=word))
        ),
        nft.new_rule(table, "prerouting", (*key, lookup("known", word=0), port_unreachable(table.family))),
    ]


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, request.param)


async def flowing(sender: Sender, sink: Sink) -> None:
    """Send until the sink gets it."""

    def arrived() -> bool:
        sender.send()
        return sink.received() > 0

    await until(arrived)


# Stale flows


async def test_case_40_T24_the_next_datagram_goes_to_the_new_endpoint(world: World) -> None:  # noqa: N802
    family = world.family
    old, new = world.sink(B1), world.sink(B2)
    sender = world.sender(4001, VIP[family])
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    async with world.cleaning():
        await flowing(sender, old)
        world.apply(slice_of("s", B2[family], family=family))
        await flowing(sender, new)
        await world.quiet()
    assert world.goes(sender) == [B2[family]]
    assert world.cleaner.deleted[family] == 1


async def test_case_41_T25_a_flow_goes_with_the_last_endpoint_and_comes_with_the_first(world: World) -> None:  # noqa: N802
    family = world.family
    old, new = world.sink(B1), world.sink(B2)
    sender = world.sender(4002, VIP[family])
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    async with world.cleaning():
        await flowing(sender, old)
        sender.connect()
        world.apply(slice_of("s", family=family))
        await until(lambda: not world.ids(sender))
        old.received()
        await until(sender.refused)
        world.apply(slice_of("s", B2[family], family=family))
        await flowing(sender, new)
        await world.quiet()
    assert old.received() == 0
    assert world.goes(sender) == [B2[family]]


async def test_case_42_a_flow_goes_with_its_service(world: World) -> None:
    family = world.family
    sink = world.sink(B1)
    cluster = world.sender(4003, VIP[family])
    node = world.sender(4004, NODE[family], NODE_PORT)
    world.apply(service("s", VIP[family], node_port=NODE_PORT), slice_of("s", B1[family], family=family))
    async with world.cleaning():
        await flowing(cluster, sink)
        await flowing(node, sink)
        world.remove(Service, "s")
        await until(lambda: not world.ids(cluster) + world.ids(node))
        sink.received()
        for sender in (cluster, node):
            sender.send()
        await world.quiet()
    assert sink.received() == 0
    assert world.cleaner.deleted[family] == 2
    assert world.cleaner.given_up == 0


async def test_a_node_port_flow_goes_with_the_last_endpoint(world: World) -> None:
    family = world.family
    sink = world.sink(B1)
    sender = world.sender(4005, NODE[family], NODE_PORT)
    world.apply(service("s", VIP[family], node_port=NODE_PORT), slice_of("s", B1[family], family=family))
    async with world.cleaning():
        await flowing(sender, sink)
        world.remove(EndpointSlice, "s")
        await until(lambda: not world.ids(sender))


async def test_flows_of_others_stay(world: World) -> None:
    """Of another Service, straight to a pod, and of the same Service to an endpoint that still serves."""
    family = world.family
    sinks = world.sink(B1), world.sink(B2), world.sink(B3)
    world.apply(
        service("s", VIP[family]),
        service("t", OTHER_VIP[family]),
        slice_of("s", B1[family], B2[family], family=family),
        slice_of("t", B3[family], family=family),
    )
    stale, other = world.sender(4006, VIP[family]), world.sender(4007, OTHER_VIP[family])
    direct, kept = world.sender(4008, B1[family], TARGET), world.sender(4009, VIP[family])
    await flowing(stale, sinks[0])
    await flowing(other, sinks[2])
    await flowing(direct, sinks[0])
    world.apply(slice_of("s", B2[family], terminating=[B1[family]], family=family))
    await flowing(kept, sinks[1])
    before = [world.ids(sender) for sender in (other, direct, kept)]
    assert [world.goes(sender) for sender in (other, direct, kept)] == [[B3[family]], [B1[family]], [B2[family]]]
    async with world.cleaning():
        await world.quiet()
        assert world.goes(stale) == [B1[family]], "it is still serving"
        world.apply(slice_of("s", B2[family], family=family))
        await until(lambda: not world.ids(stale))
        await world.quiet()
    assert [world.ids(sender) for sender in (other, direct, kept)] == before
    assert world.cleaner.deleted[family] == 1


async def test_T24_a_flow_older_than_the_rules_goes(world: World) -> None:  # noqa: N802
    family = world.family
    sink = world.sink(B1)
    world.backends.ip("addr", "add", f"{VIP[family]}/{128 if family is Family.IPV6 else 32}", "dev", "lo")
    world.node.ip("route", "add", VIP[family], "via", B1[family])
    sender = world.sender(4010, VIP[family])
    sender.send()
    await until(lambda: world.goes(sender) == [VIP[family]])
    async with world.cleaning():
        world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
        await flowing(sender, sink)


async def test_T24_a_resync_cleans_what_changed_while_nobody_looked(world: World) -> None:  # noqa: N802
    """Also of Services that went, as far as the data plane has found something of them to remove."""
    family = world.family
    sinks = world.sink(B1), world.sink(B2)
    stale, gone, kept = (
        world.sender(4011, VIP[family]),
        world.sender(4012, OTHER_VIP[family]),
        world.sender(4013, VIP[family]),
    )
    world.apply(
        service("s", VIP[family]),
        service("t", OTHER_VIP[family]),
        slice_of("s", B1[family], family=family),
        slice_of("t", B1[family], family=family),
    )
    await flowing(stale, sinks[0])
    await flowing(gone, sinks[0])
    world.apply(slice_of("s", B2[family], family=family))
    await flowing(kept, sinks[1])
    before = world.ids(kept)
    world.remove(Service, "t")
    with world.node.entered():
        conntrack = Conntrack()
    world.cleaner = FlowCleaner(conntrack, world.serving)
    world.cleaner.note_resync(world.frontends.table, FrontendDelta(removed=(Address(OTHER_VIP[family], UDP, PORT),)))
    async with world.cleaning():
        await world.quiet()
    assert world.ids(stale) + world.ids(gone) == []
    assert world.ids(kept) == before


async def test_thousands_of_stale_flows_go(world: World) -> None:
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    count = 3000
    world.many_flows(count)
    async with world.cleaning():
        world.apply(slice_of("s", family=family))
        await world.quiet()
    assert world.cleaner.deleted[family] == count
    assert world.flows(Filter(family, UDP, VIP[family], PORT)) == []


async def test_a_lost_answer_leads_to_another_pass(world: World) -> None:
    """The acknowledgements of a batch of removals do not fit into the socket: ENOBUFS."""
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    world.many_flows(REMOVALS_PER_SEND)
    with world.node.entered():
        conntrack = Conntrack()
    with socket.socket(fileno=os.dup(conntrack.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
    world.cleaner = FlowCleaner(conntrack, world.serving, Backoff(0.001, 0.001))
    world.cleaner.note_resync(world.frontends.table, FrontendDelta())
    async with world.cleaning():
        world.apply(slice_of("s", family=family))
        await world.quiet()
    assert world.cleaner.failures > 0
    assert world.cleaner.error == ""
    assert world.flows(Filter(family, UDP)) == []


async def test_a_kernel_that_refuses_is_asked_again_and_again(world: World) -> None:
    """A socket opened without CAP_NET_ADMIN: EPERM, whoever uses it."""
    family = world.family
    with world.node.entered(), without_net_admin():
        conntrack = Conntrack()
    world.cleaner = FlowCleaner(conntrack, world.serving, Backoff(0.001, 0.001))
    async with world.cleaning():
        world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
        await until(lambda: world.cleaner.failures > 3)
    assert world.cleaner.error == "EPERM (Operation not permitted)"
    assert world.cleaner.pending == 1


# The socket


def test_flows_are_as_conntrack_lists_them(world: World) -> None:
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    senders = [world.sender(port, VIP[family]) for port in (5001, 5002)]
    for sender in senders:
        sender.send()
    found = {flow.source.port: flow for flow in world.flows(Filter(family, UDP, VIP[family], PORT))}
    for sender in senders:
        flow = found[sender.port]
        assert world.ids(sender) == [(flow.answering.ip, f"id={flow.id}")]
        assert flow.source.ip == CLIENT[family]
        assert flow.destination == Address(VIP[family], UDP, PORT)
        assert flow.answering == Backend(B1[family], TARGET)
    assert len(found) == 2


def test_the_kernel_filters(world: World) -> None:
    """Not `Filter.admits`: what comes is no more than what was asked for, but for addresses of IPv6."""
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    world.many_flows(500)
    one = world.sender(5003, B2[family], TARGET)
    one.send()
    with world.node.entered():
        sock = netfilter.open_socket(1 << 16, 1 << 20)
    with sock:
        for wanted, count in (
            (Filter(family, UDP), 501),
            (Filter(family, UDP, B2[family]), 1 if family is Family.IPV4 else 501),
            (Filter(family, UDP, None, PORT), 500),
            (Filter(family, UDP, VIP[family], TARGET), 0 if family is Family.IPV4 else 1),
            (Filter(family, Protocol.SCTP), 0),
        ):
            sock.send(ctnetlink.list_flows(wanted, 1))
            listed = [answer for octets in netfilter.datagrams(sock) for answer in ctnetlink.parse(octets)]
            assert len(listed) - 1 == count, wanted


def test_a_flow_with_another_id_stays(world: World) -> None:
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    world.sender(5004, VIP[family]).send()
    wanted = Filter(family, UDP, VIP[family], PORT)
    (flow,) = world.flows(wanted)
    assert world.reader.delete([msgspec.structs.replace(flow, id=flow.id ^ 1)]) == 0
    assert world.flows(wanted) == [flow]
    assert world.reader.delete([flow, flow]) == 1
    assert world.flows(wanted) == []


def test_statistics_are_as_conntrack_prints_them(world: World) -> None:
    """Datagrams with a wrong checksum are invalid."""
    family = world.family
    world.apply(service("s", VIP[family]), slice_of("s", B1[family], family=family))
    raw_family = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    with world.client.entered(), socket.socket(raw_family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        for _ in range(7):
            raw.sendto(bytes.fromhex("1388 0035 0008 0001"), (NODE[family], 0))
    world.many_flows(50)
    found = world.reader.statistics()
    printed = world.node.run("conntrack", "-S")
    assert sum(cpu.invalid for cpu in found.cpus) == 7
    for name in ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "error", "clash_resolve"):
        assert [getattr(cpu, name) for cpu in found.cpus] == [int(n) for n in re.findall(rf"\b{name}=(\d+)", printed)]
    assert found.entries == int(world.node.run("conntrack", "-C"))
    with world.node.entered():
        assert found.maximum == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


@contextmanager
def without_net_admin() -> Iterator[None]:
    """The thread does without CAP_NET_ADMIN for the length of the block (capset(2))."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, held) == 0
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~(1 << Capability.NET_ADMIN)
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


_CAPABILITY_VERSION_3 = 0x20080522
