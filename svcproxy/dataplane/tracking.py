# SPDX-License-Identifier: Apache-2.0
"""A `FrontendTable` that knows which frontends a delta affects. Pure; every data plane keeps one.

The cost of a delta is that of the frontends it names and of those of the Service ports whose backends it changes; a
change of the node-port addresses costs all NodePort frontends.
"""

from dataclasses import dataclass

from svcproxy.frontends.keys import FrontendKey, NodePort, ServicePortName
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family

_NONE: dict[FrontendKey, None] = {}


@dataclass(frozen=True, slots=True)
class Affected:
    """What a delta was about."""

    frontends: tuple[FrontendKey, ...]
    """The frontends that the contract wants an outcome for: named, or with changed backends or addresses. Each once."""
    orphaned: tuple[ServicePortName, ...]
    """Service ports that lost their last frontend."""


class TrackedTable:
    """The table of one data plane, and an index from Service port to frontends."""

    def __init__(self) -> None:
        self.table = FrontendTable()
        """Read-only for others."""
        self._frontends_of: dict[tuple[ServicePortName, Family], dict[FrontendKey, None]] = {}

    def apply(self, delta: FrontendDelta) -> Affected:
        """Take a delta in. Taking it in twice is taking it in once."""
        affected = self.affected(delta)
        left: set[ServicePortName] = set()
        for key in (*(frontend.key for frontend in delta.frontends), *delta.removed):
            if (old := self.table.frontends.get(key)) is not None:
                left.add(old.service_port)
                self._unlink(old.service_port, key)
        self.table.apply(delta)
        for frontend in delta.frontends:
            if frontend.key in self.table.frontends:
                self._frontends_of.setdefault((frontend.service_port, frontend.family), {})[frontend.key] = None
        orphaned = (name for name in left if not any((name, family) in self._frontends_of for family in Family))
        return Affected(affected, tuple(orphaned))

    def affected(self, delta: FrontendDelta) -> tuple[FrontendKey, ...]:
        """The frontends that `delta` would affect, each once."""
        keys: dict[FrontendKey, None] = dict.fromkeys(frontend.key for frontend in delta.frontends)
        keys.update(dict.fromkeys(delta.removed))
        for change in delta.backends:
            keys.update(self._frontends_of.get((change.key.service_port, change.key.family), _NONE))
        if delta.node_port_addresses is not None:
            keys.update((key, None) for key in self.table.frontends if isinstance(key, NodePort))
        return tuple(keys)

    def _unlink(self, service_port: ServicePortName, key: FrontendKey) -> None:
        siblings = self._frontends_of[service_port, key.family]
        siblings.pop(key, None)
        if not siblings:
            del self._frontends_of[service_port, key.family]
