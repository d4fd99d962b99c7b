# SPDX-License-Identifier: Apache-2.0
"""CoreDNS and svcproxy, given the same random objects and the same upstream, answer the same questions alike.

What they are meant to answer differently is in `tests.e2e.dns_differential.rules`. `SVCPROXY_SEED` repeats a run,
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

from tests.e2e.dns_differential.cluster import RandomNames
from tests.e2e.dns_differential.comparison import Comparison, compare
from tests.e2e.dns_differential.questions import sample
from tests.e2e.dns_differential.rules import RULES
from tests.e2e.dns_differential.servers import Options, two_servers

ROUNDS: Final = 3
QUESTIONS: Final = 1500
"""Of each round."""
SHOWN: Final = 60
"""Differences that are described."""
EXPECTED: Final = frozenset({"B1", "B2", "B3", "B5", "B6", "B7", "B8", "B9", "B11", "B19"})
"""Rules that every run meets cases of."""


@dataclass(slots=True)
class Tally:
    """What came of everything that was asked."""

    codes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    compared: int = 0

    def count(self, comparison: Comparison, world: RandomNames, number: int) -> None:
        """Take a comparison down."""
        if comparison.svcproxy is not None:
            self.compared += 1
            self.codes[comparison.svcproxy.rcode] += 1
        self.rules.update(set(comparison.rules))
        if not comparison.right:
            self.wrong.append(f"round {number}: {comparison}\n{_objects(comparison, world)}")

    def lines(self) -> Iterator[str]:
        """For the log."""
        yield f"{self.compared} answers compared, {len(self.wrong)} differ that should not"
        yield ", ".join(f"{count} {code}" for code, count in self.codes.most_common())
        for text, count in self.rules.most_common():
            said = "; ".join(rule.text for rule in RULES if rule.id == text)
            yield f"{count} differ as they are meant to: {text}{f' ({said})' if said else ''}"


def _objects(comparison: Comparison, world: RandomNames) -> str:
    """Those that the name is about, as YAML."""
    labels = comparison.question.labels
    if len(labels) < 5 or labels[-3] != "svc":
        return ""
    key = labels[-4], labels[-5]
    return yaml.safe_dump_all([*filter(None, [world.services.get(key)]), *world.slices_of(key)], sort_keys=False)


async def test_answers_what_coredns_answers(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = int(os.environ.get("SVCPROXY_DIFFERENTIAL_ROUNDS") or ROUNDS)
    rng = Random(seed)
    options = Options(rng.choice(["insecure", "insecure", "verified"]), rng.random() < 0.2)
    world = RandomNames(rng)
    tally = Tally()
    async with two_servers(tmp_path, options) as servers:
        servers.upstream.minimum = rng.choice([60, 10])
        for number in range(rounds):
            if number:
                world.mutate()
            await servers.bring(world.objects)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(compare(servers, world, each), name=each.name)
                    for each in sample(world, rng, QUESTIONS)
                ]
            for task in tasks:
                tally.count(task.result(), world, number)
    with capsys.disabled():
        print(f"\nSVCPROXY_SEED={seed} {options}", *tally.lines(), sep="\n")
    shown = "\n".join(tally.wrong[:SHOWN])
    assert not tally.wrong, f"SVCPROXY_SEED={seed}, {len(tally.wrong)} differences:\n{shown}"
    assert tally.compared >= rounds * QUESTIONS * 0.9
    assert tally.rules.keys() >= EXPECTED, "kinds of questions that this test exists for were not asked"
