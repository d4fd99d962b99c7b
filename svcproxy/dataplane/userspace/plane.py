# SPDX-License-Identifier: Apache-2.0
"""The data plane of mode `userspace`: relays on sockets bound to the frontends' own addresses.

Every frontend claims places (`places.py`); each place that can be bound has a listener, which serves while anyone would
get a backend and refuses otherwise. A change of backends touches pools and, when a frontend becomes usable or ceases to
be, its listeners; nothing is bound anew. New flows ask the table of the moment; established ones are not cut.
"""

import asyncio
import random as random_module
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from socket import socket
from types import MappingProxyType
from typing import Self

from svcproxy.config import DataplaneConfig
from svcproxy.dataplane.contract import APPLIED, Outcome, Refused
from svcproxy.dataplane.userspace.balancer import Balancer
from svcproxy.dataplane.userspace.counters import CounterBook, FrontendCounters
from svcproxy.dataplane.userspace.notice import Notice, Report, log_notice
from svcproxy.dataplane.userspace.places import Place, claimants, places_of
from svcproxy.dataplane.userspace.poller import Poller
from svcproxy.dataplane.userspace.sockets import adoptable, open_bound, reason
from svcproxy.dataplane.userspace.tcp import TcpEngine, TcpListener
from svcproxy.dataplane.userspace.udp import UdpEngine, UdpListener
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Protocol

SETTLED_PER_TURN = 64
"""Frontends opened, closed or checked before the loop gets its turn."""
REPLY_GRACE = 5.0
"""Seconds that UDP sessions may still get replies after their sockets were handed over."""
SWEEP_INTERVAL = 1.0
"""Seconds between two looks for UDP sessions and affinities that timed out."""

_NOWHERE: frozenset[Place] = frozenset()


class UserspaceDataplane:
    """See `svcproxy.dataplane.contract.Dataplane`. An asynchronous context manager; needs no privileges.

    A frontend that cannot be bound is refused, reported once, and tried again by `resync` and `retry_refused`. A
    NodePort frontend is in force on those of its addresses that could be bound, and refused with the other ones' names.
    """

    name = "userspace"

    def __init__(
        self,
        config: DataplaneConfig,
        *,
        source_kind: Callable[[str], SourceKind],
        inherited: Mapping[str, socket] = MappingProxyType({}),
        elsewhere: Collection[tuple[str, int]] = (),
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
        report: Report = log_notice,
    ) -> None:
        """`source_kind` tells the kind of a client's canonical address.

        `inherited`: what `sockets` of another instance returned; owned from now on. Those that no frontend claims by
        the end of the first `resync` are closed. `elsewhere`: (IP, port) that is not to be bound, for another role does
        or will. `clock`: monotonic seconds. `random`: floats in [0, 1).
        """
        self._config = config.userspace
        self._source_kind = source_kind
        self._inherited = dict(inherited)
        self._elsewhere = elsewhere
        self._clock = clock
        self._report = report
        self._balancer = Balancer(random)
        self._counters = CounterBook()
        self._listeners: dict[Place, TcpListener | UdpListener] = {}
        self._held: dict[FrontendKey, frozenset[Place]] = {}
        """The places each frontend claimed when it was settled last."""
        self._failed: dict[Place, str] = {}
        """Places that could not be bound, and why."""
        self._refused: dict[FrontendKey, str] = {}
        self._frozen = False
        """Listeners are no longer ours to change: released or draining."""
        self._sweep: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._poller = Poller(self._loop)
        self._tcp = TcpEngine(
            self._loop,
            self._poller,
            self._balancer,
            self._counters,
            self._config,
            source_kind=self._source_kind,
            clock=self._clock,
            report=self._report,
        )
        self._udp = UdpEngine(
            self._poller,
            self._balancer,
            self._counters,
            self._config,
            source_kind=self._source_kind,
            clock=self._clock,
            report=self._report,
        )
        self._sweep_later()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        """See the contract. Never raises `DataplaneLost`: the state is in this process."""
        affected = self._take_in(delta)
        await self._settle(affected)
        return {key: self._outcome(key) for key in affected}

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        """See the contract. O(table)."""
        broken = self._not_in_force()
        change = diff(self._balancer.table, desired)
        self._take_in(change)
        await self._settle({**dict.fromkeys(self._held), **dict.fromkeys(desired.frontends)})
        self._close_unclaimed()
        wanted = {frontend.key: frontend for frontend in change.frontends}
        wanted.update((key, desired.frontends[key]) for key in broken if key in desired.frontends)
        return FrontendDelta(
            frontends=tuple(frontend for key, frontend in wanted.items() if key not in self._refused),
            removed=change.removed,
            backends=change.backends,
            node_port_addresses=change.node_port_addresses,
            health_checks=change.health_checks,
            health_checks_removed=change.health_checks_removed,
        )

    async def retry_refused(self) -> Mapping[FrontendKey, Outcome]:
        """Try the refused frontends again, as when the node's addresses changed, and return their outcomes."""
        keys = tuple(self._refused)
        await self._settle(keys)
        return {key: self._outcome(key) for key in keys}

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        """See the contract."""
        return MappingProxyType(self._refused)

    @property
    def counters(self) -> Mapping[FrontendKey, FrontendCounters]:
        """Of each frontend that had traffic. Read-only."""
        return MappingProxyType(self._counters.by_frontend)

    @property
    def totals(self) -> FrontendCounters:
        """The sum over all frontends since the start. O(frontends)."""
        return self._counters.totals()

    @property
    def connections(self) -> int:
        """TCP connections now."""
        return self._tcp.active

    @property
    def sessions(self) -> int:
        """UDP sessions now."""
        return len(self._udp.sessions)

    def sockets(self) -> Mapping[str, socket]:
        """The bound sockets by place, such as `tcp/10.0.0.1:80`, for the instance that takes over. Still owned here:
        duplicate them (sending them does), then `release`."""
        return {str(place): listener.sock for place, listener in self._listeners.items()}

    def release(self) -> None:
        """Leave the bound sockets to the instance that has duplicates of them; what waits in them stays there.

        Our own are closed, so that the other instance can give an address up; those of UDP with their last session,
        and after `REPLY_GRACE` at the latest: replies leave from them. Established connections go on.
        """
        self._frozen = True
        for listener in self._listeners.values():
            listener.release()
        self._loop.call_later(REPLY_GRACE, self._close_udp)

    def _close_udp(self) -> None:
        for listener in self._listeners.values():
            if isinstance(listener, UdpListener):
                listener.close()

    def expire(self) -> None:
        """End what timed out by now. Called every `SWEEP_INTERVAL`."""
        now = self._clock()
        self._udp.expire(now)
        self._balancer.affinity.expire(now)

    async def drain(self, timeout: float) -> None:
        """See the contract. New connections are refused, unless the sockets were released; UDP sessions are not waited
        for: datagrams that wait are passed on, and replies that come within the time."""
        if not self._frozen:
            self._frozen = True
            for listener in self._listeners.values():
                if not listener.lost:
                    listener.refuse()
        try:
            async with asyncio.timeout(timeout):
                await self._tcp.wait_idle()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Reset what is still connected and close every socket. Closing twice is fine."""
        if self._sweep is None:
            return
        self._sweep.cancel()
        self._sweep = None
        self._frozen = True
        self._tcp.abort_all()
        self._udp.end_all()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._close_unclaimed()
        self._poller.close()

    def _take_in(self, delta: FrontendDelta) -> tuple[FrontendKey, ...]:
        affected = self._balancer.apply(delta)
        self._udp.backends_gone(self._balancer.gone(delta))
        for key in delta.removed:
            self._counters.retire(key)
        return affected

    async def _settle(self, keys: Iterable[FrontendKey]) -> None:
        for index, key in enumerate(keys, 1):
            self._settle_frontend(key)
            if index % SETTLED_PER_TURN == 0:
                await asyncio.sleep(0)

    def _settle_frontend(self, key: FrontendKey) -> None:
        """Make the listeners of a frontend be what the table says."""
        table = self._balancer.table
        exists = key in table.frontends and key.protocol is not Protocol.SCTP
        wanted = places_of(key, table.node_port_addresses) if exists else _NOWHERE
        if not self._frozen:
            for place in wanted | self._held.get(key, _NOWHERE):
                self._settle_place(place, key)
        if wanted:
            self._held[key] = wanted
        else:
            self._held.pop(key, None)
        self._note_refusal(key)

    def _settle_place(self, place: Place, settling: FrontendKey) -> None:
        """Make the listener of a place be what the table says; another frontend than `settling` may gain or lose it."""
        table = self._balancer.table
        claims = claimants(place, table.frontends, table.node_port_addresses)
        listener = self._listeners.get(place)
        if listener is not None and (listener.lost or not claims):
            del self._listeners[place]
            listener.close()
            listener = None
        self._failed.pop(place, None)
        if not claims:
            return
        key = claims[0]
        try:
            if listener is None:
                listener = self._listeners[place] = self._open(place, key)
            if listener.key != key:
                listener.key = key
                if isinstance(listener, UdpListener):
                    listener.end_sessions()
            if self._balancer.usable(table.frontends[key]):
                listener.serve()
            else:
                listener.refuse()
        except OSError as exc:
            self._failed[place] = reason(exc)
            if listener is not None:
                del self._listeners[place]
                listener.close()
        for claimant in claims:
            if claimant != settling:
                self._note_refusal(claimant)

    def _open(self, place: Place, key: FrontendKey) -> TcpListener | UdpListener:
        if (place.ip, place.port) in self._elsewhere:
            raise OSError("left to another role of svcproxy (dns.intercept)")
        sock = self._inherited.pop(str(place), None)
        if sock is not None and not adoptable(sock, place):
            self._report(Notice("inherited socket is not what its name says", key, str(place)))
            sock.close()
            sock = None
        if sock is None:
            sock = open_bound(place)
        sock.setblocking(False)
        if place.protocol is Protocol.TCP:
            return TcpListener(self._tcp, place, key, sock)
        return UdpListener(self._udp, place, key, sock)

    def _note_refusal(self, key: FrontendKey) -> None:
        """Bring `refused` up to date for a frontend, and report what is new."""
        table = self._balancer.table
        reasons = []
        if key in table.frontends:
            if key.protocol is Protocol.SCTP:
                reasons.append("SCTP is not supported in user space")
            for place in sorted(self._held.get(key, _NOWHERE)):
                if (owner := claimants(place, table.frontends, table.node_port_addresses)[:1]) != (key,):
                    reasons.extend(f"{place}: the place of {other}" for other in owner)
                elif place in self._failed:
                    reasons.append(f"{place}: {self._failed[place]}")
        if not reasons:
            if self._refused.pop(key, None) is not None and key in table.frontends:
                self._report(Notice("frontend no longer refused", key, ""))
            return
        text = "; ".join(reasons)
        if self._refused.get(key) != text:
            self._refused[key] = text
            self._report(Notice("frontend refused", key, text))

    def _outcome(self, key: FrontendKey) -> Outcome:
        refusal = self._refused.get(key)
        return APPLIED if refusal is None else Refused(refusal)

    def _not_in_force(self) -> list[FrontendKey]:
        """Frontends refused, or whose sockets somebody else closed."""
        keys = dict.fromkeys(self._refused)
        keys.update((listener.key, None) for listener in self._listeners.values() if listener.lost)
        return list(keys)

    def _close_unclaimed(self) -> None:
        for sock in self._inherited.values():
            sock.close()
        self._inherited.clear()

    def _sweep_later(self) -> None:
        self._sweep = self._loop.call_later(SWEEP_INTERVAL, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep_later()
        self.expire()
