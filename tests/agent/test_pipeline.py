# SPDX-License-Identifier: Apache-2.0
"""The way of a change through the pipeline, into a recording data plane."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from svcproxy.agent.pipeline import BACKLOG_MAX, OBJECTS_PER_TURN, Pipeline, Trigger
from svcproxy.dataplane.contract import Dataplane
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.keys import Address, FrontendKey, Scope
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.kube.source import InvalidObject
from svcproxy.model import Changes, EndpointSlice, NamespacedName, Service, Store
from svcproxy.model.meta import Family, Protocol
from svcproxy.model.store import Touched
from svcproxy.names.builder import NameBuilder
from svcproxy.names.records import EndpointRecord, Record
from svcproxy.names.steady import PATIENCE, SteadyNames
from svcproxy.testing.recording_dataplane import RecordingDataplane


def service(number: int) -> Service:
    ip = f"10.96.{number // 250}.{number % 250 + 1}"
    spec = {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80}]}
    return msgspec.convert({"metadata": {"name": f"s{number}", "namespace": "ns"}, "spec": spec}, Service)


def endpoints(number: int, *addresses: str, trigger: str | None = None) -> EndpointSlice:
    metadata: dict[str, Any] = {
        "name": f"s{number}-1",
        "namespace": "ns",
        "labels": {"kubernetes.io/service-name": f"s{number}"},
    }
    if trigger:
        metadata["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": trigger}
    return msgspec.convert(
        {
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [address]} for address in addresses],
        },
        EndpointSlice,
    )


def key(number: int) -> Address:
    return Address(f"10.96.{number // 250}.{number % 250 + 1}", Protocol.TCP, 80)


@dataclass
class Notes:
    """An `Observer` that remembers."""

    derivations: list[tuple[FrontendDelta, int | None, float]] = field(default_factory=list)
    programmings: list[tuple[FrontendDelta, int, list[Trigger], bool]] = field(default_factory=list)
    refusals: list[tuple[FrontendKey, str]] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    repairs: list[FrontendDelta] = field(default_factory=list)
    kinds: list[type] = field(default_factory=list)
    reports: list[InvalidObject] = field(default_factory=list)

    def derived(self, touched: Touched, delta: FrontendDelta, revision: int | None, read_at: float) -> int:
        self.derivations.append((delta, revision, read_at))
        return len(self.derivations)

    def programmed(
        self, delta: FrontendDelta, change: int, triggers: list[Trigger], seconds: float, full: bool
    ) -> None:
        self.programmings.append((delta, change, triggers, full))

    def refused(self, key: FrontendKey, reason: str) -> None:
        self.refusals.append((key, reason))

    def conflict(self, conflict: Conflict) -> None:
        self.conflicts.append(conflict)

    def invalid(self, report: InvalidObject) -> None:
        self.reports.append(report)

    def synced(self, kind: type) -> None:
        self.kinds.append(kind)

    def lost(self, cause: str) -> None:
        self.losses.append(cause)

    def repaired(self, delta: FrontendDelta) -> None:
        self.repairs.append(delta)


class Bench:
    """A pipeline and what it is joined to."""

    def __init__(self, patience: float = PATIENCE) -> None:
        store = Store()
        self.withdrawn = asyncio.Event()
        """Set when records are removed and none are added."""
        self.notes = Notes()
        self.published: list[tuple[tuple[Record, ...], tuple[Record, ...]]] = []
        self.plane = RecordingDataplane()
        frontends = FrontendBuilder(store, NodeView("n1"), FrontendOptions())
        names = SteadyNames(store, NameBuilder(store), patience)
        self.pipeline = Pipeline(store, frontends, names, self._publish, self.notes)

    def _publish(self, added: Sequence[Record], removed: Sequence[Record], read_at: float) -> int:
        self.published.append((tuple(added), tuple(removed)))
        if removed and not added:
            self.withdrawn.set()
        return len(self.published)

    def listed(self, services: Sequence[Service], slices: Sequence[EndpointSlice]) -> None:
        self.pipeline.changed(Changes(Service, tuple(services)), 1.0)
        self.pipeline.synced(Service)
        self.pipeline.changed(Changes(EndpointSlice, tuple(slices)), 1.0)
        self.pipeline.synced(EndpointSlice)

    def backends(self, number: int) -> set[str]:
        table = self.plane.table
        return set(map(str, table.backends_of(table.frontends[key(number)], Scope.CLUSTER)))


@contextlib.asynccontextmanager
async def running(bench: Bench, plane: Dataplane | None = None) -> AsyncIterator[None]:
    """Take in and program for the length of the block, from the moment when what is known is complete."""
    chosen: Dataplane = plane or bench.plane

    async def program() -> None:
        await bench.pipeline.complete.wait()
        await bench.pipeline.program_all(chosen)
        await bench.pipeline.program(chosen, lambda: 3600.0)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(bench.pipeline.take_in(), name="take in"),
            group.create_task(program(), name="program"),
        ]
        yield
        for task in tasks:
            task.cancel()


async def turns(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never happened")


async def test_nothing_is_programmed_before_services_and_slices_are_complete() -> None:
    bench = Bench()
    async with running(bench):
        bench.pipeline.changed(Changes(Service, (service(1),)), 1.0)
        bench.pipeline.synced(Service)
        await turns(lambda: bench.notes.kinds == [Service])
        assert bench.plane.calls == []
        bench.pipeline.changed(Changes(EndpointSlice, (endpoints(1, "10.0.0.1"),)), 1.0)
        bench.pipeline.synced(EndpointSlice)
        await turns(lambda: bool(bench.notes.programmings))
    assert bench.backends(1) == {"10.0.0.1:8080"}
    assert bench.notes.programmings[0][3] is True, "the first programming is of everything"


async def test_one_change_is_one_delta_to_the_data_plane_and_one_revision_to_workers() -> None:
    bench = Bench()
    async with running(bench):
        bench.listed([service(1), service(2)], [endpoints(1, "10.0.0.1"), endpoints(2, "10.0.0.2")])
        await turns(lambda: bool(bench.notes.programmings))
        bench.plane.calls.clear()
        bench.published.clear()
        changed = endpoints(1, "10.0.0.1", "10.0.0.9", trigger="2026-01-01T00:00:00Z")
        bench.pipeline.changed(Changes(EndpointSlice, (changed,)), 7.0)
        await turns(lambda: len(bench.notes.programmings) == 2)
    (delta,) = bench.plane.calls
    assert isinstance(delta, FrontendDelta)
    assert [tuple(map(str, change.added)) for change in delta.backends] == [("10.0.0.9:8080",)]
    assert delta.frontends == ()
    assert len(bench.published) == 1
    assert bench.notes.derivations[-1][2] == 7.0
    _, change, triggers, full = bench.notes.programmings[-1]
    assert change == len(bench.notes.derivations)
    assert triggers == [Trigger(Family.IPV4, "2026-01-01T00:00:00Z")]
    assert full is False


async def test_changes_while_the_data_plane_is_busy_become_one_delta() -> None:
    gate = asyncio.Event()

    class Busy(RecordingDataplane):
        async def apply(self, delta: FrontendDelta) -> Any:
            await gate.wait()
            return await super().apply(delta)

    bench = Bench()
    bench.plane = Busy()
    async with running(bench):
        bench.listed([service(1)], [endpoints(1, "10.0.0.1")])
        await turns(lambda: bool(bench.notes.programmings))
        bench.plane.calls.clear()
        for last in range(2, 30):
            bench.pipeline.changed(Changes(EndpointSlice, (endpoints(1, "10.0.0.1", f"10.0.0.{last}"),)), 1.0)
            await asyncio.sleep(0)
        gate.set()
        await turns(lambda: bench.backends(1) == {"10.0.0.1:8080", "10.0.0.29:8080"} and not bench.pipeline.pending)
    assert len(bench.plane.calls) <= 2


async def test_a_big_list_is_taken_in_a_bounded_number_of_objects_a_turn() -> None:
    bench = Bench()
    count = OBJECTS_PER_TURN * 5 + 1
    async with running(bench):
        bench.pipeline.changed(Changes(Service, tuple(service(number) for number in range(count))), 1.0)
        seen = []
        while len(bench.pipeline.store.services) < count:
            await asyncio.sleep(0)
            seen.append(len(bench.pipeline.store.services))
    assert max(b - a for a, b in pairwise([0, *seen])) <= OBJECTS_PER_TURN


async def test_beyond_the_backlog_the_source_waits() -> None:
    bench = Bench()
    one = Changes(Service, (service(1),))
    for _ in range(BACKLOG_MAX + 5):
        bench.pipeline.changed(one, 1.0)
    assert list(bench.pipeline.store.services) == [NamespacedName("ns", "s1")], "taken in before the call returned"


async def test_a_lost_data_plane_is_resynced_with_everything() -> None:
    bench = Bench()
    async with running(bench):
        bench.listed([service(1)], [endpoints(1, "10.0.0.1")])
        await turns(lambda: bool(bench.notes.programmings))
        bench.plane.lose("somebody flushed it")
        bench.pipeline.changed(Changes(EndpointSlice, (endpoints(1, "10.0.0.2"),)), 1.0)
        await turns(lambda: len(bench.notes.programmings) == 2)
    assert bench.notes.losses == ["somebody flushed it"]
    assert isinstance(bench.plane.calls[-1], FrontendTable)
    assert bench.backends(1) == {"10.0.0.2:8080"}


async def test_a_refusal_is_told_once_and_holds_nothing_up() -> None:
    bench = Bench()
    bench.plane.refuse(key(1), "address in use")
    async with running(bench):
        bench.listed([service(1), service(2)], [endpoints(1, "10.0.0.1"), endpoints(2, "10.0.0.2")])
        await turns(lambda: bool(bench.notes.programmings))
        bench.pipeline.changed(Changes(EndpointSlice, (endpoints(1, "10.0.0.3"),)), 1.0)
        await turns(lambda: len(bench.notes.programmings) == 2)
    assert bench.notes.refusals == [(key(1), "address in use")]
    assert key(2) in bench.plane.in_force


async def test_a_stand_by_keeps_no_deltas_and_starts_its_turn_with_everything() -> None:
    bench = Bench()
    async with running(bench):
        bench.listed([service(1)], [endpoints(1, "10.0.0.1")])
        await turns(lambda: bool(bench.notes.programmings))
    bench.pipeline.stop_programming()
    later = RecordingDataplane()
    bench.pipeline.preload(Changes(EndpointSlice, (endpoints(1, "10.0.0.4"),)))
    assert bench.pipeline.pending is False
    await bench.pipeline.program_all(later)
    assert later.table == bench.pipeline.frontends.table


async def test_refused_frontends_are_tried_again_soon_and_when_the_nodes_addresses_change() -> None:
    bench = Bench()
    bench.plane.refuse(key(1), "address in use")
    async with running(bench):
        bench.listed([service(1)], [endpoints(1, "10.0.0.1")])
        await turns(lambda: bool(bench.notes.programmings))
        assert key(1) not in bench.plane.in_force
        bench.plane.admit(key(1))
        bench.pipeline.node_changed(NodeView("n1", addresses=frozenset({"192.0.2.7"})))
        await turns(lambda: key(1) in bench.plane.in_force)
    assert isinstance(bench.plane.calls[-1], FrontendTable)


async def test_an_endpoint_in_no_slice_leaves_the_data_plane_at_once_and_the_names_by_itself_later() -> None:
    bench = Bench(patience=0.05)
    async with running(bench):
        bench.listed([service(1)], [endpoints(1, "10.0.0.1", "10.0.0.2")])
        await turns(lambda: bool(bench.notes.programmings))
        bench.pipeline.changed(Changes(EndpointSlice, (endpoints(1, "10.0.0.1"),)), 2.0)
        await turns(lambda: bench.backends(1) == {"10.0.0.1:8080"})
        assert not bench.withdrawn.is_set()
        async with asyncio.timeout(30):
            await bench.withdrawn.wait()
    assert [record.ip for record in bench.published[-1][1] if isinstance(record, EndpointRecord)] == ["10.0.0.2"]
