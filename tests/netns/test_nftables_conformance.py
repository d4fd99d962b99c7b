# SPDX-License-Identifier: Apache-2.0
"""The nftables data plane keeps the contract, on the real kernel and with real clients."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import MappingProxyType

import pytest

from svcproxy.dataplane.nftables.elements import encode, packed
from svcproxy.dataplane.nftables.messages import Request, TableFlag, delete_elements, element_at
from svcproxy.dataplane.nftables.netlink import HEADER
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.plane import NftablesDataplane
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Rejected
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.dataplane_traffic import DataplaneTraffic, TrafficHarness
from tests.netns.nftables_stage import ground
from tests.netns.places import IPV4
from tests.netns.stage import Settings
from tests.netns.world import World

pytestmark = pytest.mark.netns

ENOSPC = 28


class Obstinate(Kernel):
    """Refuses every element that begins with some addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.obstructed: set[str] = set()

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        failures = []
        for index, request in enumerate(requests):
            for ip in self.obstructed:
                at = request.body.find(packed(ip))
                element = element_at(request, at + HEADER.size) if at >= 0 else None
                if element is not None:
                    failures.append(Failure(index, ENOSPC, element=element))
                    break
        return Rejected(tuple(failures)) if failures else super().commit(requests)


class NetnsHarness:
    """A plane on n1 of the test world, whose tables anyone may change. Pods that do not serve are its backends."""

    node_ips = IPV4.n1, IPV4.second
    backend_ips = IPV4.a1, IPV4.b1, IPV4.a2

    def __init__(self, world: World, plane: NftablesDataplane, kernel: Obstinate) -> None:
        self.world = world
        self.plane = plane
        self.kernel = kernel

    def address(self, number: int, protocol: Protocol) -> Address:
        return Address(f"10.96.0.{10 + number}", protocol, 80)

    def source(self, kind: SourceKind) -> str:
        return {SourceKind.POD: IPV4.p1, SourceKind.NODE: IPV4.n1, SourceKind.OTHER: IPV4.x}[kind]

    def inside(self, ip: str) -> AbstractContextManager[None]:
        places = {address: pod for pod, address in IPV4.of_pods.items()} | {IPV4.n1: "h1", IPV4.x: "x"}
        return self.world.namespace(places[ip]).entered()

    def obstruct(self, key: Address) -> None:
        self.kernel.obstructed.add(key.ip)

    def clear(self, key: Address) -> None:
        self.kernel.obstructed.discard(key.ip)

    def damage(self, key: Address) -> None:
        with self.world.n1.entered(), Kernel() as kernel:
            gone = encode(SetName.CLASS, (key.ip, key.protocol, key.port))
            assert kernel.commit([*delete_elements(TABLES[Family.IPV4], "class", gone)]) == Committed()

    async def pass_time(self, seconds: float) -> None:
        raise NotImplementedError("the time is the kernel's")


@asynccontextmanager
async def opened() -> AsyncIterator[TrafficHarness]:
    with World() as world:
        kernel: list[Obstinate] = []

        def make() -> Kernel:
            kernel.append(Obstinate())
            return kernel[0]

        with world.n1.entered():
            plane = NftablesDataplane(ground(Settings(), TableFlag.NONE), make)
        async with plane:
            with world.n1.entered():
                await plane.resync(FrontendTable())
            yield NetnsHarness(world, plane, kernel[0])


class TestNftablesDataplane(DataplaneTraffic):
    excused = MappingProxyType(
        {
            "test_affinity_keeps_a_client_until_it_was_idle": "the time is the kernel's; the acceptance cases wait",
            "test_a_datagram_sender_follows_its_endpoints": "another part deletes what conntrack has of old endpoints",
            "test_draining_refuses_the_new_and_waits_for_the_old": "connections outlive the process",
        }
    )

    def open(self) -> AbstractAsyncContextManager[TrafficHarness]:
        return opened()
