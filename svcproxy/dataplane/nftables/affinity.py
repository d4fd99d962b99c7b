# SPDX-License-Identifier: Apache-2.0
"""Stable ids that clients remember: of the Service ports with affinity, and of their backends. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping

from svcproxy.dataplane.nftables.layout import AFFINITY_TIMEOUT_MAX, BACKEND_IDS, PORT_IDS, PORT_SHIFT, TAG_BIT
from svcproxy.frontends.keys import Backend, BackendSetKey, ServicePortName
from svcproxy.model.meta import Family

TIMEOUTS_MAX = 16
"""Distinct affinity time-outs that have chains of their own; a further one is served with the nearest of them."""


class BackendIds:
    """Ids of the backends of one Service port with affinity, in both its sets. One owner.

    An id names one backend as long as it is held. Ids go round before one is used again, so that what clients
    remember of a backend that went does not soon lead to another.
    """

    __slots__ = ("_ids", "_next", "_taken", "port_id")

    def __init__(self, port_id: int, ids: Mapping[Backend, int] | None = None) -> None:
        """`ids`: those held from before, without tag and Service port; each once."""
        self.port_id = port_id
        self._ids = dict(ids or {})
        self._taken = set(self._ids.values())
        self._next = (max(self._taken, default=-1) + 1) % BACKEND_IDS

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._ids)

    def of(self, backend: Backend) -> int:
        """The backend's id, a mark; a new one if it has none. At most `BACKEND_IDS` may be held at once."""
        held = self._ids.get(backend)
        if held is None:
            assert len(self._taken) < BACKEND_IDS
            while self._next in self._taken:
                self._next = (self._next + 1) % BACKEND_IDS
            held = self._ids[backend] = self._next
            self._taken.add(held)
            self._next = (self._next + 1) % BACKEND_IDS
        return TAG_BIT | self.port_id << PORT_SHIFT | held

    def marks(self) -> Iterator[int]:
        """All ids, as marks."""
        return (TAG_BIT | self.port_id << PORT_SHIFT | held for held in self._taken)

    def release(self, backend: Backend) -> int | None:
        """Give an id back; returns it as a mark, None if the backend had none."""
        held = self._ids.pop(backend, None)
        if held is None:
            return None
        self._taken.remove(held)
        return TAG_BIT | self.port_id << PORT_SHIFT | held


class Affinity:
    """What the Service ports with affinity of all families hold: numbers, and time-outs that have chains. One owner."""

    def __init__(self, ids: Mapping[tuple[ServicePortName, Family], BackendIds]) -> None:
        """`ids`: what Service ports had before, taken up by those that still want it. Their port ids are distinct."""
        self._before = dict(ids)
        self._ports: dict[tuple[ServicePortName, Family], BackendIds] = {}
        self._frontends: Counter[tuple[ServicePortName, Family]] = Counter()
        self._taken: dict[Family, set[int]] = {family: set() for family in Family}
        for (_, family), each in self._before.items():
            self._taken[family].add(each.port_id)
        self._next: dict[Family, int] = dict.fromkeys(Family, 0)
        self._timeouts: set[int] = set()

    def timeout(self, wanted: int) -> int:
        """The time-out that serves: the wanted one, or the nearest when there are `TIMEOUTS_MAX` others."""
        wanted = min(wanted, AFFINITY_TIMEOUT_MAX)
        if wanted in self._timeouts or len(self._timeouts) < TIMEOUTS_MAX:
            self._timeouts.add(wanted)
            return wanted
        return min(self._timeouts, key=lambda timeout: (abs(timeout - wanted), timeout))

    def hold(self, name: ServicePortName, family: Family) -> bool:
        """Count a frontend in; False if the numbers for Service ports are used up."""
        port, taken = (name, family), self._taken[family]
        if port not in self._ports:
            if port in self._before:
                self._ports[port] = self._before.pop(port)
            elif len(taken) < PORT_IDS:
                self._ports[port] = BackendIds(self._number(family))
            else:
                return False
        self._frontends[port] += 1
        return True

    def _number(self, family: Family) -> int:
        """A free number for a Service port; they go round before one is used again."""
        number, taken = self._next[family], self._taken[family]
        while number in taken:
            number = (number + 1) % PORT_IDS
        taken.add(number)
        self._next[family] = (number + 1) % PORT_IDS
        return number

    def forget_unused(self) -> None:
        """Give up what was held before and nobody took up."""
        for (_, family), ids in self._before.items():
            self._taken[family].remove(ids.port_id)
        self._before.clear()

    def let_go(self, name: ServicePortName, family: Family) -> None:
        """Count a frontend out; with the last one all ids go."""
        port = name, family
        self._frontends[port] -= 1
        if not self._frontends[port]:
            del self._frontends[port]
            self._taken[family].remove(self._ports.pop(port).port_id)

    def ids(self, key: BackendSetKey) -> BackendIds:
        """The ids of a Service port that is held."""
        return self._ports[key.service_port, key.family]

    def marks(self, family: Family) -> Iterator[int]:
        """The ids of all backends of a family, as marks. O(backends with affinity)."""
        return (mark for (_, each), ids in self._ports.items() if each is family for mark in ids.marks())

    def find(self, key: BackendSetKey) -> BackendIds | None:
        """The same, None if it is not held."""
        return self._ports.get((key.service_port, key.family))
