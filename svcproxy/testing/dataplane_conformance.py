# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the name of a test says what holds
"""What every data plane must do, whatever it is made of: the laws of `svcproxy.dataplane.contract.Dataplane`.

A test module subclasses `DataplaneLaws`, names the class `Test…` and says how to open the data plane. One that moves
packets subclasses `svcproxy.testing.dataplane_traffic.DataplaneTraffic`, which adds the rows about traffic; one that
does not says so in `without_traffic`. The class cannot be made without one or the other.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import ClassVar, Protocol

from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.dataplane.contract import APPLIED, Dataplane, Refused
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import (
    Address,
    Backend,
    Frontend,
    FrontendKey,
    FrontendKind,
    HealthCheck,
    NodePort,
    Scope,
    ServicePortName,
)
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, NamespacedName
from svcproxy.model.meta import Protocol as Transport

EXAMPLES = 25
"""Random histories that each data plane is led through; each may open and close real sockets."""


class Harness(Protocol):
    """A data plane under test, and what the suite needs to know of its surroundings."""

    @property
    def plane(self) -> Dataplane:
        """The data plane, empty at first."""
        ...

    @property
    def node_ips(self) -> tuple[str, ...]:
        """Two IPv4 addresses that can take NodePorts."""
        ...

    def address(self, number: int, protocol: Transport) -> Address:
        """One of ten addresses that can be served, by a number below 10."""
        ...

    def obstruct(self, key: Address) -> None:
        """From now on the data plane cannot open this frontend."""
        ...

    def clear(self, key: Address) -> None:
        """Undo `obstruct`."""
        ...

    def damage(self, key: Address) -> None:
        """Take a frontend out of force behind the data plane's back. The data plane may be lost after that."""
        ...


def service_port(number: int, protocol: Transport = Transport.TCP) -> ServicePortName:
    """The name of one of many Service ports."""
    return ServicePortName("shop", f"service-{number}", "", protocol)


def cluster_ip(key: Address, name: ServicePortName) -> Frontend:
    """A plain frontend."""
    return Frontend(key, name, FrontendKind.CLUSTER_IP)


def grow(frontend: Frontend, *backends: Backend, scope: Scope = Scope.CLUSTER) -> BackendSetDelta:
    """More backends for a frontend's Service port."""
    return BackendSetDelta(frontend.backend_set(scope), added=backends)


def shrink(frontend: Frontend, *backends: Backend, scope: Scope = Scope.CLUSTER) -> BackendSetDelta:
    """Fewer backends for a frontend's Service port."""
    return BackendSetDelta(frontend.backend_set(scope), removed=backends)


SOMEWHERE = Backend("127.0.0.1", 9)
ELSEWHERE = Backend("127.0.0.2", 9)


class DataplaneLaws(ABC):
    """The laws. They look at outcomes, at `refused` and at what `resync` finds to repair; never at packets."""

    moves_traffic: ClassVar[bool] = False
    """Whether the rows about traffic run too."""
    without_traffic: ClassVar[str] = ""
    """Why they do not."""

    def __init_subclass__(cls) -> None:
        if cls.__name__.startswith("Test") and not cls.moves_traffic and not cls.without_traffic:
            raise TypeError(f"{cls.__name__} must take the rows about traffic, or say why not in `without_traffic`")

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Harness]:
        """A harness with an empty data plane, closed at the end."""

    async def test_an_empty_plane_agrees_with_an_empty_table(self) -> None:
        async with self.open() as harness:
            assert not await harness.plane.resync(FrontendTable())
            assert not harness.plane.refused

    async def test_applying_twice_is_applying_once(self) -> None:
        async with self.open() as harness:
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            delta = FrontendDelta(frontends=(frontend,), backends=(grow(frontend, SOMEWHERE),))
            table = FrontendTable()
            table.apply(delta)
            assert await harness.plane.apply(delta) == {frontend.key: APPLIED}
            assert await harness.plane.apply(delta) == {frontend.key: APPLIED}
            assert not await harness.plane.resync(table)

    async def test_outcomes_name_what_is_affected_and_nothing_else(self) -> None:
        async with self.open() as harness:
            first, second = (cluster_ip(harness.address(n, Transport.TCP), service_port(0)) for n in (0, 1))
            other = cluster_ip(harness.address(2, Transport.TCP), service_port(1))
            node_port = Frontend(NodePort(Family.IPV4, Transport.TCP, 20080), service_port(1), FrontendKind.NODE_PORT)
            apply = harness.plane.apply
            everything = {frontend.key: APPLIED for frontend in (first, second, other, node_port)}
            assert await apply(FrontendDelta(frontends=(first, second, other, node_port))) == everything
            assert await apply(FrontendDelta(backends=(grow(first, SOMEWHERE),))) == {
                first.key: APPLIED,
                second.key: APPLIED,
            }
            addresses = FrontendDelta(node_port_addresses=frozenset(harness.node_ips))
            assert await apply(addresses) == {node_port.key: APPLIED}
            assert await apply(FrontendDelta(removed=(other.key,))) == {other.key: APPLIED}

    async def test_removing_what_is_not_there_is_applied(self) -> None:
        async with self.open() as harness:
            key = harness.address(0, Transport.UDP)
            assert await harness.plane.apply(FrontendDelta(removed=(key,))) == {key: APPLIED}

    async def test_resync_from_nothing_repairs_everything_and_then_nothing(self) -> None:
        async with self.open() as harness:
            table = _table(harness)
            repairs = await harness.plane.resync(table)
            repaired = FrontendTable()
            repaired.apply(repairs)
            assert repaired == table
            assert not await harness.plane.resync(table)

    async def test_resync_removes_what_is_not_desired(self) -> None:
        async with self.open() as harness:
            table = _table(harness)
            await harness.plane.resync(table)
            repairs = await harness.plane.resync(FrontendTable())
            table.apply(repairs)
            assert table == FrontendTable()

    async def test_one_refused_frontend_blocks_no_other(self) -> None:
        async with self.open() as harness:
            bad, good = (cluster_ip(harness.address(n, Transport.TCP), service_port(0)) for n in (0, 1))
            assert isinstance(bad.key, Address)
            harness.obstruct(bad.key)
            outcomes = await harness.plane.apply(
                FrontendDelta(frontends=(bad, good), backends=(grow(good, SOMEWHERE),))
            )
            assert outcomes[good.key] == APPLIED
            refusal = outcomes[bad.key]
            assert isinstance(refusal, Refused)
            assert dict(harness.plane.refused) == {bad.key: refusal.reason}
            assert refusal.reason

    async def test_a_refused_frontend_is_tried_again_by_resync(self) -> None:
        async with self.open() as harness:
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            assert isinstance(frontend.key, Address)
            table = FrontendTable()
            table.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, SOMEWHERE),)))
            harness.obstruct(frontend.key)
            await harness.plane.resync(table)
            assert set(harness.plane.refused) == {frontend.key}
            assert not await harness.plane.resync(table)
            harness.clear(frontend.key)
            assert (await harness.plane.resync(table)).frontends == (frontend,)
            assert not harness.plane.refused
            assert not await harness.plane.resync(table)

    async def test_a_refused_frontend_that_goes_is_not_refused_any_more(self) -> None:
        async with self.open() as harness:
            frontend = cluster_ip(harness.address(0, Transport.TCP), service_port(0))
            assert isinstance(frontend.key, Address)
            harness.obstruct(frontend.key)
            await harness.plane.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, SOMEWHERE),)))
            assert await harness.plane.apply(FrontendDelta(removed=(frontend.key,))) == {frontend.key: APPLIED}
            assert not harness.plane.refused

    async def test_what_was_lost_is_repaired_and_named(self) -> None:
        async with self.open() as harness:
            table = _table(harness)
            await harness.plane.resync(table)
            key = harness.address(1, Transport.TCP)
            harness.damage(key)
            with suppress(DataplaneLost):
                await harness.plane.apply(FrontendDelta())
            repairs = await harness.plane.resync(table)
            assert table.frontends[key] in repairs.frontends
            assert not await harness.plane.resync(table)

    async def test_a_cancelled_change_is_completed_by_resync(self) -> None:
        async with self.open() as harness:
            table = _table(harness)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(harness.plane.apply(diff(FrontendTable(), table)), name="apply")
                await asyncio.sleep(0)
                task.cancel()
            await harness.plane.resync(table)
            assert not harness.plane.refused
            assert not await harness.plane.resync(table)

    async def test_closing_twice_is_closing_once(self) -> None:
        async with self.open() as harness:
            await harness.plane.resync(_table(harness))
            await harness.plane.drain(0.0)
            await harness.plane.close()
            await harness.plane.close()

    def test_any_history_of_deltas_ends_in_agreement(self) -> None:
        async def lead(steps: Sequence[tuple[int, int, int, bool]]) -> None:
            async with self.open() as harness:
                table = FrontendTable()
                for step in steps:
                    delta = _delta(harness, *step)
                    named = {frontend.key for frontend in delta.frontends} | set(delta.removed)
                    table.apply(delta)
                    outcomes = await harness.plane.apply(delta)
                    assert named | _users(table, delta) == set(outcomes)
                    assert set(outcomes.values()) <= {APPLIED}
                assert not await harness.plane.resync(table)

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=12))
        def histories(steps: Sequence[tuple[int, int, int, bool]]) -> None:
            asyncio.run(lead(steps))

        histories()


def _table(harness: Harness) -> FrontendTable:
    """A bit of everything that can be served."""
    frontends = [
        cluster_ip(harness.address(number, protocol), service_port(number, protocol))
        for number in (0, 1)
        for protocol in (Transport.TCP, Transport.UDP)
    ]
    frontends.append(Frontend(NodePort(Family.IPV4, Transport.TCP, 20080), service_port(0), FrontendKind.NODE_PORT))
    table = FrontendTable()
    table.apply(
        FrontendDelta(
            frontends=tuple(frontends),
            backends=(grow(frontends[0], SOMEWHERE, ELSEWHERE), grow(frontends[0], SOMEWHERE, scope=Scope.LOCAL)),
            node_port_addresses=frozenset(harness.node_ips),
            health_checks=(HealthCheck(NamespacedName("shop", "service-0"), 30000, 1),),
        )
    )
    return table


def _delta(harness: Harness, number: int, service: int, backend: int, appears: bool) -> FrontendDelta:
    """One change of a small world: frontend `number` of Service port `service` and one of its backends."""
    frontend = cluster_ip(harness.address(number, Transport.TCP), service_port(service))
    change = grow if appears else shrink
    return FrontendDelta(
        frontends=(frontend,) if appears else (),
        removed=() if appears else (frontend.key,),
        backends=(change(frontend, Backend("127.0.0.1", 9 + backend)),),
    )


def _users(table: FrontendTable, delta: FrontendDelta) -> set[FrontendKey]:
    """The frontends whose backends a delta, already taken in, changes."""
    changed = {change.key for change in delta.backends}
    return {key for key, frontend in table.frontends.items() if frontend.backend_set(Scope.CLUSTER) in changed}
