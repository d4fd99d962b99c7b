# SPDX-License-Identifier: Apache-2.0
"""What a new connection and an octet cost through the nftables data plane, however many Services there are.

    sudo PYTHONPATH=. .venv/bin/python bench/nftables/traffic.py [--services 100,1000,10000,50000] [--rounds 5]

Client and server are in namespaces of their own, with the node between them. Rounds alternate between the ClusterIP and
the server's own address; medians. CPU time is that of client and server, in whose context the kernel does the node's
work.
"""

import argparse
import asyncio
import statistics

from bench.nftables.flows import PORT, SERVER_IP, Cost, Flows
from bench.nftables.plane import table_of
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, Scope, ServicePortName
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Protocol
from tests.netns.namespaces import Namespace

VIP = "10.111.255.254"
CONNECTIONS = 5_000
MIB = 2_000


def with_echo(table: FrontendTable) -> FrontendTable:
    frontend = Frontend(
        Address(VIP, Protocol.TCP, 80), ServicePortName("default", "echo", "", Protocol.TCP), FrontendKind.CLUSTER_IP
    )
    table.frontends[frontend.key] = frontend
    table.backends[frontend.backend_set(Scope.CLUSTER)] = {Backend(SERVER_IP, PORT)}
    return table


def alternating(flows: Flows, targets: dict[str, tuple[str, int]], rounds: int) -> None:
    """Compare ways to the server: costs, and ratios to the first of them."""
    connections: dict[str, list[Cost]] = {name: [] for name in targets}
    octets: dict[str, list[Cost]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, target in targets.items():
            connections[name].append(flows.connect(*target, CONNECTIONS))
            octets[name].append(flows.send(*target, MIB))
    report(connections, octets)


def report(connections: dict[str, list[Cost]], octets: dict[str, list[Cost]]) -> None:
    base, *_ = connections
    for name, connected in connections.items():
        cpu, sent = median(connected), median(octets[name])
        ratios = cpu / median(connections[base]), sent / median(octets[base])
        rate = 1 / statistics.median(each.wall for each in connected)
        speed = 8 * 1.048576e6 / statistics.median(each.wall for each in octets[name]) / 1e9
        print(
            f"  {name:<22} {cpu * 1e6:6.1f} µs CPU a connection ({ratios[0]:.2f}), {rate:6.0f}/s one after the other; "
            f"{sent * 1024:5.2f} s CPU a GiB ({ratios[1]:.2f}), {speed:5.1f} Gbit/s",
            flush=True,
        )


def median(costs: list[Cost]) -> float:
    return statistics.median(each.cpu for each in costs)


async def measure(services: int, rounds: int) -> None:
    with Namespace() as node, node.entered(), Flows(node) as flows:
        async with NftablesDataplane(Ground()) as plane:
            await plane.resync(with_echo(table_of(services, 4)))
            print(f"{services} Services", flush=True)
            alternating(flows, {"direct": (SERVER_IP, PORT), "ClusterIP": (VIP, 80)}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", default="100,1000,10000,50000")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for services in map(int, options.services.split(",")):
        asyncio.run(measure(services, options.rounds))


if __name__ == "__main__":
    main()
