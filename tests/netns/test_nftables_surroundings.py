# SPDX-License-Identifier: Apache-2.0
"""What surrounds the frontends comes into force at run time, on the real kernel."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy.agent.nftables_plane import open_nftables
from svcproxy.agent.surroundings import derive
from svcproxy.config import Config, DataplaneConfig
from svcproxy.dataplane.nftables.layout import TABLE, Surroundings
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.frontends.table import FrontendTable
from svcproxy.model import Node, ObjectMeta, ServiceCIDR
from svcproxy.model.meta import Family, Protocol
from svcproxy.model.node import NodeMeta
from svcproxy.model.service_cidr import ServiceCIDRSpec
from svcproxy.testing.admin import example_state
from svcproxy.testing.traffic import SILENCE, Client, Met, Server, serving
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

NODE = Node(NodeMeta("n1"))
RANGES = (ServiceCIDR(ObjectMeta("kubernetes"), ServiceCIDRSpec(("10.96.0.0/16", "fd96::/112"))),)
POD = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
UNUSED = {Family.IPV4: "10.96.9.9", Family.IPV6: "fd96::99"}
UPSTREAM = {Family.IPV4: "10.1.3.2", Family.IPV6: "fd01:3::2"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_ranges_of_services_are_silent_but_for_what_others_serve(stack: ExitStack, family: Family) -> None:
    """Case 31, and 27: outside the node somebody would answer at the address."""
    pod, node, outside = (stack.enter_context(Namespace()) for _ in range(3))
    node.forward()
    node.connect(pod, "veth1", 1)
    node.connect(outside, "up0", 3)
    node.ip("route", "add", "default", "via", UPSTREAM[family])
    outside.ip("addr", "add", UNUSED[family], "dev", "lo", *(["nodad"] if family is Family.IPV6 else []))
    with outside.entered():
        server = Server("outside", Protocol.TCP, UNUSED[family], 80)
    with node.entered():
        plane = NftablesDataplane(Ground(table_flags=TableFlag.NONE))

    async def put_in_force(objects: tuple[ServiceCIDR, ...], left_to_others: tuple[str, ...]) -> None:
        derived = derive(DataplaneConfig(), NODE, objects, left_to_others)
        plane.set_ground(derived.surroundings, derived.hairpin_cidrs)
        with node.entered():
            await plane.resync(FrontendTable())

    async def ask(patience: float) -> str:
        with pod.entered():
            client = Client(Protocol.TCP, POD[family], (UNUSED[family], 80))
        with client:
            return await client.ask(patience=patience)

    async with plane, serving(server):
        await put_in_force((), ())
        assert await ask(10.0) == "outside"
        await put_in_force(RANGES, ())
        assert await ask(SILENCE) == Met.SILENCE
        await put_in_force(RANGES, (UNUSED[family],))
        assert await ask(10.0) == "outside"
        await put_in_force(RANGES, ())
        assert await ask(SILENCE) == Met.SILENCE
        assert len(server.seen) == 2, "nothing leaves the node"


async def test_what_arrives_while_others_are_looked_for_is_in_the_first_rules(stack: ExitStack) -> None:
    node = stack.enter_context(Namespace())
    config = Config(dataplane=DataplaneConfig(beside_others=True))
    known = Surroundings()

    def ground() -> Ground:
        return Ground(table_flags=TableFlag.NONE, surroundings=known)

    with node.entered():
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(
                open_nftables(config, ground, lambda _port, _family: frozenset(), example_state()), name="opening"
            )
            await asyncio.sleep(0)
            assert not opening.done()
            known = Surroundings(service_cidrs=("10.96.0.0/16",))
            plane = await opening
            upkeep = group.create_task(plane.run(lambda _cause: None), name="upkeep")
            await plane.dataplane.resync(FrontendTable())
            upkeep.cancel()
        await plane.stop(0)
    assert "10.96.0.0/16" in node.run("nft", "list", "table", "ip", TABLE)
