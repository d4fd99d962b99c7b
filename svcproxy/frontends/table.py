# SPDX-License-Identifier: Apache-2.0
"""The desired state of the node's data plane as one table, and the delta between two tables.

Laws: `apply(a, diff(a, b)) == b`, `diff(a, a)` is empty, applying a delta twice is applying it once.
An empty backend set and an absent one are the same thing and are stored as absent.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TypeVar

from svcproxy.frontends.keys import Backend, BackendSetKey, Frontend, FrontendKey, HealthCheck, Scope
from svcproxy.model.meta import NamespacedName

_NO_BACKENDS: Set[Backend] = frozenset()

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class BackendSetDelta:
    """Backends that came to and went from one set. No backend is in both."""

    key: BackendSetKey
    added: tuple[Backend, ...] = ()
    removed: tuple[Backend, ...] = ()


@dataclass(frozen=True, slots=True)
class FrontendDelta:
    """A change of the table. Order of application: backends and frontends together, as one step."""

    frontends: tuple[Frontend, ...] = ()
    """New or changed, whole."""
    removed: tuple[FrontendKey, ...] = ()
    backends: tuple[BackendSetDelta, ...] = ()
    node_port_addresses: frozenset[str] | None = None
    """The new value, None when it did not change."""
    health_checks: tuple[HealthCheck, ...] = ()
    health_checks_removed: tuple[NamespacedName, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.frontends
            or self.removed
            or self.backends
            or self.node_port_addresses is not None
            or self.health_checks
            or self.health_checks_removed
        )


@dataclass(slots=True)
class FrontendTable:
    """What the data plane shall do. Mutable, with one owner; everyone else treats it as read-only."""

    frontends: dict[FrontendKey, Frontend] = field(default_factory=dict)
    backends: dict[BackendSetKey, set[Backend]] = field(default_factory=dict)
    """Non-empty sets only."""
    node_port_addresses: frozenset[str] = frozenset()
    """The addresses of this node, canonical, on which NodePort frontends are served."""
    health_checks: dict[NamespacedName, HealthCheck] = field(default_factory=dict)

    def backends_of(self, frontend: Frontend, scope: Scope) -> Set[Backend]:
        """The frontend's backends of a scope, empty if it has none."""
        return self.backends.get(frontend.backend_set(scope), _NO_BACKENDS)

    def apply(self, delta: FrontendDelta) -> None:
        """Take a delta in."""
        for frontend in delta.frontends:
            self.frontends[frontend.key] = frontend
        for key in delta.removed:
            self.frontends.pop(key, None)
        for change in delta.backends:
            held = self.backends.get(change.key, set())
            held.difference_update(change.removed)
            held.update(change.added)
            if held:
                self.backends[change.key] = held
            else:
                self.backends.pop(change.key, None)
        if delta.node_port_addresses is not None:
            self.node_port_addresses = delta.node_port_addresses
        for check in delta.health_checks:
            self.health_checks[check.service] = check
        for service in delta.health_checks_removed:
            self.health_checks.pop(service, None)

    def copy(self) -> "FrontendTable":
        """An independent table of equal content. O(table): for tests and resyncs, never for one change."""
        return FrontendTable(
            dict(self.frontends),
            {key: set(backends) for key, backends in self.backends.items()},
            self.node_port_addresses,
            dict(self.health_checks),
        )


def diff(old: FrontendTable, new: FrontendTable) -> FrontendDelta:
    """The delta that turns `old` into `new`, sorted, so that equal tables give equal deltas."""
    changes = []
    for key in sorted(old.backends.keys() | new.backends.keys()):
        before, after = old.backends.get(key, _NO_BACKENDS), new.backends.get(key, _NO_BACKENDS)
        if before != after:
            changes.append(BackendSetDelta(key, tuple(sorted(after - before)), tuple(sorted(before - after))))
    applied, removed = _diff_mapping(old.frontends, new.frontends)
    checks, checks_removed = _diff_mapping(old.health_checks, new.health_checks)
    return FrontendDelta(
        frontends=applied,
        removed=tuple(sorted(removed, key=str)),
        backends=tuple(changes),
        node_port_addresses=None if old.node_port_addresses == new.node_port_addresses else new.node_port_addresses,
        health_checks=checks,
        health_checks_removed=tuple(sorted(checks_removed)),
    )


def _diff_mapping(old: Mapping[K, V], new: Mapping[K, V]) -> tuple[tuple[V, ...], list[K]]:
    """Values that are new or changed, and keys that went."""
    return tuple(value for key, value in new.items() if old.get(key) != value), [key for key in old if key not in new]
