# SPDX-License-Identifier: Apache-2.0
"""Session affinity by what clients meet. Each client is an address outside; time is the kernel's."""

import asyncio
import socket
import struct
from typing import Any

import pytest

from svcproxy.dataplane.nftables.layout import AFFINITY_CLIENTS_MAX
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.model.meta import Family, Protocol
from tests.netns.nftables_stage import NftablesStage, nftables
from tests.netns.objects import NODE_PORT, PORT, load_balancer, service, slice_of
from tests.netns.places import AT, Addresses
from tests.netns.probes import Served
from tests.netns.stage import Target
from tests.netns.world import TRANSPORTS, World

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
BOTH = pytest.mark.parametrize("protocol", TRANSPORTS)
CLIENTS = 40
"""None of so many changes its endpoint by chance: one of two in 2**40."""
ENDPOINTS = ("a1", "b1")
SHORT, LONG = 2, 600
"""Time-outs in seconds."""
LOOKS_MAX = 200
"""Of 50 ms."""


def sticky(timeout: int) -> dict[str, Any]:
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout}}}


async def met(stage: NftablesStage, at: Addresses, protocol: Protocol, target: Target | None = None) -> list[str]:
    """The endpoint of each client's next flow."""
    target = target or (at.cluster_ip, PORT)
    outcomes = await asyncio.gather(
        *(stage.world.attempt("x", protocol, target, source=at.client(1 + number)) for number in range(CLIENTS))
    )
    assert all(isinstance(outcome, Served) for outcome in outcomes), outcomes
    return [outcome.by for outcome in outcomes if isinstance(outcome, Served)]


@FAMILIES
@BOTH
async def test_case_37_t32_a_client_keeps_its_endpoint_until_it_was_idle(family: Family, protocol: Protocol) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at, **sticky(SHORT)), slice_of(at, *ENDPOINTS))
            first = await met(stage, at, protocol)
            assert set(first) == set(ENDPOINTS)
            for _ in range(8):
                assert await met(stage, at, protocol) == first
                await asyncio.sleep(SHORT / 4)  # each flow begins the time anew
            await asyncio.sleep(SHORT * 1.5)
            assert await met(stage, at, protocol) != first


@FAMILIES
@BOTH
async def test_case_38_t33_only_clients_of_what_goes_are_drawn_anew(family: Family, protocol: Protocol) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at, **sticky(LONG)), slice_of(at, "a1", "a2", "b1"))
            first = await met(stage, at, protocol)
            await stage.apply(slice_of(at, "a2", "b1"))
            after = await met(stage, at, protocol)
            assert [new for new, old in zip(after, first, strict=True) if old != "a1"] == [
                o for o in first if o != "a1"
            ]
            assert "a1" not in after
            for _ in range(LOOKS_MAX):  # the clients' memories of what is gone are forgotten a little later
                settled = await met(stage, at, protocol)
                if settled == await met(stage, at, protocol) == await met(stage, at, protocol):
                    break
                await asyncio.sleep(0.05)
            await stage.apply(slice_of(at, "a1", "a2", "b1"))
            assert await met(stage, at, protocol) == settled


@FAMILIES
async def test_case_39_clients_keep_their_endpoints_over_a_restart(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at, **sticky(LONG)), slice_of(at, "a1", "a2", "b1"))
            first = await met(stage, at, Protocol.TCP)
            await stage.stop()
            assert await met(stage, at, Protocol.TCP) == first
            stage.start()
            assert not await stage.resync()
            assert await met(stage, at, Protocol.TCP) == first


@FAMILIES
async def test_affinity_is_of_the_service_port_and_shared_by_its_frontends(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            spec = {**sticky(LONG), "externalIPs": [at.external_ip]}
            await stage.apply(load_balancer(at, **spec), slice_of(at, *ENDPOINTS))
            first = await met(stage, at, Protocol.TCP)
            for target in ((at.vip, PORT), (at.external_ip, PORT), (at.n1, NODE_PORT)):
                assert await met(stage, at, Protocol.TCP, target) == first
            assert await met(stage, at, Protocol.UDP) != first


@FAMILIES
@BOTH
async def test_t35_affinity_with_policy_local_and_masquerade(family: Family, protocol: Protocol) -> None:
    """The cluster and the local set share what clients remember, as far as it is in both; what is not is drawn anew."""
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            spec = {**sticky(LONG), "externalTrafficPolicy": "Local"}
            await stage.apply(load_balancer(at, **spec), slice_of(at, "a1", "a2", "b1"))
            cluster = await met(stage, at, protocol)
            local = await met(stage, at, protocol, (at.vip, PORT))
            assert set(cluster) == {"a1", "a2", "b1"}
            assert set(local) == {"a1", "a2"}
            for one, other in zip(cluster, local, strict=True):
                assert one in (other, "b1")
            number = next(number for number, pod in enumerate(cluster) if pod != "b1")
            client, pod = at.client(1 + number), cluster[number]
            seen = await stage.world.attempt("x", protocol, (at.vip, PORT), source=client)
            assert seen == Served(pod, client)
            seen = await stage.world.attempt("x", protocol, (at.cluster_ip, PORT), source=client)
            assert seen == Served(pod, at.n1)
            near = {await stage.world.attempt("p1", protocol, (at.vip, PORT)) for _ in range(CLIENTS)}
            assert len(near) == 1
            assert {each.source for each in near if isinstance(each, Served)} == {at.p1}


@FAMILIES
async def test_t34_with_no_room_for_more_clients_all_are_served(family: Family) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at, **sticky(LONG)), slice_of(at, *ENDPOINTS))
            fill(world, at, AFFINITY_CLIENTS_MAX)
            assert remembered(world, at) == AFFINITY_CLIENTS_MAX
            first = await met(stage, at, Protocol.TCP)
            assert set(first) == set(ENDPOINTS)
            assert await met(stage, at, Protocol.TCP) != first
            assert remembered(world, at) == AFFINITY_CLIENTS_MAX
        assert world.syn_retransmits() == 0


def fill(world: World, at: Addresses, clients: int) -> None:
    """So many other clients send a datagram each."""
    first = CLIENTS + 1
    with world.outside.entered():
        six = at.family is Family.IPV6
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        base = int.from_bytes(socket.inet_pton(sock.family, at.client(first)))
        for number in range(clients):
            address = (base + number).to_bytes(16 if six else 4)
            if six:
                source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("16sI", address, 0))
            else:
                source = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("I4s4s", 0, address, bytes(4)))
            sock.sendmsg([b"?"], [source], 0, (at.cluster_ip, PORT))


IP_PKTINFO = 8
"""Linux; the socket module has no name for it before 3.14."""


def remembered(world: World, at: Addresses) -> int:
    """Clients in the map of affinity."""
    with world.n1.entered(), Kernel() as kernel:
        return len(kernel.elements(TABLES[at.family], SetName.AFF) or ())
