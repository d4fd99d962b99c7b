# SPDX-License-Identifier: Apache-2.0
"""Stale flows under real traffic: who only sends reaches whoever serves now, and flows of others stay."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from svcproxy.dataplane.nftables.cleaner import FlowCleaner
from svcproxy.dataplane.nftables.conntrack import REMOVALS_PER_SEND, Conntrack
from svcproxy.dataplane.nftables.ctnetlink import Filter
from svcproxy.frontends.keys import Address
from svcproxy.frontends.table import FrontendDelta
from svcproxy.model import EndpointSlice, Service
from svcproxy.model.meta import Family
from svcproxy.process.backoff import Backoff
from svcproxy.process.prctl import Capability
from tests.dataplane.world import until
from tests.netns.flow_world import (
    B1,
    B2,
    B3,
    FAMILIES,
    NODE,
    NODE_PORT,
    OTHER_VIP,
    PORT,
    TARGET,
    UDP,
    VIP,
    World,
    flowing,
    service,
    slice_of,
)

pytestmark = pytest.mark.netns


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, request.param)


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
