# SPDX-License-Identifier: Apache-2.0
"""Resident memory of one worker beside CoreDNS', when all names are known and again when each was asked for once."""

import random

from bench.dns.context import Bench
from bench.dns.objects import Cluster
from bench.dns.peers import CoreDns, Knot, Server, Svcproxy, resident
from bench.dns.report import Wanted, headline
from bench.dns.traffic import Load, ask_many

LARGE = Cluster(50_000, 5)
"""An API server takes long to be filled with it: it comes from a feed without an agent."""
WORKER_MAX, LARGE_WORKER_MAX = 120, 400
"""MiB."""


def memory(bench: Bench) -> None:
    """A worker at the size of the other scenarios and at `LARGE`; CoreDNS at the former."""
    headline("memory", f"{bench.cluster}, all names known; then each asked for once")
    directory, plane = bench.scratch(), bench.plane()
    with Knot(directory / "upstream", bench.load_core, None) as upstream:
        with CoreDns(directory / "coredns", bench.server_core, plane, upstream.port) as coredns:
            _measure(bench, coredns, bench.cluster)
        with Svcproxy(directory / "svcproxy", bench.server_core, plane, upstream.port) as svcproxy:
            used = _measure(bench, svcproxy, bench.cluster)
    print(Wanted("worker", WORKER_MAX).judge(used, " MiB"), flush=True)
    print(f"  {LARGE}, from a feed without an agent")
    with Svcproxy(directory / "large", bench.server_core, LARGE) as svcproxy:
        used = _measure(bench, svcproxy, LARGE)
    print(Wanted("worker", LARGE_WORKER_MAX).judge(used, " MiB"), flush=True)


def _measure(bench: Bench, server: Server, cluster: Cluster) -> float:
    """Print what a server takes; returns its resident memory at the end."""
    known, known_share = resident(server.pid)
    questions = bench.file("uniform", cluster.uniform_questions(random.Random()))
    ask_many(server, Load(questions, binary=True, denied=cluster.denied_share()))
    asked, asked_share = resident(server.pid)
    print(
        f"  {server.name:10} RSS {known:4.0f} MiB, {asked:4.0f} asked; Pss {known_share:4.0f}, {asked_share:4.0f}",
        flush=True,
    )
    if isinstance(server, Svcproxy) and cluster is not LARGE and server.agent.popen is not None:
        print(f"  {'its agent':10} RSS {resident(server.agent.popen.pid)[0]:4.0f} MiB")
    return asked
