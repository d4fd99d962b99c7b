# SPDX-License-Identifier: Apache-2.0
"""Who owns a frontend that several Service ports ask for. Pure.

A ClusterIP goes before any other claim: the API server hands each out once, while externalIPs are free text, and nobody
shall take another's traffic by writing its address there (CVE-2020-8554). Otherwise the older Service wins, then
namespace and name, then the order of the ports. The winner is the same whatever the order of events; losers are
reported and served everywhere else.
"""

from collections.abc import Callable

import msgspec

from svcproxy.frontends.keys import Frontend, FrontendKey, FrontendKind, ServicePortName
from svcproxy.model.service import Service

_UNDATED = "~"
"""Sorts after every date: a Service of unknown age is the youngest."""


class Claimant(msgspec.Struct, frozen=True, gc=False, order=True):
    """A Service port that asks for a frontend; the least of several owns it."""

    free_text: bool
    """False for a ClusterIP."""
    created: str
    namespace: str
    service: str
    index: int
    """Position in `spec.ports`."""


class Conflict(msgspec.Struct, frozen=True, gc=False):
    """Several Service ports ask for one frontend."""

    key: FrontendKey
    winner: ServicePortName | None
    """None when nobody asks for it any more."""
    losers: tuple[ServicePortName, ...]
    """Best claim first; empty when the conflict is over."""


class _Claim(msgspec.Struct, frozen=True, gc=False):
    claimant: Claimant
    frontend: Frontend


class Claims:
    """The frontends of a table. Only contested keys cost more than their place in it."""

    def __init__(
        self, frontends: dict[FrontendKey, Frontend], service_of: Callable[[ServicePortName], Service]
    ) -> None:
        self._frontends = frontends
        self._service_of = service_of
        """The Service, as it is now, of a port that holds a frontend."""
        self._contested: dict[FrontendKey, dict[ServicePortName, _Claim]] = {}
        """Keys with two claims or more; with one or none only until the next `collect`."""
        self._unsettled: dict[FrontendKey, None] = {}
        self._before: dict[FrontendKey, Frontend | None] = {}
        self.conflicts: dict[FrontendKey, Conflict] = {}

    def put(self, frontend: Frontend, service: Service) -> None:
        """A port of `service` asks for a frontend, or asks for it in another way."""
        key = frontend.key
        rivals = self._contested.get(key)
        if rivals is None:
            held = self._frontends.get(key)
            if held is None or held.service_port == frontend.service_port:
                if held != frontend:
                    self._set(key, frontend)
                return
            holder = _Claim(claimant(held, self._service_of(held.service_port)), held)
            rivals = self._contested[key] = {held.service_port: holder}
        claim = _Claim(claimant(frontend, service), frontend)
        if rivals.get(frontend.service_port) != claim:
            rivals[frontend.service_port] = claim
            self._unsettled[key] = None

    def withdraw(self, key: FrontendKey, service_port: ServicePortName) -> None:
        """A Service port asks for a frontend no more. Withdrawing what was never asked for is fine."""
        rivals = self._contested.get(key)
        if rivals is not None:
            if rivals.pop(service_port, None) is not None:
                self._unsettled[key] = None
            return
        held = self._frontends.get(key)
        if held is not None and held.service_port == service_port:
            self._set(key, None)

    def collect(self) -> tuple[tuple[Frontend, ...], tuple[FrontendKey, ...], tuple[Conflict, ...]]:
        """Frontends new or changed, keys removed, and conflicts that changed, since the last call."""
        conflicts = tuple(change for key in self._unsettled if (change := self._settle(key)) is not None)
        self._unsettled.clear()
        applied, removed = [], []
        for key, before in self._before.items():
            now = self._frontends.get(key)
            if now is None:
                if before is not None:
                    removed.append(key)
            elif now != before:
                applied.append(now)
        self._before.clear()
        return tuple(applied), tuple(removed), conflicts

    def _settle(self, key: FrontendKey) -> Conflict | None:
        ranked = sorted(self._contested[key].values(), key=lambda claim: claim.claimant)
        if len(ranked) < 2:
            del self._contested[key]
        winner = ranked[0].frontend if ranked else None
        if self._frontends.get(key) != winner:
            self._set(key, winner)
        old = self.conflicts.get(key)
        losers = tuple(claim.frontend.service_port for claim in ranked[1:])
        new = Conflict(key, winner.service_port if winner is not None else None, losers)
        if losers:
            self.conflicts[key] = new
            return new if new != old else None
        self.conflicts.pop(key, None)
        return new if old is not None else None

    def _set(self, key: FrontendKey, frontend: Frontend | None) -> None:
        self._before.setdefault(key, self._frontends.get(key))
        if frontend is None:
            self._frontends.pop(key, None)
        else:
            self._frontends[key] = frontend


def claimant(frontend: Frontend, service: Service) -> Claimant:
    """The rank of a claim by a port of `service`."""
    port = frontend.service_port
    ports = service.spec.ports or ()
    index = next((i for i, p in enumerate(ports) if (p.name, p.protocol) == (port.port, port.protocol)), len(ports))
    return Claimant(
        frontend.kind is not FrontendKind.CLUSTER_IP,
        service.metadata.creation_timestamp or _UNDATED,
        port.namespace,
        port.service,
        index,
    )
