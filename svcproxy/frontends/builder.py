# SPDX-License-Identifier: Apache-2.0
"""Keeps the node's `FrontendTable` up to date with the store, one change at a time. Pure.

A change of a slice costs the endpoints that it changes; a change of a Service costs its ports, and the endpoints of
those that are new; nothing costs the cluster but a node that moves to another zone or name. Only when the topology
mode of a Service port flips, or its last ready endpoint goes, are the other endpoints of that port looked at.

The builder remembers which object it has taken in of each Service and slice, and reads what is in force from the store:
`Touched` says where to look. So it does not matter how changes are grouped, repeated or ordered, with one exception: an
API server that shows no endpoint of itself is wrong, and the last known ones stay until it shows others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from svcproxy.frontends.backends import BackendSets, Offered, PortBackends
from svcproxy.frontends.claims import Claims, Conflict
from svcproxy.frontends.demand import NO_DEMAND, Demand, PortDemand, demand_of
from svcproxy.frontends.health import HealthChecks
from svcproxy.frontends.keys import (
    BackendSetKey,
    Frontend,
    FrontendKey,
    Refusal,
    Scope,
    TrafficPolicy,
)
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.offers import (
    changed_part,
    family_of_slice,
    offers,
    port_numbers,
    problems_of,
    sound,
    trigger_key,
)
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.problems import Problems
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import API_SERVER, Family, NamespacedName
from svcproxy.model.service import Service
from svcproxy.model.slice import Endpoint, EndpointSlice
from svcproxy.model.store import Store, Touched

API_SERVER_KEPT = "no endpoint of the API server is shown: the last known ones stay"


class PolicyKind(StrEnum):
    """Which of the two traffic policies."""

    INTERNAL = "internal"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Update:
    """What one call changed. The table already says so."""

    delta: FrontendDelta
    conflicts: tuple[Conflict, ...] = ()
    """Conflicts that began, changed or (without losers) ended."""
    visited: int = 0
    """Services, slices and endpoints looked at."""


class _Served:
    """A proxied Service as it was last taken in."""

    __slots__ = ("ports", "service", "slices")

    def __init__(self, service: Service, slices: Mapping[str, EndpointSlice]) -> None:
        self.service = service
        self.slices = dict(slices)
        self.ports: dict[BackendSetKey, PortBackends] = {}
        """By the key of their cluster set."""

    def trigger(self, slice_name: str) -> str:
        """The trigger key of a slice; empty for one that has just gone."""
        piece = self.slices.get(slice_name)
        return trigger_key(piece) if piece is not None else ""


class FrontendBuilder:
    """Derives the table of one node from one store, of which it is a reader. One caller at a time."""

    def __init__(self, store: Store, node: NodeView, options: FrontendOptions) -> None:
        self._store = store
        self._node = node
        self._options = options
        self.table = FrontendTable(node_port_addresses=options.selected(node))
        """The desired state; everyone else treats it as read-only."""
        self.no_local_endpoints: dict[tuple[Family, PolicyKind], int] = {
            (family, kind): 0 for family in Family for kind in PolicyKind
        }
        """Service ports whose Local policy leaves no endpoint here while usable ones exist elsewhere."""
        self._announced: frozenset[str] = frozenset()
        self._served: dict[NamespacedName, _Served] = {}
        self._filtered: set[NamespacedName] = set()
        """Services with source ranges in force, which depend on the node's addresses."""
        self._sets = BackendSets(self.table.backends)
        self._claims = Claims(self.table.frontends, lambda port: self._served[port.owner].service)
        self._checks = HealthChecks(self.table.health_checks)
        self._problems = Problems()
        self._visited = 0

    @property
    def conflicts(self) -> Mapping[FrontendKey, Conflict]:
        """Frontends that several Service ports ask for."""
        return self._claims.conflicts

    @property
    def problems(self) -> Mapping[NamespacedName, tuple[str, ...]]:
        """By Service: what of it and its slices had to be left out, for people."""
        return self._problems.messages

    def update(self, touched: Touched) -> Update:
        """Take in what the store has already applied."""
        for change in touched.slices:
            self._slice_changed(change.service, change.name)
        for old, new in touched.services:
            service = new if new is not None else old
            if service is not None:
                self._service_changed(service.key)
        return self._collect()

    def node_changed(self, node: NodeView) -> Update:
        """Take in a new view of the node. Only another name or zone costs the whole cluster."""
        old, self._node = self._node, node
        if (old.name, old.zone) != (node.name, node.zone):
            for served in self._served.values():
                self._reload(served)
        if old.primary_addresses != node.primary_addresses:
            for key in self._filtered:
                served = self._served[key]
                self._visited += 1
                for demand in self._demand(served.service).ports:
                    self._put(served, demand)
        self.table.node_port_addresses = self._options.selected(node)
        return self._collect()

    # Services

    def _service_changed(self, key: NamespacedName) -> None:
        self._visited += 1
        service, served = self._store.services.get(key), self._served.get(key)
        demand = self._demand(service) if service is not None else NO_DEMAND
        if service is None or not demand.ports:
            if served is not None:
                self._forget(served)
            self._problems.note_service(key, demand.problems)
            return
        if served is None:
            served = self._served[key] = _Served(service, self._store.slices_of(key))
            self._visited += len(served.slices)
            for piece in served.slices.values():
                self._problems.note_slice(key, piece.metadata.name, problems_of(piece))
        else:
            self._withdraw_missing(served, demand)
            served.service = service
        for port in demand.ports:
            self._serve_port(served, port)
        if any(frontend.source_ranges is not None for port in demand.ports for frontend in port.frontends):
            self._filtered.add(key)
        else:
            self._filtered.discard(key)
        self._check_health(served, demand)
        self._problems.note_service(key, demand.problems)

    def _demand(self, service: Service) -> Demand:
        return demand_of(service, self._options, self._node)

    def _withdraw_missing(self, served: _Served, demand: Demand) -> None:
        """Give up the frontends and ports that the Service asks for no more."""
        wanted = {(frontend.key, port.service_port) for port in demand.ports for frontend in port.frontends}
        for port in self._demand(served.service).ports:
            for frontend in port.frontends:
                if (frontend.key, port.service_port) not in wanted:
                    self._claims.withdraw(frontend.key, port.service_port)
        kept = {_port_key(port) for port in demand.ports}
        for key in [key for key in served.ports if key not in kept]:
            self._drop_port(served.ports.pop(key))

    def _serve_port(self, served: _Served, demand: PortDemand) -> None:
        port = served.ports.get(_port_key(demand))
        if port is None:
            port = served.ports[_port_key(demand)] = PortBackends(demand)
            port.load(self._all_offers(served, port), served.trigger, self._sets)
            self._count_starved(port, (False, False))
        else:
            starved = port.starved
            port.demand(demand, self._sets)
            self._count_starved(port, starved)
        self._put(served, demand)

    def _forget(self, served: _Served) -> None:
        key = served.service.key
        for demand in self._demand(served.service).ports:
            for frontend in demand.frontends:
                self._claims.withdraw(frontend.key, demand.service_port)
        for port in served.ports.values():
            self._drop_port(port)
        del self._served[key]
        self._checks.unwatch(key)
        self._filtered.discard(key)
        self._problems.forget_slices(key)

    def _drop_port(self, port: PortBackends) -> None:
        starved = port.starved
        self._sets.visited += len(port.entries)
        port.clear(self._sets)
        for kind, was in zip(PolicyKind, starved, strict=True):
            self.no_local_endpoints[port.cluster_key.family, kind] -= was

    def _put(self, served: _Served, demand: PortDemand) -> None:
        """Ask for the frontends of a port, as its endpoints make them."""
        has_any = served.ports[_port_key(demand)].choice.has_any
        for frontend in demand.frontends:
            self._claims.put(_refusing(frontend) if has_any else frontend, served.service)

    # Slices

    def _slice_changed(self, service: NamespacedName, name: str) -> None:
        self._visited += 1
        served = self._served.get(service)
        if served is None:
            return
        if service != API_SERVER:
            self._take_slice(served, name)
        elif _any_usable(self._store.slices_of(service)) or not _any_usable(served.slices):
            for each in sorted(served.slices.keys() | self._store.slices_of(service).keys()):
                self._take_slice(served, each)
        else:
            self._problems.note_slice(service, name, (API_SERVER_KEPT,))

    def _take_slice(self, served: _Served, name: str) -> None:
        service = served.service.key
        old, new = served.slices.get(name), self._store.slices_of(service).get(name)
        if old is new:
            return
        if new is None:
            served.slices.pop(name, None)
        else:
            served.slices[name] = new
        for port in served.ports.values():
            self._amend(served, port, name, old, new)
        self._check_slice(service, name, old, new)

    def _check_slice(
        self, service: NamespacedName, name: str, old: EndpointSlice | None, new: EndpointSlice | None
    ) -> None:
        """Note what is wrong with the slice. Only a slice that was or became bad is read whole."""
        if new is None:
            self._problems.note_slice(service, name, ())
        elif old is None or self._problems.has_slice(service, name) or not sound(old, new):
            self._problems.note_slice(service, name, problems_of(new))

    def _amend(
        self, served: _Served, port: PortBackends, name: str, old: EndpointSlice | None, new: EndpointSlice | None
    ) -> None:
        key = port.cluster_key
        old_numbers, new_numbers = _numbers(old, key), _numbers(new, key)
        old_endpoints: Sequence[Endpoint] = (old.endpoints or ()) if old is not None and old_numbers else ()
        new_endpoints: Sequence[Endpoint] = (new.endpoints or ()) if new is not None and new_numbers else ()
        if old_numbers == new_numbers:
            old_endpoints, new_endpoints = changed_part(old_endpoints, new_endpoints)
        withdrawn = offers(old_endpoints, old_numbers, name, key.family, self._node)
        offered = offers(new_endpoints, new_numbers, name, key.family, self._node)
        if not (withdrawn or offered or port.shared):
            return
        starved, has_any = port.starved, port.choice.has_any
        turns = port.amend(withdrawn, offered, served.trigger, self._sets)
        self._count_starved(port, starved)
        self._checks.turned(served.service.key, turns)
        if port.uses_local and has_any is not port.choice.has_any:
            for demand in self._demand(served.service).ports:
                if _port_key(demand) == key:
                    self._put(served, demand)

    def _all_offers(self, served: _Served, port: PortBackends) -> Iterable[Offered]:
        key = port.cluster_key
        for name, piece in served.slices.items():
            numbers = _numbers(piece, key)
            if numbers and piece.endpoints:
                yield from offers(piece.endpoints, numbers, name, key.family, self._node)

    def _reload(self, served: _Served) -> None:
        """Read every endpoint of a Service again."""
        self._visited += 1 + len(served.slices)
        demand = self._demand(served.service)
        for wanted in demand.ports:
            port = served.ports[_port_key(wanted)]
            starved = port.starved
            port.load(self._all_offers(served, port), served.trigger, self._sets)
            self._count_starved(port, starved)
            self._put(served, wanted)
        self._check_health(served, demand)

    def _check_health(self, served: _Served, demand: Demand) -> None:
        key = served.service.key
        if demand.health_port:
            ips = chain.from_iterable(port.ready_here() for port in served.ports.values())
            self._checks.watch(key, demand.health_port, ips)
        else:
            self._checks.unwatch(key)

    def _count_starved(self, port: PortBackends, before: tuple[bool, bool]) -> None:
        for kind, was, now in zip(PolicyKind, before, port.starved, strict=True):
            if was is not now:
                self.no_local_endpoints[port.cluster_key.family, kind] += now - was

    def _collect(self) -> Update:
        frontends, removed, conflicts = self._claims.collect()
        checks, checks_removed = self._checks.collect()
        addresses, announced = self.table.node_port_addresses, self._announced
        self._announced = addresses
        delta = FrontendDelta(
            frontends=frontends,
            removed=removed,
            backends=self._sets.collect(),
            node_port_addresses=addresses if addresses != announced else None,
            health_checks=checks,
            health_checks_removed=checks_removed,
        )
        visited, self._visited = self._visited + self._sets.visited, 0
        self._sets.visited = 0
        return Update(delta, conflicts, visited)


def _any_usable(slices: Mapping[str, EndpointSlice]) -> bool:
    conditions = (each.conditions for piece in slices.values() for each in piece.endpoints or ())
    return any(each.is_ready or each.is_serving for each in conditions)


def _port_key(demand: PortDemand) -> BackendSetKey:
    return BackendSetKey(demand.service_port, demand.family, Scope.CLUSTER)


def _numbers(piece: EndpointSlice | None, key: BackendSetKey) -> list[int]:
    if piece is None or family_of_slice(piece) is not key.family:
        return []
    return port_numbers(piece, key.service_port)


def _refusing(frontend: Frontend) -> Frontend:
    """The frontend while usable endpoints exist: a Local policy without one here meets silence."""
    if frontend.policy is TrafficPolicy.CLUSTER:
        return frontend
    return Frontend(
        frontend.key,
        frontend.service_port,
        frontend.kind,
        frontend.policy,
        Refusal.DROP,
        frontend.affinity_timeout,
        frontend.source_ranges,
    )


__all__ = ["Conflict", "FrontendBuilder", "PolicyKind", "Update"]
