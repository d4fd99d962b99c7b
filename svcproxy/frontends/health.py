# SPDX-License-Identifier: Apache-2.0
"""The health-check node ports of a table, counted by single backends (ServiceSpec.healthCheckNodePort). Pure."""

from collections.abc import Iterable

from svcproxy.frontends.backends import Turn, ready_here
from svcproxy.frontends.keys import HealthCheck
from svcproxy.model.meta import NamespacedName


class HealthChecks:
    """The health checks of a table. An address counts once, however many ports and backends it has."""

    def __init__(self, checks: dict[NamespacedName, HealthCheck]) -> None:
        self._checks = checks
        self._backends: dict[NamespacedName, dict[str, int]] = {}
        """Ready backends on this node by address, of each Service that has a check."""
        self._before: dict[NamespacedName, HealthCheck | None] = {}

    def watch(self, service: NamespacedName, port: int, ips: Iterable[str]) -> None:
        """Answer for a Service on `port`. `ips`: the address of each ready backend on this node."""
        counts: dict[str, int] = {}
        for ip in ips:
            counts[ip] = counts.get(ip, 0) + 1
        self._backends[service] = counts
        self._answer(HealthCheck(service, port, len(counts)))

    def unwatch(self, service: NamespacedName) -> None:
        """Answer for the Service no more, if it had a check."""
        if self._backends.pop(service, None) is not None:
            self._before.setdefault(service, self._checks.pop(service))

    def turned(self, service: NamespacedName, turns: Iterable[Turn]) -> None:
        """Backends of the Service changed their traits."""
        counts = self._backends.get(service)
        if counts is None:
            return
        for backend, old, new in turns:
            if step := ready_here(new) - ready_here(old):
                count = counts.get(backend.ip, 0) + step
                if count:
                    counts[backend.ip] = count
                else:
                    del counts[backend.ip]
        self._answer(HealthCheck(service, self._checks[service].port, len(counts)))

    def collect(self) -> tuple[tuple[HealthCheck, ...], tuple[NamespacedName, ...]]:
        """Checks new or changed, and Services whose check went, since the last call."""
        applied, removed = [], []
        for service, before in self._before.items():
            now = self._checks.get(service)
            if now is None:
                if before is not None:
                    removed.append(service)
            elif now != before:
                applied.append(now)
        self._before.clear()
        return tuple(applied), tuple(removed)

    def _answer(self, check: HealthCheck) -> None:
        held = self._checks.get(check.service)
        if check != held:
            self._before.setdefault(check.service, held)
            self._checks[check.service] = check
