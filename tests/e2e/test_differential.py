# SPDX-License-Identifier: Apache-2.0
"""kube-proxy and svcproxy, given the same random objects, do the same to the same connection attempts.

What they are meant to do differently is in `tests.e2e.differential.reasons`. `SVCPROXY_SEED` repeats a run,
`SVCPROXY_DIFFERENTIAL_ROUNDS` makes it longer or shorter.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import pytest
import yaml

from tests.e2e.differential.cluster import RandomCluster
from tests.e2e.differential.reasons import Comparison, Outcomes, reason_for
from tests.e2e.differential.tries import LEAK, Try, sample
from tests.e2e.differential.worlds import Worlds, two_worlds
from tests.netns.probes import Failed, Outcome, Served, Timeout

SLOTS: Final = 14
ROUNDS: Final = 4
TRIES: Final = 420
"""Of each round, at most."""
ENOUGH: Final = {"served": 60, "refused": 40, "timeout": 15}
"""Of each round on an average, the tries that must have met with this in kube-proxy's world."""
PATIENCE: Final = 2.0
"""Seconds until silence is believed, at first."""
AGAIN: Final = 60
"""Flows when the two sides differ: a backend not yet seen is no difference,"""
LONG_PATIENCE: Final = 8.0
"""nor is an answer that was late."""


@dataclass(slots=True)
class Tally:
    """What came of everything that was tried."""

    met: Counter[str] = field(default_factory=Counter)
    meant: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)
    compared: int = 0

    def count(self, comparison: Comparison, cluster: RandomCluster, number: int) -> None:
        self.compared += 1
        self.met.update({kind(each) for each in comparison.kube_proxy})
        if comparison.alike:
            return
        if (reason := reason_for(comparison)) is not None:
            self.meant[reason.text] += 1
        else:
            self.bugs.append(f"round {number}: {described(cluster, comparison)}")

    def lines(self) -> Iterator[str]:
        yield f"{self.compared} attempts compared, each of several flows; {len(self.bugs)} differ that should not"
        yield f"kube-proxy: {', '.join(f'{count} {what}' for what, count in self.met.most_common())}"
        for text, count in self.meant.most_common():
            yield f"{count} differ as they are meant to: {text}"


def kind(outcome: Outcome) -> str:
    """An outcome in a word."""
    if isinstance(outcome, Served):
        return "leaked" if outcome.by == LEAK else "served"
    return type(outcome).__name__.lower()


def described(cluster: RandomCluster, comparison: Comparison) -> str:
    """For whoever has to find out."""
    name = comparison.attempt.service or ""
    objects = [] if comparison.service is None else [comparison.service, *cluster.slices_of(name)]
    sides = {"kube-proxy": comparison.kube_proxy, "svcproxy": comparison.svcproxy}
    lines = [
        f"{comparison.attempt}",
        *(f"  {side}: {', '.join(sorted(map(str, outcomes)))}" for side, outcomes in sides.items()),
        f"  zone of n1: {cluster.zone}; since the last round: {', '.join(cluster.touched.get(name, ['no change']))}",
        yaml.safe_dump_all(objects, sort_keys=False),
    ]
    return "\n".join(lines)


async def compare(worlds: Worlds, cluster: RandomCluster, attempt: Try, rng: Random) -> Comparison:
    """What both sides do, tried again if they differ without a reason."""
    found: list[Outcomes] = [frozenset(), frozenset()]
    for times, patience in ((attempt.times, PATIENCE), (max(AGAIN, attempt.times), LONG_PATIENCE)):
        async with asyncio.TaskGroup() as group:
            now = [group.create_task(side.meet(attempt, rng, times, patience), name=side.name) for side in worlds.sides]
        found = [new.result() | _lasting(attempt, old) for old, new in zip(found, now, strict=True)]
        comparison = Comparison(attempt, cluster.services.get(attempt.service or ""), *found)
        if comparison.alike or reason_for(comparison) is not None:
            break
    return comparison


def _lasting(attempt: Try, outcomes: Outcomes) -> Outcomes:
    """What counts although it is not met again: a backend or a refusal, except to a client that has one of its own."""
    return frozenset(each for each in outcomes if not (attempt.sticky or isinstance(each, Timeout | Failed)))


async def test_does_what_kube_proxy_does(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = int(os.environ.get("SVCPROXY_DIFFERENTIAL_ROUNDS") or ROUNDS)
    rng = Random(seed)
    cluster = RandomCluster(rng, SLOTS)
    tally = Tally()
    async with two_worlds(tmp_path) as worlds:
        for number in range(rounds):
            if number:
                cluster.mutate()
            await worlds.bring(cluster)
            async with asyncio.TaskGroup() as group:
                comparisons = [
                    group.create_task(compare(worlds, cluster, each, Random(rng.random())), name=str(each))
                    for each in sample(cluster, rng, TRIES)
                ]
            for task in comparisons:
                tally.count(task.result(), cluster, number)
    with capsys.disabled():
        print(f"\nSVCPROXY_SEED={seed}", *tally.lines(), sep="\n")
    assert not tally.bugs, f"SVCPROXY_SEED={seed}, {len(tally.bugs)} differences:\n" + "\n".join(tally.bugs)
    for what, each_round in ENOUGH.items():
        assert tally.met[what] >= each_round * rounds, f"only {tally.met[what]} times {what}"
