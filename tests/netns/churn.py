# SPDX-License-Identifier: Apache-2.0
"""Connections to a Service whose endpoints change all the time, while at least one endpoint is there at any moment."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from svcproxy.dataplane.contract import Dataplane
from svcproxy.frontends.buffer import DeltaBuffer
from svcproxy.frontends.keys import Backend, BackendSetKey, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta
from svcproxy.model.meta import Family, Protocol
from tests.netns.load_process import Load, LoadProcess, Place, Result
from tests.netns.nftables_stage import nftables
from tests.netns.objects import PORT, service, slice_of
from tests.netns.places import AT
from tests.netns.world import World

FIRST_PORT = 20000
PODS = ("a1", "a2", "b1", "b2")
SEED = 1


class Pattern(StrEnum):
    """How endpoints change."""

    RANDOM = "random"
    """Of 16 endpoints, some come and some go, at random."""
    SCALE = "scale"
    """One endpoint becomes 200, and one again."""


RATES = {Pattern.RANDOM: 5_000.0, Pattern.SCALE: 20.0}
"""Changes a second."""
ENDPOINTS = {Pattern.RANDOM: 16, Pattern.SCALE: 200}


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    result: Result
    changes: int
    """Of the endpoint set."""
    deltas: int
    """That they came to, in force one after the other."""
    syn_retransmits: int


async def churn(pattern: Pattern, family: Family, connections: int, *, at_once: int, rate: float) -> Report:
    """Connect, and change `rate` times a second meanwhile. While the data plane is busy, changes become one delta."""
    at = AT[family]
    with World() as world:
        places = [
            Place(world.pods[pod].fd, f"{pod}:{port}", at.of_pods[pod], port)
            for pod, port in _places(ENDPOINTS[pattern])
        ]
        backends = [Backend(place.ip, place.port) for place in places]
        load = Load(places, world.pods["p1"].fd, (at.cluster_ip, PORT), connections, at_once)
        async with nftables(world) as stage, LoadProcess(load) as process:
            pod, port = _places(1)[0]
            await stage.apply(service(at), slice_of(at, pod, port=port))
            key = BackendSetKey(ServicePortName("ns", "s", "tcp", Protocol.TCP), family, Scope.CLUSTER)
            async with asyncio.TaskGroup() as group:
                load_task = group.create_task(process.run(), name="load")
                changes, deltas = await _change(stage.plane, key, _changes(pattern, backends), rate, load_task.done)
            return Report(load_task.result(), changes, deltas, world.syn_retransmits())


def _places(count: int) -> list[tuple[str, int]]:
    return [(PODS[number % len(PODS)], FIRST_PORT + number) for number in range(count)]


Change = tuple[tuple[Backend, ...], tuple[Backend, ...]]
"""Those that come and those that go."""


def _changes(pattern: Pattern, backends: list[Backend]) -> Iterator[Change]:
    """Without end, from the first backend alone."""
    if pattern is Pattern.SCALE:
        rest = tuple(backends[1:])
        while True:
            yield rest, ()
            yield (), rest
    draw = random.Random(SEED)
    here = {backends[0]}
    while True:
        wanted = set(draw.sample(backends, draw.randint(1, len(backends))))
        one_by_one = draw.random() < 0.5
        if one_by_one:
            wanted = here ^ {draw.choice(backends)} or here
        if wanted != here:
            yield tuple(sorted(wanted - here)), tuple(sorted(here - wanted))
        here = wanted


async def _change(
    plane: Dataplane, key: BackendSetKey, changes: Iterator[Change], rate: float, done: Callable[[], bool]
) -> tuple[int, int]:
    """Changes, and deltas that were in force one after the other, until `done`."""
    made = deltas = 0
    waiting = DeltaBuffer()
    started = time.monotonic()
    while not done():
        for came, went in islice(changes, int((time.monotonic() - started) * rate) - made):
            waiting.put(FrontendDelta(backends=(BackendSetDelta(key, came, went),)))
            made += 1
        if waiting:
            await plane.apply(waiting.take())
            deltas += 1
        await asyncio.sleep(max(0.0, started + (made + 1) / rate - time.monotonic()))
    return made, deltas
