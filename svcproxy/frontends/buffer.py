# SPDX-License-Identifier: Apache-2.0
"""Deltas that wait for a busy data plane, coalesced into one. Pure.

Taking in a delta costs that delta alone, however much waits already.
"""

from svcproxy.frontends.keys import Backend, BackendSetKey, Frontend, FrontendKey, HealthCheck
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta
from svcproxy.model.meta import NamespacedName


class DeltaBuffer:
    """One delta that does what all deltas put in did, in their order. One owner."""

    __slots__ = ("_backends", "_frontends", "_health_checks", "_node_port_addresses")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._frontends: dict[FrontendKey, Frontend | None] = {}
        """The newest of each; None is removed."""
        self._backends: dict[BackendSetKey, dict[Backend, bool]] = {}
        """Of each set, whether a backend came (or went) last."""
        self._node_port_addresses: frozenset[str] | None = None
        self._health_checks: dict[NamespacedName, HealthCheck | None] = {}

    def __bool__(self) -> bool:
        return bool(self._frontends or self._backends or self._health_checks or self._node_port_addresses is not None)

    def put(self, delta: FrontendDelta) -> None:
        """Take in a delta that comes after all others."""
        for frontend in delta.frontends:
            self._frontends[frontend.key] = frontend
        for key in delta.removed:
            self._frontends[key] = None
        for change in delta.backends:
            held = self._backends.setdefault(change.key, {})
            for backend in change.removed:
                held[backend] = False
            for backend in change.added:
                held[backend] = True
        if delta.node_port_addresses is not None:
            self._node_port_addresses = delta.node_port_addresses
        for check in delta.health_checks:
            self._health_checks[check.service] = check
        for service in delta.health_checks_removed:
            self._health_checks[service] = None

    def take(self) -> FrontendDelta:
        """Everything put in since the last call."""
        delta = FrontendDelta(
            frontends=tuple(each for each in self._frontends.values() if each is not None),
            removed=tuple(key for key, each in self._frontends.items() if each is None),
            backends=tuple(
                BackendSetDelta(
                    key,
                    added=tuple(backend for backend, came in changes.items() if came),
                    removed=tuple(backend for backend, came in changes.items() if not came),
                )
                for key, changes in self._backends.items()
            ),
            node_port_addresses=self._node_port_addresses,
            health_checks=tuple(each for each in self._health_checks.values() if each is not None),
            health_checks_removed=tuple(key for key, each in self._health_checks.items() if each is None),
        )
        self._clear()
        return delta
