# SPDX-License-Identifier: Apache-2.0
"""svcproxy's DNS worker next to CoreDNS 1.14.7 and Knot DNS: CPU for a query, latency, memory.

    PYTHONPATH=.:dns python bench/dns/compare.py [SCENARIO…] [--rounds 5] [--seconds 3]

Needs the programs knotd and dnsperf, root for priorities, and two cores: the server that is asked has one of them to
itself, and everything else shares the other. Rounds alternate between the servers. See README.md.
"""

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.dns.changes import churn, relist
from bench.dns.context import Bench
from bench.dns.memory import memory
from bench.dns.objects import Cluster, elsewhere_questions, keep_to
from bench.dns.peers import CoreDns, Knot, Server, Svcproxy
from bench.dns.report import costs, headline
from bench.dns.traffic import Load, Outcome, ask_many

STEADY_RATE = 20_000
ELSEWHERE_HITS = 100
"""Names outside the zone that are asked for again and again."""
ELSEWHERE_MISSES = 20_000
"""Names of one round that are asked for once: twice what either cache holds."""
ELSEWHERE_OUTSTANDING = 50
"""Questions in flight while each needs the upstream."""


@contextmanager
def all_servers(bench: Bench, *, zone_file: bool = True) -> Iterator[list[Server]]:
    """Every server with the same cluster behind it, and the same upstream."""
    with ExitStack() as stack:
        plane, directory = bench.plane(), bench.scratch()
        upstream = stack.enter_context(Knot(directory / "upstream", bench.load_core, None)).port
        servers: list[Server] = [
            Svcproxy(directory / "svcproxy", bench.server_core, plane, upstream),
            CoreDns(directory / "coredns", bench.server_core, plane, upstream),
        ]
        if zone_file:
            servers.append(Knot(directory / "knot", bench.server_core, bench.cluster))
        yield [stack.enter_context(server) for server in servers]


def alternating(
    bench: Bench, servers: Sequence[Server], measure: Callable[[Server], Outcome]
) -> dict[str, list[Outcome]]:
    """Rounds of every server in turn."""
    outcomes: dict[str, list[Outcome]] = {server.name: [] for server in servers}
    for _ in range(bench.rounds):
        for server in servers:
            outcomes[server.name].append(measure(server))
    return outcomes


def hot(bench: Bench) -> None:
    """A few names, as many questions as are answered."""
    headline("hot", f"{bench.cluster}, A and AAAA of 8 names, as many as are answered")
    load = Load(bench.file("hot", bench.cluster.hot_questions()), seconds=bench.seconds)
    with all_servers(bench) as servers:
        costs(alternating(bench, servers, lambda server: ask_many(server, load)), {"CoreDNS": 1 / 5, "Knot": 1.15})


def steady(bench: Bench) -> None:
    """The same names at a rate that all servers can answer."""
    headline("steady", f"the same names, {STEADY_RATE} a second")
    load = Load(bench.file("hot", bench.cluster.hot_questions()), seconds=bench.seconds, rate=STEADY_RATE)
    with all_servers(bench) as servers:
        costs(alternating(bench, servers, lambda server: ask_many(server, load)), {"Knot": 1.5})


def uniform(bench: Bench) -> None:
    """Every name once, and the search paths that lead nowhere."""
    headline("uniform", "every name once, and four search paths of it that do not exist; A and AAAA; random cookies")
    cluster, rng = bench.cluster, random.Random()

    def measure(server: Server) -> Outcome:
        if isinstance(server, Svcproxy):
            server.restart_worker()  # what it has kept of the round before shall not help
        questions = bench.file("uniform", cluster.uniform_questions(rng))
        return ask_many(server, Load(questions, binary=True, denied=cluster.denied_share()))

    with all_servers(bench) as servers:
        costs(alternating(bench, servers, measure), {"CoreDNS": 1 / 3})


def forward(bench: Bench) -> None:
    """Names outside the zone, which the upstream knows."""
    rng = random.Random()

    def hits(server: Server) -> Outcome:
        questions = bench.file("hits", elsewhere_questions(rng, ELSEWHERE_HITS))
        ask_many(server, Load(questions, outstanding=ELSEWHERE_OUTSTANDING))
        return ask_many(server, Load(questions, seconds=bench.seconds))

    def misses(server: Server) -> Outcome:
        questions = bench.file("misses", elsewhere_questions(rng, ELSEWHERE_MISSES))
        return ask_many(server, Load(questions, outstanding=ELSEWHERE_OUTSTANDING))

    with all_servers(bench, zone_file=False) as servers:
        headline("forward, hits", f"{ELSEWHERE_HITS} names outside the zone, already known")
        costs(alternating(bench, servers, hits), {"CoreDNS": 1 / 3})
        headline("forward, misses", f"{ELSEWHERE_MISSES} names outside the zone, each asked for once")
        costs(alternating(bench, servers, misses), {"CoreDNS": 1.0})


SCENARIOS = {each.__name__: each for each in (hot, steady, uniform, forward, relist, churn, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each Service")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    options = parser.parse_args()
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    keep_to(options.load_core)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is ended and removed
    print(f"{processor()}, kernel {platform.release()}, CPython {platform.python_version()}")
    cluster = Cluster(options.services, options.endpoints)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="svcproxy-bench-dns-")))
        cores = options.server_core, options.load_core
        bench = Bench(cluster, options.rounds, options.seconds, *cores, directory, stack)
        for name in options.scenarios or SCENARIOS:
            SCENARIOS[name](bench)
            print(f"  load average {os.getloadavg()[0]:.1f} at the end", flush=True)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown"
    )


if __name__ == "__main__":
    main()
