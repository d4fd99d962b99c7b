# SPDX-License-Identifier: Apache-2.0
"""svcproxy's own nf_tables on n1, driven by objects as in the agent: store, frontends, data plane."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane

from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.frontends.builder import Update
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


def ground(settings: Settings) -> Ground:
    """What the data plane of n1 is told of node and cluster."""
    return Ground(
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

    def __init__(self, world: World, plane: NftablesDataplane, cluster: Cluster) -> None:
        self.world = world
        self.plane = plane
        self.cluster = cluster

    async def apply(self, *objects: Service | EndpointSlice) -> None:
        await self._take(self.cluster.apply(*objects))

    async def remove(self, kind: type[Service] | type[EndpointSlice], name: str) -> None:
        await self._take(self.cluster.remove(kind, name))

    async def _take(self, update: Update) -> None:
        outcomes = await self.plane.apply(update.delta)
        assert set(outcomes.values()) <= {APPLIED}
        await self.plane.apply(FrontendDelta())  # what became surplus goes with the next change


@asynccontextmanager
async def nftables(world: World, settings: Settings | None = None) -> AsyncIterator[NftablesStage]:
    """An empty data plane on n1, all pods serving."""
    settings = settings or Settings()
    cluster = Cluster(
        node=NodeView("n1", settings.zone, ADDRESSES, PRIMARY),
        options=FrontendOptions(node_port_addresses=settings.node_port_addresses),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.serving())
        with world.n1.entered():
            plane = NftablesDataplane(ground(settings))
        await stack.enter_async_context(plane)
        await plane.resync(cluster.table)
        yield NftablesStage(world, plane, cluster)
