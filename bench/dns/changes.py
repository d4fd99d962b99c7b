# SPDX-License-Identifier: Apache-2.0
"""What those who ask notice of a relist, of an agent that is killed, of churn; and how soon they see a change."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from bench.dns.context import Bench
from bench.dns.peers import CoreDns, Knot, Server, Svcproxy
from bench.dns.report import Wanted, headline
from bench.dns.traffic import Load, Outcome, ask_many, asking, percentile
from bench.dns.writer import Writer, churning

RELIST_RATE = 2_000
"""Questions a second."""
RELISTED = 2
"""Kinds: Services and EndpointSlices; others are small."""
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
ENDLESS = 600.0
"""Seconds; a load that is ended."""
RELISTED_MOST = 1.2
"""p99 then, as a multiple of the one at rest."""
CHURN_RATE = 1_000
"""Endpoints a second."""
CHURN_LEAST = 0.8
"""Queries a second then, as a share of those at rest."""
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
    load = Load(questions, seconds=bench.seconds, rate=RELIST_RATE, latencies=True, urgent=True)
    unending = Load(questions, seconds=ENDLESS, rate=RELIST_RATE, latencies=True, urgent=True)
    outcomes = defaultdict[str, list[Outcome]](list)
    with Svcproxy(bench.scratch(), bench.server_core, bench.plane()) as server:
        server.urge()
        disturbances = (_relisting(bench, server), _killing(server))
        for _ in range(bench.rounds):
            for each in disturbances:
                outcomes["at rest"].append(ask_many(server, load))
                each.prepare()
                with asking(server, unending, until_left=True) as running:
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
    """Queries answered while endpoints change, and the time until an answer does."""
    headline("churn", f"{bench.cluster}, {CHURN_RATE} endpoints a second replaced through the API")
    load = Load(bench.file("hot", bench.cluster.hot_questions()), seconds=bench.seconds, urgent=True)
    plane, directory = bench.plane(), bench.scratch()
    with Knot(directory / "upstream", bench.load_core, None) as upstream:
        for server in (
            Svcproxy(directory / "svcproxy", bench.server_core, plane, upstream.port),
            CoreDns(directory / "coredns", bench.server_core, plane, upstream.port),
        ):
            with server:
                server.urge()
                _churn(bench, server, load)
                _seen(bench, server)


def _churn(bench: Bench, server: Server, load: Load) -> None:
    rest, busy, written = list[Outcome](), list[Outcome](), list[float]()
    for _ in range(bench.rounds):
        rest.append(ask_many(server, load))
        with churning(bench.plane(), bench.cluster, CHURN_RATE) as changes:
            changes.begin()
            busy.append(ask_many(server, load))
            written.append(changes.rate())
    rates = [statistics.median(each.rate for each in rounds) for rounds in (rest, busy)]
    print(
        f"  {server.name:10} {rates[0]:7.0f} queries/s at rest, {rates[1]:7.0f} at "
        f"{statistics.median(written):.0f} changes/s; lost {sum(each.lost for each in busy)}"
    )
    print(Wanted(f"{server.name}, queries/s to at rest", CHURN_LEAST, at_least=True).judge(rates[1] / rates[0]))


def _seen(bench: Bench, server: Server) -> None:
    times = list[float]()
    with Writer(bench.plane(), bench.cluster) as writer:
        for _ in range(bench.rounds * CHANGES):
            change = writer.change_headless()
            times.append(change.seen_by(server.port))
            time.sleep(GAP)
    times.sort()
    p50, p99 = (percentile(times, share) * 1e3 for share in (0.5, 0.99))
    print(f"  {server.name:10} from the acknowledged write to the new answer p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(Wanted(f"{server.name}, p99", SEEN_MOST).judge(p99, " ms"), flush=True)
