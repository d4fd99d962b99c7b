# SPDX-License-Identifier: Apache-2.0
"""How flows are spread over endpoints, in numbers. Bounds are more than five standard deviations wide."""

from collections import Counter

import pytest

from svcproxy.model.meta import Family, Protocol
from tests.netns.nftables_stage import nftables
from tests.netns.objects import PORT, service, slice_of
from tests.netns.places import AT
from tests.netns.probes import Served
from tests.netns.world import World

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
PODS = {2: ("a1", "b1"), 3: ("a1", "a2", "b1")}
FIRST_PORT = 20000
DRAWS_PER_SLOT = 24


@FAMILIES
@pytest.mark.parametrize(
    ("protocol", "endpoints", "flows", "deviation"),
    [
        pytest.param(Protocol.TCP, 2, 10_000, 0.03, id="case_01"),
        pytest.param(Protocol.TCP, 3, 3_000, 0.05, id="t01"),
        pytest.param(Protocol.UDP, 3, 3_000, 0.05, id="t02"),
    ],
)
async def test_each_endpoint_gets_its_share(
    family: Family, protocol: Protocol, endpoints: int, flows: int, deviation: float
) -> None:
    at = AT[family]
    with World() as world:
        async with nftables(world) as stage:
            await stage.apply(service(at), slice_of(at, *PODS[endpoints]))
            met = Counter(await world.attempts(flows, "p1", protocol, (at.cluster_ip, PORT)))
        assert met.keys() == {Served(pod, at.p1) for pod in PODS[endpoints]}
        for times in met.values():
            assert abs(times / flows - 1 / endpoints) < deviation
        assert world.syn_retransmits() == 0


@FAMILIES
@pytest.mark.parametrize("slots", [1, 2, 3, 7, 64, 257])
async def test_t04_every_slot_is_used(family: Family, slots: int) -> None:
    at = AT[family]
    ports = range(FIRST_PORT, FIRST_PORT + slots)
    with World() as world:
        servers = [world.server("a1", f"slot-{port}", Protocol.TCP, at.a1, port) for port in ports]
        async with nftables(world) as stage, world.running(*servers):
            await stage.apply(service(at), *(slice_of(at, "a1", name=f"s-{port}", port=port) for port in ports))
            met = set(await world.attempts(DRAWS_PER_SLOT * slots, "p1", Protocol.TCP, (at.cluster_ip, PORT)))
        assert met == {Served(server.name, at.p1) for server in servers}
        assert world.syn_retransmits() == 0
