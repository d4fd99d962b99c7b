# SPDX-License-Identifier: Apache-2.0
"""svcproxy's own nf_tables on n1, driven by objects as in the agent: store, frontends, data plane."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.presence import OWNED
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.table import FrontendDelta
from svcproxy.model import EndpointSlice, Service
from tests.frontends.world import World as Cluster
from tests.netns.places import AT, IPV4, IPV6
from tests.netns.stage import Settings
from tests.netns.world import World

PRIMARY = (IPV4.n1, IPV6.n1)
ADDRESSES = frozenset(ip for at in AT.values() for ip in (at.n1, at.second, at.loopback))


def ground(settings: Settings, flags: TableFlag = OWNED) -> Ground:
    """What the data plane of n1 is told of node and cluster."""
    return Ground(
        table_flags=flags,
        surroundings=Surroundings(
            pod_cidrs=tuple(at.pods for at in AT.values()),
            service_cidrs=tuple(at.services for at in AT.values()),
            masquerade_all=settings.masquerade_all,
        ),
        hairpin_cidrs=tuple(at.pods_n1 for at in AT.values()),
    )


class NftablesStage:
    """See `tests.netns.stage.Stage`."""

    refuses_at_once = True

    def __init__(self, world: World, settings: Settings, flags: TableFlag, group: asyncio.TaskGroup) -> None:
        """`flags`: of the tables, as far as they are to be made."""
        self.world = world
        self.cluster = Cluster(
            node=NodeView("n1", settings.zone, ADDRESSES, PRIMARY),
            options=FrontendOptions(node_port_addresses=settings.node_port_addresses),
        )
        self._ground = ground(settings, flags)
        self._group = group
        self._open()

    def _open(self) -> None:
        with self.world.n1.entered():
            self.plane = NftablesDataplane(self._ground)
        self._run = self._group.create_task(self.plane.run(), name="nftables")

    async def apply(self, *objects: Service | EndpointSlice) -> None:
        await self.take(self.cluster.apply(*objects).delta)

    async def remove(self, kind: type[Service] | type[EndpointSlice], name: str) -> None:
        await self.take(self.cluster.remove(kind, name).delta)

    async def take(self, delta: FrontendDelta) -> None:
        """The data plane takes a delta in."""
        outcomes = await self.plane.apply(delta)
        assert set(outcomes.values()) <= {APPLIED}
        await self.plane.apply(FrontendDelta())  # what became surplus goes with the next change

    async def resync(self) -> FrontendDelta:
        """The data plane compares and repairs."""
        return await self.plane.resync(self.cluster.table)

    async def stop(self) -> None:
        """As when the process goes: the tables stay."""
        self._run.cancel()
        await self.plane.close()

    def start(self) -> None:
        """As when a new process comes, which has not looked yet."""
        self._open()


@asynccontextmanager
async def nftables(
    world: World, settings: Settings | None = None, flags: TableFlag = OWNED
) -> AsyncIterator[NftablesStage]:
    """An empty data plane on n1, all pods serving."""
    async with world.serving(), asyncio.TaskGroup() as group:
        stage = NftablesStage(world, settings or Settings(), flags, group)
        try:
            await stage.resync()
            yield stage
        finally:
            await stage.stop()
