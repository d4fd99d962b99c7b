# SPDX-License-Identifier: Apache-2.0
"""The socket to connection tracking, with conntrack 1.4.7 to say what the kernel holds."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from svcproxy.dataplane.nftables import ctnetlink, netfilter
from svcproxy.dataplane.nftables.ctnetlink import Filter
from svcproxy.frontends.keys import Address, Backend
from svcproxy.model.meta import Family, Protocol
from tests.netns.flow_world import B1, B2, CLIENT, FAMILIES, NODE, PORT, TARGET, UDP, VIP, World, service, slice_of

pytestmark = pytest.mark.netns


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, request.param)


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
            listed = [
                answer
                for octets in netfilter.datagrams(sock, bytearray(netfilter.DATAGRAM_OCTETS))
                for answer in ctnetlink.parse(octets)
            ]
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
