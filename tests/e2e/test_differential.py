# SPDX-License-Identifier: Apache-2.0
"""kube-proxy and svcproxy, given the same random objects, do the same to the same connection attempts.

`SVCPROXY_SEED` repeats a run, `SVCPROXY_DIFFERENTIAL_ROUNDS` makes it longer or shorter.
"""

import asyncio
import os
import secrets
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import pytest
import yaml

from tests.e2e.differential.cluster import RandomCluster
from tests.e2e.differential.reasons import Difference, Outcomes, alike, reason_for
from tests.e2e.differential.tries import Try, sample
from tests.e2e.differential.worlds import Side, Worlds, two_worlds
from tests.netns.probes import Failed, Outcome, Served, Timeout

SLOTS: Final = 14
ROUNDS: Final = 4
TRIES: Final = 420
"""Of each round, at most."""
ENOUGH: Final = 0.6
"""Share of `ROUNDS` × `TRIES` that must have been compared."""
PATIENCE: Final = 2.0
"""Seconds until silence is believed, at first: a busy machine may answer later."""
MORE: Final = ((40, 5.0), (80, 9.0))
"""Flows and patience when the two sides differ: a backend not yet seen, or an answer that was late, is no difference."""


async def compare(worlds: Worlds, attempt: Try, rng: Random) -> tuple[Outcomes, Outcomes]:
    """What both sides do, tried again as long as they differ."""
    found: list[Outcomes] = [frozenset(), frozenset()]
    for times, patience in ((attempt.times, PATIENCE), *MORE):
        if attempt.times == 2:
            times = 2  # noqa: PLW2901  # nobody is there to answer
        async with asyncio.TaskGroup() as group:
            now = [
                group.create_task(side.meet(attempt, rng, times, patience), name=side.name) for side in worlds.sides
            ]
        found = [new.result() | _lasting(attempt, old) for old, new in zip(found, now, strict=True)]
        if alike(attempt, *found):
            break
    return found[0], found[1]


def _lasting(attempt: Try, outcomes: Outcomes) -> Outcomes:
    """What counts although it is not met again: a backend or a refusal, except to a client that has one of its own."""
    return frozenset(each for each in outcomes if not (attempt.sticky or isinstance(each, Timeout | Failed)))


def described(cluster: RandomCluster, difference: Difference, round_: int, sides: tuple[Side, ...]) -> str:
    """For whoever has to find out."""
    attempt = difference.attempt
    objects = [] if difference.service is None else [difference.service, *cluster.slices_of(attempt.service or "")]
    lines = [
        f"round {round_}: {attempt}",
        *(f"  {side.name}: {sorted(map(str, outcomes))}" for side, outcomes in zip(sides, _both(difference), strict=True)),
        f"  zone of n1: {cluster.zone}; since the last round: {cluster.touched.get(attempt.service or '', [])}",
        yaml.safe_dump_all(objects, sort_keys=False),
    ]
    return "\n".join(lines)


def kind(outcome: Outcome) -> str:
    """An outcome in a word."""
    if isinstance(outcome, Served):
        return "leaked" if outcome.by == "leak" else "served"
    return type(outcome).__name__.lower()


def _both(difference: Difference) -> tuple[Outcomes, Outcomes]:
    return difference.kube_proxy, difference.svcproxy


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("SVCPROXY_SEED") or secrets.randbelow(1 << 32))


async def test_does_what_kube_proxy_does(tmp_path: Path, seed: int) -> None:
    rounds = int(os.environ.get("SVCPROXY_DIFFERENTIAL_ROUNDS") or ROUNDS)
    print(f"SVCPROXY_SEED={seed}")
    rng = Random(seed)
    cluster = RandomCluster(rng, SLOTS)
    compared, met, meant, unmeant = 0, Counter[str](), Counter[str](), list[str]()
    async with two_worlds(tmp_path) as worlds:
        for number in range(rounds):
            if number:
                cluster.mutate()
            await worlds.bring(cluster)
            tries = sample(cluster, rng, TRIES)
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(compare(worlds, each, Random(rng.random())), name=str(each)) for each in tries
                ]
            compared += len(tries)
            for attempt, task in zip(tries, running, strict=True):
                met.update({kind(each) for each in task.result()[0]})
                if alike(attempt, *task.result()):
                    continue
                difference = Difference(attempt, cluster.services.get(attempt.service or ""), *task.result())
                reason = reason_for(difference)
                if reason is not None:
                    meant[reason.text] += 1
                else:
                    unmeant.append(described(cluster, difference, number, worlds.sides))
    print(f"{compared} attempts compared, each of several flows; {len(unmeant)} differ that should not")
    print("kube-proxy:", ", ".join(f"{count} {what}" for what, count in met.most_common()))
    for text, count in meant.most_common():
        print(f"{count} differ as they are meant to: {text}")
    assert not unmeant, f"SVCPROXY_SEED={seed}, {len(unmeant)} differences:\n" + "\n".join(unmeant)
    assert compared >= ENOUGH * rounds * TRIES
