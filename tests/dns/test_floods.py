# SPDX-License-Identifier: Apache-2.0
"""What others notice while one client, or many, ask for more than they should: nothing."""

import asyncio
import socket

import dns.message
import dns.rcode

from svcproxy.config import DnsForwardConfig, UpstreamPolicy
from svcproxy_dns.admission import Refusal, TcpLimits
from svcproxy_dns.framing import frame
from tests.dns.test_forwarder import Node, node
from tests.dns.test_server import read_message
from tests.dns.world import addresses

FLOODER, OTHER = "127.0.0.2", "127.0.0.3"
BOUNDS = DnsForwardConfig(policy=UpstreamPolicy.SEQUENTIAL, concurrent_max=100, per_client_max=20, deadline=60.0)


async def others_are_answered(world: Node, name: str) -> None:
    """Another client asks for a name of the zone, and for one outside that nobody has asked for yet."""
    for tcp in (False, True):
        assert addresses(await world.ask("web.shop.svc.cluster.local", tcp=tcp, source=OTHER)) == ["10.96.10.1"]
        answer = await world.ask(f"{name}-{tcp}.example.com", tcp=tcp, source=OTHER)
        assert answer.rcode() == dns.rcode.NXDOMAIN


def misses(count: int, prefix: str) -> list[bytes]:
    """Queries that no upstream answers."""
    return [dns.message.make_query(f"drop.{prefix}{number}.example.com", "A").to_wire() for number in range(count)]


async def test_a_client_that_opens_connections_without_end() -> None:
    limit = TcpLimits().per_address
    async with node() as world:
        opened = [
            await asyncio.open_connection(world.host, world.port, local_addr=(FLOODER, 0)) for _ in range(limit + 50)
        ]
        for _, writer in opened:
            writer.write(b"\0")  # none of them is idle
        await others_are_answered(world, "connections")
        assert world.worker.statistics().connections_refused[Refusal.ADDRESS] == 50
        for _, writer in opened:
            writer.close()


async def test_a_client_that_pipelines_names_that_nobody_knows() -> None:
    async with node(forward=BOUNDS) as world:
        reader, writer = await asyncio.open_connection(world.host, world.port, local_addr=(FLOODER, 0))
        queries = misses(1000, "p")
        writer.write(b"".join(map(frame, queries)))
        await world.until(lambda forward: forward.waiting == BOUNDS.per_client_max)
        await others_are_answered(world, "pipeline")
        refused = [await read_message(reader) for _ in range(len(queries) - BOUNDS.per_client_max)]
        assert {dns.message.from_wire(each).rcode() for each in refused} == {dns.rcode.REFUSED}
        writer.close()


async def test_a_client_that_floods_over_udp() -> None:
    async with node(forward=BOUNDS) as world:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((FLOODER, 0))
            for query in misses(1000, "u"):
                client.sendto(query, (world.host, world.port))
            await world.until(lambda forward: forward.waiting == BOUNDS.per_client_max)
            await others_are_answered(world, "udp")


async def test_many_clients_that_flood_over_udp() -> None:
    """Of other names only what is kept is still answered to everyone; what is held for all of them is bounded."""
    async with node(forward=BOUNDS) as world:
        await world.ask("www.example.com")
        for low in range(4, 254):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((f"127.0.1.{low}", 0))
                for query in misses(4, f"c{low}-"):
                    client.sendto(query, (world.host, world.port))
        await world.until(lambda forward: forward.rejected == 4 * 250 - BOUNDS.concurrent_max)
        assert world.forward.flights == world.forward.waiting == BOUNDS.concurrent_max
        assert world.worker._forwarder is not None
        assert len(world.worker._forwarder.resolver._by_client) <= BOUNDS.concurrent_max
        for tcp in (False, True):
            assert addresses(await world.ask("web.shop.svc.cluster.local", tcp=tcp, source=OTHER)) == ["10.96.10.1"]
            assert addresses(await world.ask("www.example.com", tcp=tcp, source=OTHER)) == ["192.0.2.53"]
