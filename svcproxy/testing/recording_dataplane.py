# SPDX-License-Identifier: Apache-2.0
"""A data plane that moves no packets: it remembers what it was told, refuses what it is told to, and can be lost."""

from collections.abc import Mapping
from types import MappingProxyType

from svcproxy.dataplane.contract import APPLIED, Outcome, Refused
from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import Frontend, FrontendKey
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff


class RecordingDataplane:
    """See `svcproxy.dataplane.contract.Dataplane`. Passes its conformance suite."""

    name = "recording"

    def __init__(self) -> None:
        self.calls: list[FrontendDelta | FrontendTable] = []
        """What `apply` and `resync` were given, in order; those that raised included."""
        self.in_force: dict[FrontendKey, Frontend] = {}
        """What a client would meet: of a refused frontend, what was there before."""
        self.drained: list[float] = []
        """The time-outs that `drain` was given."""
        self.closed = False
        self._tracked = TrackedTable()
        self._refusals: dict[FrontendKey, str] = {}
        self._refused: dict[FrontendKey, str] = {}
        self._lost: str | None = None

    @property
    def table(self) -> FrontendTable:
        """What was asked for. Read-only."""
        return self._tracked.table

    def refuse(self, key: FrontendKey, reason: str) -> None:
        """From now on, refuse new values of this frontend."""
        self._refusals[key] = reason

    def admit(self, key: FrontendKey) -> None:
        """Undo `refuse`; the frontend comes in force when it is asked for again."""
        self._refusals.pop(key, None)

    def lose(self, cause: str) -> None:
        """Forget everything; `apply` raises `DataplaneLost` until `resync`."""
        self._lost = cause
        self._tracked = TrackedTable()
        self._refused.clear()
        self.in_force.clear()

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        """See the contract."""
        self.calls.append(delta)
        if self._lost is not None:
            raise DataplaneLost(self._lost)
        affected = self._tracked.apply(delta).frontends
        return {key: self._settle(key) for key in affected}

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        """See the contract."""
        self.calls.append(desired)
        self._lost = None
        change = diff(self._tracked.table, desired)
        self._tracked.apply(change)
        before = dict(self.in_force)
        for key in {**before, **desired.frontends}:
            self._settle(key)
        return FrontendDelta(
            frontends=tuple(frontend for key, frontend in self.in_force.items() if before.get(key) != frontend),
            removed=tuple(key for key in before if key not in self.in_force),
            backends=change.backends,
            node_port_addresses=change.node_port_addresses,
            health_checks=change.health_checks,
            health_checks_removed=change.health_checks_removed,
        )

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        """See the contract."""
        return MappingProxyType(self._refused)

    async def drain(self, timeout: float) -> None:
        """Remembered."""
        self.drained.append(timeout)

    async def close(self) -> None:
        """Remembered."""
        self.closed = True

    def _settle(self, key: FrontendKey) -> Outcome:
        wanted = self._tracked.table.frontends.get(key)
        if wanted is None:
            self.in_force.pop(key, None)
            self._refused.pop(key, None)
            return APPLIED
        if (reason := self._refusals.get(key)) is not None:
            self._refused[key] = reason
            return Refused(reason)
        self._refused.pop(key, None)
        self.in_force[key] = wanted
        return APPLIED
