# SPDX-License-Identifier: Apache-2.0
"""A node between a client and backends, which translates by a table written from objects, and removes stale flows.

The `svcproxy` table of nftables is written anew after every change of the objects, with one backend a frontend.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.cleaner import FlowCleaner
from svcproxy.dataplane.nftables.conntrack import Conntrack
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
from svcproxy.frontends.keys import Backend, NodePort, Scope, ServicePortName
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.serving import serving, stopped_serving
from svcproxy.model import Changes, EndpointSlice, NamespacedName, Service, Store, Touched
from svcproxy.model.meta import Family, Protocol
from tests.dataplane.world import until
from tests.netns.namespaces import Namespace

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


async def flowing(sender: Sender, sink: Sink) -> None:
    """Send until the sink gets it."""

    def arrived() -> bool:
        sender.send()
        return sink.received() > 0

    await until(arrived)
