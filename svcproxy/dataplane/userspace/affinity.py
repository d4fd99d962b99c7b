# SPDX-License-Identifier: Apache-2.0
"""`ClientIP` affinity: which client has which backend of a Service port, and until when. Pure.

A client keeps its backend for a time past its last new flow (not its last packet), as kube-proxy counts it. Affinity
belongs to the Service port: all its frontends and both its scopes share one assignment. An assignment counts only
while its backend is eligible; a client whose backend is not is assigned anew, the others keep theirs.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from svcproxy.frontends.keys import Backend, ServicePortName

CLIENTS_MAX = 65536
"""Clients remembered of one Service port; the one longest without a new flow makes room."""


@dataclass(slots=True)
class _Clients:
    timeout: float
    ticket: int
    """Marks this table's entry among the deadlines; entries of dropped tables are recognised by it."""
    last_flow: OrderedDict[str, tuple[Backend, float]] = field(default_factory=OrderedDict)
    """Client address to its backend and the time of its last flow, the longest idle first."""

    @property
    def deadline(self) -> float:
        """When the longest idle client is forgotten. Only of a non-empty table."""
        _, (_, when) = next(iter(self.last_flow.items()))
        return when + self.timeout


class AffinityTable:
    """Assignments of clients to backends. `now` is monotonic seconds and never goes back.

    A shell calls `expire` at `next_expiry`; that frees memory and changes no answer.
    """

    def __init__(self, clients_max: int = CLIENTS_MAX) -> None:
        self._clients_max = clients_max
        self._ports: dict[ServicePortName, _Clients] = {}
        self._tickets = count()
        self._deadlines: list[tuple[float, int, ServicePortName]] = []
        """A heap with one valid entry for each Service port of `_ports`; a shortened timeout shows at its next turn."""

    def __len__(self) -> int:
        return sum(len(clients.last_flow) for clients in self._ports.values())

    def pick(
        self,
        service_port: ServicePortName,
        client: str,
        timeout: float,
        eligible: Callable[[Backend], bool],
        drawn: Backend,
        now: float,
    ) -> Backend:
        """The backend for a new flow of `client`: its own while that is eligible and not timed out, else `drawn`.

        Either way the timeout, in seconds, starts again.
        """
        clients = self._ports.get(service_port)
        held = clients.last_flow.pop(client, None) if clients is not None else None
        backend = held[0] if held is not None and now < held[1] + timeout and eligible(held[0]) else drawn
        if clients is None:
            clients = self._ports[service_port] = _Clients(timeout, next(self._tickets))
            heapq.heappush(self._deadlines, (now + timeout, clients.ticket, service_port))
        clients.timeout = timeout
        while len(clients.last_flow) >= self._clients_max:
            clients.last_flow.popitem(last=False)
        clients.last_flow[client] = (backend, now)
        return backend

    def forget(self, service_port: ServicePortName) -> None:
        """Drop all assignments of a Service port. Forgetting the unknown is fine."""
        self._ports.pop(service_port, None)

    def expire(self, now: float) -> None:
        """Forget the clients that timed out."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, ticket, service_port = heapq.heappop(self._deadlines)
            clients = self._ports.get(service_port)
            if clients is None or clients.ticket != ticket:
                continue
            while clients.last_flow and clients.deadline <= now:
                clients.last_flow.popitem(last=False)
            if clients.last_flow:
                heapq.heappush(self._deadlines, (clients.deadline, ticket, service_port))
            else:
                del self._ports[service_port]

    def next_expiry(self) -> float | None:
        """When `expire` is to be called next, None while nothing is assigned. It may find nothing to do."""
        return self._deadlines[0][0] if self._deadlines else None
