# SPDX-License-Identifier: Apache-2.0
"""The one mutable copy of what the cluster says. One writer; readers look and never change.

Slices are indexed by the Service they name, so that whoever derives something from a Service finds its slices without
a search, in whichever order the two arrived.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svcproxy.model.changes import Changes
from svcproxy.model.meta import NamespacedName
from svcproxy.model.namespace import Namespace
from svcproxy.model.node import Node
from svcproxy.model.pod import Pod
from svcproxy.model.service import Service
from svcproxy.model.service_cidr import ServiceCIDR
from svcproxy.model.slice import EndpointSlice

_NO_SLICES: Mapping[str, EndpointSlice] = {}


@dataclass(frozen=True, slots=True)
class SliceChange:
    """One slice as a Service saw it before and sees it now; a slice that moves between Services gives two."""

    service: NamespacedName
    name: str
    old: EndpointSlice | None
    new: EndpointSlice | None


@dataclass(slots=True)
class Touched:
    """What a set of changes really altered. Equal replacements are not in it."""

    services: list[tuple[Service | None, Service | None]] = field(default_factory=list)
    """(old, new) of each Service; old is None when it appeared, new is None when it went."""
    slices: list[SliceChange] = field(default_factory=list)
    namespaces: list[tuple[Namespace | None, Namespace | None]] = field(default_factory=list)
    nodes: list[tuple[Node | None, Node | None]] = field(default_factory=list)
    pods: list[tuple[Pod | None, Pod | None]] = field(default_factory=list)
    service_cidrs: list[tuple[ServiceCIDR | None, ServiceCIDR | None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        cluster_wide = self.namespaces or self.nodes or self.service_cidrs
        return bool(self.services or self.slices or self.pods or cluster_wide)


class Store:
    """Objects by key. `apply` is the only way to change it."""

    def __init__(self) -> None:
        self.services: dict[NamespacedName, Service] = {}
        self.slices: dict[NamespacedName, EndpointSlice] = {}
        self.namespaces: dict[NamespacedName, Namespace] = {}
        self.nodes: dict[NamespacedName, Node] = {}
        self.pods: dict[NamespacedName, Pod] = {}
        self.service_cidrs: dict[NamespacedName, ServiceCIDR] = {}
        self._slices_by_service: dict[NamespacedName, dict[str, EndpointSlice]] = {}

    def slices_of(self, service: NamespacedName) -> Mapping[str, EndpointSlice]:
        """The slices that name this Service, by slice name."""
        return self._slices_by_service.get(service, _NO_SLICES)

    def apply(self, changes: Changes[Any]) -> Touched:
        """Take the changes in and return those that altered something. Removing the absent is fine."""
        touched = Touched()
        if changes.kind is EndpointSlice:
            self._apply_slices(changes, touched)
        elif changes.kind is Service:
            _apply(self.services, changes, touched.services)
        elif changes.kind is Namespace:
            _apply(self.namespaces, changes, touched.namespaces)
        elif changes.kind is Node:
            _apply(self.nodes, changes, touched.nodes)
        elif changes.kind is ServiceCIDR:
            _apply(self.service_cidrs, changes, touched.service_cidrs)
        else:
            _apply(self.pods, changes, touched.pods)
        return touched

    def _apply_slices(self, changes: Changes[EndpointSlice], touched: Touched) -> None:
        pairs: list[tuple[EndpointSlice | None, EndpointSlice | None]] = []
        _apply(self.slices, changes, pairs)
        for old, new in pairs:
            old_service = old.service if old is not None else None
            new_service = new.service if new is not None else None
            if old is not None and old_service is not None and old_service != new_service:
                siblings = self._slices_by_service[old_service]
                del siblings[old.metadata.name]
                if not siblings:
                    del self._slices_by_service[old_service]
                touched.slices.append(SliceChange(old_service, old.metadata.name, old, None))
            if new is not None and new_service is not None:
                self._slices_by_service.setdefault(new_service, {})[new.metadata.name] = new
                before = old if old_service == new_service else None
                touched.slices.append(SliceChange(new_service, new.metadata.name, before, new))


def _apply(held: dict[NamespacedName, Any], changes: Changes[Any], pairs: list[tuple[Any, Any]]) -> None:
    for new in changes.applied:
        key = new.key
        old = held.get(key)
        if old != new:
            held[key] = new
            pairs.append((old, new))
    for key in changes.removed:
        if (old := held.pop(key, None)) is not None:
            pairs.append((old, None))
