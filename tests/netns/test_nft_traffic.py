# SPDX-License-Identifier: Apache-2.0
"""The layout's two look-ups as bytecode, under real traffic: one rule serves TCP and UDP, in both families."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    Base,
    Expression,
    Meta,
    compare,
    counter,
    dnat,
    goto,
    lookup_to,
    meta,
    numgen_random,
    payload,
    port_unreachable,
    reset,
    vmap,
)
from svcproxy.dataplane.nftables.messages import (
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    IPV6_ADDR,
    MARK,
    VERDICT,
    Attachment,
    Element,
    Hook,
    Request,
    Set,
    Table,
    concatenation,
)
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import Client, Met, Server, serving
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

PORT = 53
FLOWS = 30
VIP = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd96::1"}
ADDRESS = {Family.IPV4: IPV4_ADDR, Family.IPV6: IPV6_ADDR}
CLIENT = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
BACKENDS = {
    Family.IPV4: ("10.1.2.2", "10.1.2.3", "10.1.2.4"),
    Family.IPV6: ("fd01:2::2", "fd01:2::3", "fd01:2::4"),
}
DADDR = {Family.IPV4: (16, 4), Family.IPV6: (24, 16)}
"""Offset and octets of the destination in the network header."""
NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def frontend(family: Family, protocol: Protocol) -> bytes:
    return concatenation(packed(VIP[family]), bytes((NUMBERS[protocol],)), PORT.to_bytes(2))


def ruleset(table: Table) -> list[Request]:
    """Class and endpoint maps, and the rule of three endpoints."""
    family = table.family
    offset, octets = DADDR[family]
    word = octets // 4
    key: tuple[Expression, ...] = (
        payload(Base.NETWORK, offset, octets, to=0),
        meta(Meta.L4PROTO, to=word),
        payload(Base.TRANSPORT, 2, 2, to=word + 1),
    )
    address = ADDRESS[family]
    endpoint_rule = (
        *key,
        numgen_random(3, to=word + 2),
        lookup_to("ep", word=0, to=0),
        dnat(family, address=0, port=word),
    )
    return [
        nft.new_table(table),
        nft.new_set(table, Set("class", (address, INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter())),
        nft.new_set(table, Set("ep", (address, INET_PROTO, INET_SERVICE, MARK), (address, INET_SERVICE), id=2)),
        nft.new_chain(table, "n3"),
        nft.new_rule(table, "n3", endpoint_rule),
        nft.new_chain(table, "prerouting", Attachment("nat", Hook.PREROUTING, -101)),
        nft.new_rule(table, "prerouting", (*key, vmap("class", word=0))),
    ]


@pytest.fixture
def cluster() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Client, node, backends."""
    with ExitStack() as stack:
        client, node, backends = (stack.enter_context(Namespace()) for _ in range(3))
        node.forward()
        node.connect(client, "veth1", 1)
        node.connect(backends, "veth2", 2)
        yield client, node, backends


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_one_rule_serves_tcp_and_udp(cluster: tuple[Namespace, Namespace, Namespace], family: Family) -> None:
    client, node, backends = cluster
    table = Table(family, "svcproxy")
    with backends.entered():
        servers = [
            Server(f"{address}-{protocol}", protocol, address, port=8080 + number)
            for protocol in NUMBERS
            for number, address in enumerate(BACKENDS[family])
        ]
    slots = [
        Element(
            frontend(family, protocol) + slot.to_bytes(4, "little"),
            concatenation(packed(address), (8080 + slot).to_bytes(2)),
        )
        for protocol in NUMBERS
        for slot, address in enumerate(BACKENDS[family])
    ]
    classes = [Element(frontend(family, protocol), goto("n3")) for protocol in NUMBERS]
    with node.entered():
        kernel = Kernel()
    with kernel:
        assert kernel.commit(ruleset(table)) == Committed()
        assert kernel.commit([*nft.new_elements(table, "ep", slots)]) == Committed()
        assert kernel.commit([*nft.new_elements(table, "class", classes)]) == Committed()
        async with serving(*servers):
            for protocol in NUMBERS:
                met = await asyncio.gather(*(ask(client, family, protocol) for _ in range(FLOWS)))
                assert Counter(met).keys() == {f"{address}-{protocol}" for address in BACKENDS[family]}
        assert {address for server in servers for address in server.seen} == {CLIENT[family]}
        stored = kernel.elements(table, "class")
        assert stored is not None
        assert {each.element: each.packets for each in stored} == dict.fromkeys(classes, FLOWS)
    assert "@ep" in node.run("nft", "list", "ruleset")


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_a_nat_chain_refuses_at_once(cluster: tuple[Namespace, Namespace, Namespace], family: Family) -> None:
    """TCP with a reset: over IPv6 a client takes port unreachable only for its second SYN, after a second."""
    client, node, _ = cluster
    table = Table(family, "svcproxy")
    offset, octets = DADDR[family]
    to_vip = (payload(Base.NETWORK, offset, octets, to=0), compare(packed(VIP[family]), word=0))
    is_tcp = (meta(Meta.L4PROTO, to=0), compare(bytes((NUMBERS[Protocol.TCP],)), word=0))
    refusals = [
        nft.new_rule(table, "prerouting", (*to_vip, *is_tcp, reset())),
        nft.new_rule(table, "prerouting", (*to_vip, port_unreachable(family))),
    ]
    with node.entered():
        kernel = Kernel()
    with kernel:
        assert kernel.commit([*ruleset(table), *refusals]) == Committed()
        assert [await ask(client, family, protocol) for protocol in NUMBERS] == [Met.REFUSED, Met.REFUSED]


async def ask(client: Namespace, family: Family, protocol: Protocol) -> str:
    """The backend that a flow of its own meets."""
    with client.entered():
        flow = Client(protocol, CLIENT[family], (VIP[family], PORT))
    with flow:
        return await flow.ask()
