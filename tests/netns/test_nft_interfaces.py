# SPDX-License-Identifier: Apache-2.0
"""Pods told by the interface they come through: postrouting still knows it (Linux 5.7), and the node has none."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    FULLY_RANDOM_PORTS,
    Base,
    Compare,
    Ct,
    Expression,
    Meta,
    bitwise,
    compare,
    ct,
    dnat,
    immediate,
    masquerade,
    meta,
    payload,
)
from svcproxy.dataplane.nftables.messages import Attachment, Hook, Request, Table
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import Client, Server, serving
from tests.netns.namespaces import Namespace
from tests.netns.test_nft_traffic import BACKENDS, DADDR, VIP, packed

pytestmark = pytest.mark.netns

PORT = 80
IPS_DST_NAT = (1 << 5).to_bytes(4, "little")
"""linux/netfilter/nf_conntrack_common.h"""
POD = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
STRANGER = {Family.IPV4: "10.1.3.2", Family.IPV6: "fd01:3::2"}
NODE = {Family.IPV4: "10.1.3.1", Family.IPV6: "fd01:3::1"}
"""Of the node, but not where it sends from to the backend."""
TOWARDS_BACKEND = {Family.IPV4: "10.1.2.1", Family.IPV6: "fd01:2::1"}


class World:
    """A node with a pod, a network outside and a backend, each through an interface of its own."""

    def __init__(self, stack: ExitStack, *, bridged: bool) -> None:
        self.node, self.pod, self.outside, self.backend = (stack.enter_context(Namespace()) for _ in range(4))
        self.node.forward()
        self.node.connect(self.pod, "veth1", 1)
        self.node.connect(self.backend, "back0", 2)
        self.node.connect(self.outside, "up0", 3)
        for gateway in STRANGER.values():
            self.node.ip("route", "add", "default", "via", gateway)
        if bridged:
            self._bridge()

    def _bridge(self) -> None:
        self.node.ip("link", "add", "cni0", "type", "bridge")
        self.node.ip("link", "set", "cni0", "up")
        self.node.ip("addr", "flush", "dev", "veth1")
        self.node.ip("link", "set", "veth1", "master", "cni0")
        self.node.ip("addr", "add", "10.1.1.1/24", "dev", "cni0")
        self.node.ip("addr", "add", "fd01:1::1/64", "dev", "cni0", "nodad")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def ruleset(table: Table, not_from_pods: Expression) -> list[Request]:
    """Everything to the VIP goes to the backend; what came through no pod's interface is masqueraded."""
    family = table.family
    offset, octets = DADDR[family]
    to_backend = (
        payload(Base.NETWORK, offset, octets, to=0),
        compare(packed(VIP[family]), word=0),
        immediate(packed(BACKENDS[family][0]), to=0),
        immediate(PORT.to_bytes(2), to=4),
        dnat(family, address=0, port=4),
    )
    translated = (
        ct(Ct.STATUS, to=0),
        bitwise(IPS_DST_NAT, bytes(4), word=0, to=0),
        compare(bytes(4), word=0, op=Compare.NEQ),
    )
    rewritten = (*translated, meta(Meta.IIFNAME, to=0), not_from_pods, masquerade(flags=FULLY_RANDOM_PORTS))
    return [
        nft.new_table(table),
        nft.new_chain(table, "prerouting", Attachment("nat", Hook.PREROUTING, -101)),
        nft.new_rule(table, "prerouting", to_backend),
        nft.new_chain(table, "output", Attachment("nat", Hook.OUTPUT, -101)),
        nft.new_rule(table, "output", to_backend),
        nft.new_chain(table, "postrouting", Attachment("nat", Hook.POSTROUTING, 99)),
        nft.new_rule(table, "postrouting", rewritten),
    ]


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
@pytest.mark.parametrize(
    ("name", "bridged"),
    [
        pytest.param(b"cni0".ljust(16, b"\0"), True, id="the bridge, by its whole name"),
        pytest.param(b"veth", False, id="a pod's own interface, by the prefix of its name"),
    ],
)
async def test_pods_keep_their_source_and_all_others_lose_it(
    stack: ExitStack, name: bytes, bridged: bool, family: Family, protocol: Protocol
) -> None:
    world = World(stack, bridged=bridged)
    with world.node.entered():
        kernel = stack.enter_context(Kernel())
    table = Table(family, "svcproxy")
    assert kernel.commit(ruleset(table, compare(name, word=0, op=Compare.NEQ))) == Committed()
    with world.backend.entered():
        server = Server("b", protocol, BACKENDS[family][0], PORT)
    async with serving(server):
        for namespace, source in ((world.pod, POD), (world.outside, STRANGER), (world.node, NODE)):
            with namespace.entered():
                client = Client(protocol, source[family], (VIP[family], PORT))
            with client:
                assert await client.ask() == "b"
    assert server.seen == [POD[family], TOWARDS_BACKEND[family], TOWARDS_BACKEND[family]]
