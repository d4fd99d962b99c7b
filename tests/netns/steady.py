# SPDX-License-Identifier: Apache-2.0
"""New connections all the time, none of which may fail."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from svcproxy.model.meta import Protocol
from tests.netns.probes import Outcome, Served
from tests.netns.world import World

AT_A_TIME = 10
"""Connections that each client tries together, again and again."""
PACE = 0.05
"""Seconds between two times: source ports are not used twice in a test."""


@asynccontextmanager
async def steady(world: World, targets: Mapping[str, tuple[str, int]]) -> AsyncIterator[Counter[Outcome]]:
    """Each place connects to its target. Ends after each has gone on for a while; every connection was served then."""
    met = Counter[Outcome]()
    going_on = True

    async def connect(place: str, target: tuple[str, int]) -> None:
        while going_on:
            met.update(await world.attempts(AT_A_TIME, place, Protocol.TCP, target))
            await asyncio.sleep(PACE)

    async with asyncio.TaskGroup() as group:
        for place, target in targets.items():
            group.create_task(connect(place, target), name=place)
        yield met
        await more(met, 3 * len(targets))
        going_on = False
    assert [outcome for outcome in met if not isinstance(outcome, Served)] == []


async def more(met: Counter[Outcome], times: int = 1) -> None:
    """Return once so many more rounds of connections have been tried."""
    wanted = met.total() + times * AT_A_TIME
    async with asyncio.timeout(60):
        while met.total() < wanted:  # noqa: ASYNC110  # counted by other tasks
            await asyncio.sleep(PACE)
