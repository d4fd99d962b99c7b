# SPDX-License-Identifier: Apache-2.0
"""The script of `svcproxy render`, as nft 1.0.6 loads it."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.script import COMMENT, script
from svcproxy.frontends.addresses import host_network
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Backend
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import Client, Server, serving
from tests.dataplane.nftables.test_render import tables
from tests.netns.decisions import (
    BACKEND_PORT,
    BY_ADDRESS,
    PORT,
    PROTOCOLS,
    SOURCES,
    Case,
    cluster_ip,
    every_table,
    host,
    load_over_netlink,
    load_script,
    meet,
    vip,
    world,
)
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

NFT = {Family.IPV4: "ip", Family.IPV6: "ip6"}


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
def test_every_script_can_be_parsed(node: Namespace, table: FrontendTable) -> None:
    node.run("nft", "-c", "-f", "-", text=script(table, BY_ADDRESS))


def test_a_script_replaces_what_an_earlier_one_made(node: Namespace) -> None:
    load_script(node, every_table(), BY_ADDRESS)
    load_script(node, FrontendTable(), Surroundings())
    load_script(node, FrontendTable(), Surroundings())
    once = Namespace()
    with once:
        load_script(once, FrontendTable(), Surroundings())
        assert node.run("nft", "list", "ruleset") == once.run("nft", "list", "ruleset")


async def test_nothing_is_loaded_over_the_tables_of_an_agent(node: Namespace) -> None:
    with node.entered():
        plane = NftablesDataplane(Ground())
    async with plane:
        await plane.resync(every_table())
        before = node.run("nft", "list", "ruleset")
        with pytest.raises(subprocess.CalledProcessError):
            load_script(node, FrontendTable(), Surroundings())
        assert node.run("nft", "list", "ruleset") == before


def test_an_agent_replaces_the_tables_of_a_script(node: Namespace) -> None:
    load_script(node, every_table(), BY_ADDRESS)
    load_over_netlink(node, every_table(), BY_ADDRESS)
    listed = node.run("nft", "list", "ruleset")
    assert COMMENT not in listed
    assert "chain refuse" not in listed


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_a_pod_reaches_itself(family: Family, protocol: Protocol) -> None:
    source = SOURCES[family][SourceKind.POD]
    with world() as made:
        load_script(made.node, cluster_ip(family, protocol, 1, Backend(source, BACKEND_PORT)), BY_ADDRESS)
        with made.pod.entered():
            server = Server("itself", protocol, source, BACKEND_PORT)
        async with serving(server):
            case = Case(vip(family, 1), protocol, PORT, SourceKind.POD)
            assert await meet(made, case, flows=2) == {"itself"}
        assert set(server.seen) == {host(family, 1, 1)}


@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_clients_keep_backends_of_their_own(family: Family) -> None:
    """Fifty addresses are spread, and each stays: their hashes, or they themselves, are told apart."""
    backends = [Backend(host(family, 2, each), BACKEND_PORT) for each in (2, 3, 4)]
    table = cluster_ip(family, Protocol.TCP, 1, *backends, affinity=60)
    with world() as made:
        load_script(made.node, table, BY_ADDRESS)
        ips = [host(family, 1, number) for number in range(10, 60)]
        for ip in ips:
            made.pod.ip("addr", "add", host_network(ip), "dev", "eth0", *(["nodad"] if ":" in ip else []))
        with made.backends.entered():
            servers = [Server(each.ip, Protocol.TCP, each.ip, each.port) for each in backends]
        async with serving(*servers):
            rounds = [[await ask_from(made.pod, ip, vip(family, 1)) for ip in ips] for _ in range(3)]
        assert rounds[0] == rounds[1] == rounds[2]
        assert set(rounds[0]) == {each.ip for each in backends}
        remembered = json.loads(made.node.run("nft", "-j", "list", "map", NFT[family], "svcproxy", "aff"))
        assert len(remembered["nftables"][-1]["map"]["elem"]) == len(ips)


async def ask_from(pod: Namespace, source: str, ip: str) -> str:
    with pod.entered():
        client = Client(Protocol.TCP, source, (ip, PORT))
    with client:
        return await client.ask()
