# SPDX-License-Identifier: Apache-2.0
"""How acceptance cases are written and played: objects appear and go, and packets meet what they meet.

A case is a generator of steps for one family, registered by `case` under its function's name. A `Stage` is a data plane
in the test world, driven by objects; whatever implements it can play the cases.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol as Interface

from svcproxy.model import EndpointSlice, Service
from svcproxy.model.meta import Family, Protocol
from tests.netns.places import AT, Addresses
from tests.netns.probes import PATIENCE, REFUSED, SILENCE, SILENCE_FOR_TWO, TIMEOUT, Outcome, Served
from tests.netns.world import TRANSPORTS, World

TIMES_FOR_EACH = 24
"""Attempts for each of several outcomes: one of two is missed once in 2**47 tries."""

Target = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the data plane is configured, besides what the world makes it: pods and Services of both families."""

    masquerade_all: bool = False
    zone: str | None = "z1"
    """Of n1."""
    node_port_addresses: tuple[str, ...] = ("primary",)


@dataclass(frozen=True, slots=True)
class Given:
    """Objects appear or change, as one change."""

    objects: tuple[Service | EndpointSlice, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """An object goes."""

    kind: type[Service] | type[EndpointSlice]
    name: str


@dataclass(frozen=True, slots=True)
class Meets:
    """New flows from a place meet these outcomes, each of them and no other."""

    place: str
    target: Target
    outcomes: frozenset[Outcome]
    protocols: tuple[Protocol, ...] = TRANSPORTS


@dataclass(frozen=True, slots=True)
class Owns:
    """From here on an address is the place's own."""

    place: str
    ip: str


@dataclass(frozen=True, slots=True)
class Runs:
    """From here on a server, TCP and UDP, is at an address of the place."""

    place: str
    target: Target
    server: str


Step = Given | Gone | Meets | Owns | Runs
Script = Callable[[Addresses], Iterator[Step]]


@dataclass(frozen=True, slots=True)
class Case:
    """An acceptance case."""

    script: Script
    settings: Settings


@dataclass(slots=True)
class Book:
    """Cases by name."""

    cases: dict[str, Case] = field(default_factory=dict)

    def case(self, settings: Settings | None = None) -> Callable[[Script], Script]:
        """Enter a script under the name of its function."""

        def enter(script: Script) -> Script:
            assert script.__name__ not in self.cases
            self.cases[script.__name__] = Case(script, settings or Settings())
            return script

        return enter


class Stage(Interface):
    """A data plane that programs n1 of a world and follows objects."""

    @property
    def world(self) -> World: ...

    @property
    def refuses_at_once(self) -> bool:
        """Whether a refusal answers the first SYN, not only the second one."""
        ...

    async def apply(self, *objects: Service | EndpointSlice) -> None:
        """Objects appear or change. In force when it returns."""
        ...

    async def remove(self, kind: type[Service] | type[EndpointSlice], name: str) -> None:
        """An object goes. In force when it returns."""
        ...


def served(source: str, *by: str) -> frozenset[Outcome]:
    """Each of the servers answers, and sees this source."""
    return frozenset(Served(name, source) for name in by)


def meets(
    place: str, target: Target, outcomes: frozenset[Outcome], protocols: Sequence[Protocol] = TRANSPORTS
) -> Meets:
    return Meets(place, target, outcomes, tuple(protocols))


def refused(place: str, target: Target, protocols: Sequence[Protocol] = TRANSPORTS) -> Meets:
    return Meets(place, target, frozenset({REFUSED}), tuple(protocols))


def dropped(place: str, target: Target, protocols: Sequence[Protocol] = TRANSPORTS) -> Meets:
    return Meets(place, target, frozenset({TIMEOUT}), tuple(protocols))


def given(*objects: Service | EndpointSlice) -> Given:
    return Given(objects)


async def play(stage: Stage, case: Case, family: Family) -> None:
    """Lead a data plane through a case. What packets meet between two changes is tried all at once."""
    async with AsyncExitStack() as stack:
        pending: list[Meets] = []
        for step in case.script(AT[family]):
            if isinstance(step, Meets):
                pending.append(step)
                continue
            await expect(stage, pending)
            pending = []
            match step:
                case Given():
                    await stage.apply(*step.objects)
                case Gone():
                    await stage.remove(step.kind, step.name)
                case Owns():
                    stage.world.own(step.place, step.ip)
                case Runs():
                    servers = [stage.world.server(step.place, step.server, each, *step.target) for each in TRANSPORTS]
                    await stack.enter_async_context(stage.world.running(*servers))
        await expect(stage, pending)


async def expect(stage: Stage, expectations: Iterable[Meets]) -> None:
    """Try all of them, and say everything that is not as expected."""
    tries = [(each, protocol) for each in expectations for protocol in each.protocols]
    before = stage.world.syn_retransmits()
    found = await asyncio.gather(*(_met(stage, *each) for each in tries))
    wrong = [
        f"{step.place} → {step.target[0]} port {step.target[1]}/{protocol} met {set(met)}, not {set(step.outcomes)}"
        for (step, protocol), met in zip(tries, found, strict=True)
        if met != step.outcomes
    ]
    late = TIMEOUT if stage.refuses_at_once else REFUSED
    if all(outcome not in step.outcomes for step, _ in tries for outcome in (TIMEOUT, late)):
        wrong += [f"{again} SYNs had to be sent again"] if (again := stage.world.syn_retransmits() - before) else []
    assert not wrong, "\n".join(wrong)


async def _met(stage: Stage, step: Meets, protocol: Protocol) -> frozenset[Outcome]:
    silence = SILENCE if stage.refuses_at_once else SILENCE_FOR_TWO
    patience = silence if TIMEOUT in step.outcomes else PATIENCE
    chosen = any(isinstance(outcome, Served) for outcome in step.outcomes)
    times = TIMES_FOR_EACH * len(step.outcomes) if chosen else 1
    return frozenset(await stage.world.attempts(times, step.place, protocol, step.target, patience))
