# SPDX-License-Identifier: Apache-2.0
"""What those who ask notice of a relist, of an agent that is killed, of churn; and how soon they see a change."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.dns.context import Bench
from bench.dns.peers import CoreDns, Knot, Server, Svcproxy, urge
from bench.dns.report import Wanted, headline
from bench.dns.traffic import Outcome, percentile, probing
from bench.dns.writer import Writer, churning

RELIST_RATE = 1_000
"""Questions a second."""
RELISTED = 2
"""Kinds: Services and EndpointSlices; others are small."""
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
RELISTED_MOST = 1.2
"""p99 then, as a multiple of the one at rest."""
CHURN_RATE = 1_000
"""Endpoints a second."""
CHURN_LEAST = 0.8
"""Queries a second at saturation then, as a share of those at rest."""
CHURN_LEAD = 0.5
"""Seconds until the changes come at their rate."""
CHANGES = 100
"""In a round, of one headless Service each, to see when the answer changes."""
GAP = 0.02
"""Seconds between two of them."""
SEEN_MOST = 10.0
"""Milliseconds from the API server's acknowledgement to the new answer, p99."""


@dataclass(frozen=True)
class Disturbance:
    """Something that happens while questions are asked."""

    name: str
    prepare: Callable[[], None]
    """What comes before and is not of interest."""
    happen: Callable[[], None]
    """Returns when it is over."""


def relist(bench: Bench) -> None:
    """Latency while the agent lists everything again, and while it is killed and started again."""
    headline("relist", f"{bench.cluster}, {RELIST_RATE} questions a second")
    questions = bench.file("hot", bench.cluster.hot_questions())
    outcomes = defaultdict[str, list[Outcome]](list)
    with Svcproxy(bench.scratch(), bench.server_core, bench.plane()) as server:
        server.urge()
        disturbances = (_relisting(bench, server), _killing(server))
        for _ in range(bench.rounds):
            for each in disturbances:
                with probing(server, questions, RELIST_RATE) as running:
                    time.sleep(bench.seconds)
                outcomes["at rest"].append(running.outcome)
                each.prepare()
                with probing(server, questions, RELIST_RATE) as running:
                    each.happen()
                outcomes[each.name].append(running.outcome)
    print(f"  {'':14} {'p50 µs':>8} {'p99 µs':>8} {'longest':>8} {'lost':>5} {'seconds':>8} {'core':>5}")
    p99 = {}
    for name, rounds in outcomes.items():
        p50, p99[name] = (statistics.median(each.latency(share) for each in rounds) for share in (0.5, 0.99))
        longest = statistics.median(each.latencies[-1] for each in rounds)
        seconds, busy = (statistics.median(pair) for pair in zip(*((e.seconds, e.busy) for e in rounds), strict=True))
        figures = " ".join(f"{each * 1e6:8.0f}" for each in (p50, p99[name], longest))
        print(f"  {name:14} {figures} {sum(each.lost for each in rounds):5} {seconds:8.1f} {busy:5.0%}")
    for each in disturbances:
        print(Wanted(f"p99, {each.name} to at rest", RELISTED_MOST).judge(p99[each.name] / p99["at rest"]), flush=True)


def _relisting(bench: Bench, server: Svcproxy) -> Disturbance:
    """The agent is held while its API server forgets the past; then nothing that it watched is there to be resumed."""
    plane = bench.plane()
    before = 0.0

    def prepare() -> None:
        nonlocal before
        before = server.relists()
        server.agent.pause(stopped=True)
        plane.call("POST", CONFIG_MAPS, {"metadata": {"generateName": "later-than-what-is-watched-"}})
        plane.apiservers[0].kill()
        plane.compact()
        plane.restart()

    def happen() -> None:
        server.agent.pause(stopped=False)
        server.wait(lambda: server.relists() >= before + RELISTED and server.is_ready(), server.agent)

    return Disturbance("relist", prepare, happen)


def _killing(server: Svcproxy) -> Disturbance:
    """kill -9 and a start, until the worker has all that the new agent has."""

    def happen() -> None:
        server.agent.kill()
        server.agent.start()
        server.wait(server.is_ready, server.agent)

    return Disturbance("agent killed", lambda: None, happen)


def churn(bench: Bench) -> None:
    """What changes of endpoints take of a server's core, and the time until an answer shows one."""
    headline("churn", f"{bench.cluster}, {CHURN_RATE} endpoints a second replaced through the API")
    plane, directory = bench.plane(), bench.scratch()
    with Knot(directory / "upstream", bench.load_core, None) as upstream:
        for server in (
            Svcproxy(directory / "svcproxy", bench.server_core, plane, upstream.port),
            CoreDns(directory / "coredns", bench.server_core, plane, upstream.port),
        ):
            with server:
                _churn(bench, server)
                server.urge()
                _seen(bench, server)


def _churn(bench: Bench, server: Server) -> None:
    """Print the CPU that changes take of a server that is asked nothing, and what that leaves for queries.

    A load generator at saturation takes as much of its core as the server of the other: beside it nothing would change.
    """
    costs, rates = list[float](), list[float]()
    for _ in range(bench.rounds):
        with churning(bench.plane(), bench.cluster, CHURN_RATE) as changes:
            time.sleep(CHURN_LEAD)
            changes.begin()
            before = server.cpu()
            time.sleep(bench.seconds)
            rates.append(changes.rate())
            costs.append((server.cpu() - before) / bench.seconds / max(rates[-1], 1.0))
    cost, rate = statistics.median(costs), statistics.median(rates)
    print(f"  {server.name:10} {cost * 1e6:.0f} µs CPU for an endpoint replaced, at {rate:.0f} a second")
    left = 1 - cost * CHURN_RATE
    print(
        Wanted(f"{server.name}, core left at {CHURN_RATE} a second", CHURN_LEAST, at_least=True).judge(left), flush=True
    )


@contextmanager
def urgent() -> Iterator[None]:
    """This process goes before others: when it looks is when it wants to."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    urge(os.getpid())
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def _seen(bench: Bench, server: Server) -> None:
    times = list[float]()
    if isinstance(server, Svcproxy) and server.agent.popen is not None:
        urge(server.agent.popen.pid)
    with urgent(), Writer(bench.plane(), bench.cluster) as writer:
        for _ in range(bench.rounds * CHANGES):
            change = writer.change_headless()
            times.append(change.seen_by(server.port))
            time.sleep(GAP)
    times.sort()
    p50, p99 = (percentile(times, share) * 1e3 for share in (0.5, 0.99))
    print(f"  {server.name:10} from the acknowledged write to the new answer p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(Wanted(f"{server.name}, p99", SEEN_MOST).judge(p99, " ms"), flush=True)
