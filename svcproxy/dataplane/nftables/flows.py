# SPDX-License-Identifier: Apache-2.0
"""Which flows over UDP and SCTP are stale, and when to look for them. Performs no I/O.

The kernel sends the packets of a flow where it sent the first one for as long as packets keep coming. A client that
only sends never learns that nobody is there any more: such a flow has to be removed so that its next packet meets the
rules. A flow is stale when it was addressed to a frontend and its packets go elsewhere than to a backend of that
Service port that may keep its flows (`frontends.serving`): to one that is gone, or, for a flow older than the rules, to
the frontend itself. Where a frontend was removed every flow is stale that was sent to a backend of it.

Flows over TCP are never stale: their ends find out by themselves, and what remains of them is needed to shut down.
"""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace

from svcproxy.dataplane.nftables.ctnetlink import Filter, Translation
from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.frontends.decision import lookup
from svcproxy.frontends.keys import Address, Backend, BackendSetKey, FrontendKey, NodePort, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, Protocol

SETTLE_SECONDS = 1.0
"""A change is looked after for this long: a packet under way may have met the old rules and be entered late."""
EXACT_FILTERS_MAX = 16
"""Frontends for each of which the kernel is asked; if there are more, it lists all flows of a family and protocol."""
REPEATS_MAX = 5
"""Examinations in a row that find stale flows after they were removed, until somebody else is held to make them."""

Serving = Callable[[ServicePortName, Family], Set[Backend]]
"""The backends of a Service port that may keep their flows."""


@dataclass(frozen=True, slots=True)
class Examination:
    """Which flows are looked at."""

    addresses: frozenset[Address]
    node_ports: frozenset[NodePort]
    node_port_addresses: frozenset[str]

    @property
    def filters(self) -> tuple[Filter, ...]:
        """What to ask the kernel for. It may list more than is looked at."""
        keys: tuple[FrontendKey, ...] = (*self.addresses, *self.node_ports)
        if len(keys) > EXACT_FILTERS_MAX:
            return tuple(Filter(*each) for each in sorted({(key.family, key.protocol) for key in keys}))
        return (
            *(Filter(key.family, key.protocol, key.ip, key.port) for key in sorted(self.addresses)),
            *(Filter(key.family, key.protocol, None, key.port) for key in sorted(self.node_ports)),
        )

    def concerns(self, to: Address) -> bool:
        """Whether flows addressed to this are looked at."""
        return to in self.addresses or (
            to.ip in self.node_port_addresses and NodePort(to.family, to.protocol, to.port) in self.node_ports
        )


class Suspects:
    """The frontends whose flows may be stale. `now`: seconds of any steady clock.

    A frontend is a suspect until an examination that began `SETTLE_SECONDS` after the change found nothing stale.
    """

    def __init__(self) -> None:
        self._tracked = TrackedTable()
        self._settled: dict[FrontendKey, float] = {}
        """When the change of each suspect is old enough; ascending."""
        self._urgent = False
        self._repeats = 0

    def __len__(self) -> int:
        return len(self._settled)

    def changed(self, delta: FrontendDelta, now: float) -> None:
        """The data plane has taken a delta in. Backends that come to others make nothing stale."""
        part = _connectionless(delta)
        held = self._tracked.table.backends
        reasons = tuple(change for change in part.backends if change.removed or change.key not in held)
        self._tracked.apply(part)
        self._suspect(self._tracked.affected(replace(part, backends=reasons)), now)

    def stopped(self, ports: Iterable[tuple[ServicePortName, Family]], now: float) -> None:
        """Endpoints of these Service ports stopped serving, whether or not a backend set had them."""
        changes = (BackendSetDelta(BackendSetKey(name, family, Scope.CLUSTER)) for name, family in ports)
        self._suspect(self._tracked.affected(FrontendDelta(backends=tuple(changes))), now)

    def resynced(self, table: FrontendTable, repairs: FrontendDelta, now: float) -> None:
        """The data plane is as `table` says, after `repairs`: every frontend is suspect, and those that went."""
        self.changed(repairs, now)
        self.changed(diff(self._tracked.table, _connectionless_table(table)), now)
        self._suspect(self._tracked.table.frontends, now)

    def next_at(self, now: float) -> float | None:
        """When to examine the suspects; None if there are none."""
        if not self._settled:
            return None
        return now if self._urgent else next(iter(self._settled.values()))

    def examine(self) -> Examination:
        """What there is to look at now."""
        self._urgent = False
        return Examination(
            frozenset(key for key in self._settled if isinstance(key, Address)),
            frozenset(key for key in self._settled if isinstance(key, NodePort)),
            self._tracked.table.node_port_addresses,
        )

    def stale(self, translations: Iterable[Translation], serving: Serving) -> frozenset[Translation]:
        """Those of an examination's translations that lead to nobody who serves."""
        asked: dict[tuple[ServicePortName, Family], Set[Backend]] = {}
        found = set()
        for destination, answering in translations:
            frontend = lookup(self._tracked.table, destination.ip, destination.protocol, destination.port)
            if frontend is None:
                if answering != Backend(destination.ip, destination.port):
                    found.add((destination, answering))
                continue
            port = (frontend.service_port, frontend.family)
            if port not in asked:
                asked[port] = serving(*port)
            if answering not in asked[port]:
                found.add((destination, answering))
        return frozenset(found)

    def clean(self, since: float) -> None:
        """An examination that began at `since` found nothing stale."""
        self._repeats = 0
        self._drop(since)

    def removed(self, since: float, *, all_of_them: bool) -> bool:
        """An examination that began at `since` found stale flows and all of them, or as many as may be, were removed.

        Another one is to prove it. Returns False when the suspects are given up instead.
        """
        self._repeats += all_of_them
        self._urgent = True
        if self._repeats <= REPEATS_MAX:
            return True
        self.clean(since + SETTLE_SECONDS)
        return False

    def _suspect(self, keys: Iterable[FrontendKey], now: float) -> None:
        for key in keys:
            self._settled.pop(key, None)
            self._settled[key] = now + SETTLE_SECONDS
            self._urgent = True
            self._repeats = 0

    def _drop(self, until: float) -> None:
        self._settled = {key: settled for key, settled in self._settled.items() if settled > until}


def _connectionless(delta: FrontendDelta) -> FrontendDelta:
    """What of a delta is not about TCP."""
    return FrontendDelta(
        frontends=tuple(each for each in delta.frontends if each.key.protocol is not Protocol.TCP),
        removed=tuple(key for key in delta.removed if key.protocol is not Protocol.TCP),
        backends=tuple(each for each in delta.backends if each.key.service_port.protocol is not Protocol.TCP),
        node_port_addresses=delta.node_port_addresses,
    )


def _connectionless_table(table: FrontendTable) -> FrontendTable:
    """What of a table is not about TCP. The sets are the table's own."""
    return FrontendTable(
        {key: each for key, each in table.frontends.items() if key.protocol is not Protocol.TCP},
        {key: each for key, each in table.backends.items() if key.service_port.protocol is not Protocol.TCP},
        table.node_port_addresses,
    )
