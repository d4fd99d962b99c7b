# SPDX-License-Identifier: Apache-2.0
"""The table as the relays use it: which backend a new flow gets, and what one delta affects. Pure.

Everything here costs the same for one Service and for 50,000: a delta touches the frontends it names and those of the
Service ports whose backends it changes.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.dataplane.userspace.affinity import AffinityTable
from svcproxy.dataplane.userspace.pool import BackendPool
from svcproxy.frontends.decision import SourceKind, decide
from svcproxy.frontends.keys import Backend, BackendSetKey, Frontend, FrontendKey, Refusal, Scope
from svcproxy.frontends.table import FrontendDelta, FrontendTable


class Choice(NamedTuple):
    """A backend, and the set it was chosen from."""

    backend_set: BackendSetKey
    backend: Backend


class Balancer:
    """A `FrontendTable` with what choosing from it needs. `random` returns floats in [0, 1)."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.affinity = AffinityTable()
        self._tracked = TrackedTable()
        self._random = random
        self._pools: dict[BackendSetKey, BackendPool] = {}

    @property
    def table(self) -> FrontendTable:
        """What is served. Read-only."""
        return self._tracked.table

    def apply(self, delta: FrontendDelta) -> tuple[FrontendKey, ...]:
        """Take a delta in and return the frontends it affects, each once."""
        affected = self._tracked.apply(delta)
        for change in delta.backends:
            pool = self._pools.setdefault(change.key, BackendPool())
            for backend in change.removed:
                pool.discard(backend)
            for backend in change.added:
                pool.add(backend)
            if not pool:
                del self._pools[change.key]
        for service_port in affected.orphaned:
            self.affinity.forget(service_port)
        for frontend in delta.frontends:
            if frontend.affinity_timeout is None:
                self.affinity.forget(frontend.service_port)
        return affected.frontends

    def usable(self, frontend: Frontend) -> bool:
        """Whether anyone at all would get a backend."""
        return any(not isinstance(decide(self.table, frontend, kind), Refusal) for kind in SourceKind)

    def choose(
        self, frontend: Frontend, client: str, kind: SourceKind, now: float, tried: Collection[Backend] = ()
    ) -> Choice | Refusal:
        """The backend for a new flow from `client`, none of `tried`; `Refusal.REJECT` when that leaves none.

        `now`: monotonic seconds, for affinity.
        """
        backend_set = decide(self.table, frontend, kind)
        if isinstance(backend_set, Refusal):
            return backend_set
        pool = self._pools[backend_set]
        drawn = pool.draw(self._random, tried)
        if drawn is None:
            return Refusal.REJECT
        if frontend.affinity_timeout is None:
            return Choice(backend_set, drawn)
        backend = self.affinity.pick(
            frontend.service_port,
            client,
            frontend.affinity_timeout,
            lambda held: held in pool and held not in tried,
            drawn,
            now,
        )
        return Choice(backend_set, backend)

    def gone(self, delta: FrontendDelta) -> Iterator[Choice]:
        """Choices made earlier that `delta`, already taken in, made invalid: the Service port offers the backend in
        neither scope any more."""
        for change in delta.backends:
            sets = [BackendSetKey(change.key.service_port, change.key.family, scope) for scope in Scope]
            for backend in change.removed:
                if not any(backend in self._pools.get(key, ()) for key in sets):
                    yield from (Choice(key, backend) for key in sets)
