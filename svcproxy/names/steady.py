# SPDX-License-Identifier: Apache-2.0
"""Records that stay while endpoints move between the slices of their Service. Pure; the clock is an argument.

Slices are written one after the other. An endpoint that leaves one before it comes in another is in none for some
milliseconds, and a name without it would be a wrong answer that clients keep for as long as the TTL says. So an
endpoint that was ready and is in no slice any more stays for `patience` seconds; as if a slice of its own said so, in
the counts of `svcproxy.names.builder`. It goes at once if any slice says that it is not ready, if its Service or the
namespace goes, and if its address comes back, then as it is said now.

Costs in proportion to what has changed, and to what is held when a Service or a namespace goes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from svcproxy.model import Endpoint, EndpointSlice, NamespacedName, Store, Touched
from svcproxy.model.store import SliceChange
from svcproxy.names.builder import FAMILIES, NameBuilder, Net, RecordDelta, differing, entries
from svcproxy.names.labels import canonical_ip
from svcproxy.names.records import EndpointRecord

PATIENCE = 0.5
"""Seconds that an endpoint may be in no slice: a controller writes the slices of a Service within milliseconds."""
HELD_MAX = 10_000
"""Endpoints held; further ones go at once."""

Place = tuple[NamespacedName, str]
"""A Service, and a canonical address of it."""


@dataclass(slots=True)
class _Held:
    until: float
    records: list[EndpointRecord]


class SteadyNames:
    """The records of a builder, and those held."""

    def __init__(self, store: Store, builder: NameBuilder, patience: float = PATIENCE) -> None:
        """`builder` has taken in the store as it is; from now on changes come through here."""
        self._store = store
        self._builder = builder
        self._patience = patience
        self._held: dict[Place, _Held] = {}
        """In the order in which they end."""
        self._count = 0
        self._unready: dict[Place, int] = {}
        """How many slices' endpoints say that an address is not ready."""
        for found in store.slices.values():
            if (service := found.service) is not None:
                self._note_unready(SliceChange(service, found.metadata.name, None, found))

    @property
    def held(self) -> int:
        """How many records stay although no slice says them."""
        return self._count

    @property
    def expiry(self) -> float | None:
        """When `expire` is to be called, on the clock of `update`; None while nothing is held."""
        return next(iter(self._held.values())).until if self._held else None

    def update(self, touched: Touched, now: float) -> RecordDelta:
        """Take in what the store says has changed, at `now` seconds, and return what that does to the records."""
        net = self._builder.count(touched)
        changed = [each for each in net if isinstance(each, EndpointRecord)]
        for change in touched.slices:
            for place in self._note_unready(change):
                self._release(place, net)
        for old, new in touched.services:
            if old is not None and new is None:
                self._release_all(net, old.key.namespace, old.key.name)
        for namespace, successor in touched.namespaces:
            if namespace is not None and successor is None:
                self._release_all(net, namespace.metadata.name)
        present = {_place(each) for each in changed if net[each] > 0}
        for place in present:
            self._release(place, net)
        for record in changed:
            place = _place(record)
            if place not in present and net[record] < 0 and self._builder.says(record) + net[record] == 0:
                self._hold(place, record, net, now)
        return self._builder.settle(net)

    def expire(self, now: float) -> RecordDelta:
        """Let go of what has been held for long enough and return what that does to the records."""
        net: Net = {}
        while self._held:
            place, held = next(iter(self._held.items()))
            if held.until > now:
                break
            self._release(place, net)
        return self._builder.settle(net)

    def _hold(self, place: Place, record: EndpointRecord, net: Net, now: float) -> None:
        service = place[0]
        if service not in self._store.services or place in self._unready or self._count >= HELD_MAX:
            return
        if self._store.namespaces and NamespacedName("", service.namespace) not in self._store.namespaces:
            return
        earlier = self._held.pop(place, None)
        records = [*(earlier.records if earlier is not None else ()), record]
        self._held[place] = _Held(now + self._patience, records)
        self._count += 1
        net[record] += 1

    def _release(self, place: Place, net: Net) -> None:
        held = self._held.pop(place, None)
        if held is not None:
            self._count -= len(held.records)
            for record in held.records:
                net[record] = net.get(record, 0) - 1

    def _release_all(self, net: Net, namespace: str, name: str | None = None) -> None:
        """Everything of a Service, or of a namespace."""
        for place in list(self._held):
            if place[0].namespace == namespace and name in {None, place[0].name}:
                self._release(place, net)

    def _note_unready(self, change: SliceChange) -> list[Place]:
        """Count the endpoints that are not ready, and return where there is one now."""
        old, new = entries(change.old), entries(change.new)
        if change.old is not None and change.new is not None and change.old.address_type is change.new.address_type:
            old, new = differing(old, new)
        for place in _unready(change.service, change.old, old):
            if self._unready[place] > 1:
                self._unready[place] -= 1
            else:
                del self._unready[place]
        places = list(_unready(change.service, change.new, new))
        for place in places:
            self._unready[place] = self._unready.get(place, 0) + 1
        return places


def _unready(service: NamespacedName, found: EndpointSlice | None, endpoints: Sequence[Endpoint]) -> Iterator[Place]:
    """Where these endpoints of a slice are not ready."""
    family = FAMILIES.get(found.address_type) if found is not None else None
    if family is None:
        return
    for endpoint in endpoints:
        if not endpoint.conditions.is_ready and endpoint.addresses:
            ip = canonical_ip(endpoint.addresses[0], family)
            if ip is not None:
                yield service, ip


def _place(record: EndpointRecord) -> Place:
    return record.service, record.ip
