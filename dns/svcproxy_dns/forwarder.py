# SPDX-License-Identifier: Apache-2.0
"""Asks upstreams: carries out what the resolver decides. A shell."""

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from svcproxy_dns.channels import TURN_BATCH, Channel, Sockets, open_channel, require
from svcproxy_dns.elsewhere import Alias, Deliver, Later
from svcproxy_dns.forward_statistics import ForwardStatistics, ReplyTimes, StoreStatistics, UpstreamStatistics
from svcproxy_dns.forwarding import Ask, Drop
from svcproxy_dns.panics import Panics
from svcproxy_dns.resolver import LOOP_CHECK_INTERVAL, Flight, Resolver, Steps, Waiting
from svcproxy_dns.wire import Query

log = logging.getLogger(__name__)

SOCKETS_PER_QUESTION = 2
"""Sockets that there are on average: most questions need one, and descriptors are needed for clients over TCP too."""
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL})
"""Errors that are for want of something here."""


class _Turn:
    """How many time-outs may still be dealt with in this turn of the loop."""

    def __init__(self) -> None:
        self._left = TURN_BATCH

    def take(self) -> bool:
        """Whether one more thing may be done now; if not, there will be a next turn."""
        if self._left == TURN_BATCH:
            asyncio.get_running_loop().call_soon(self._renew)
        self._left = max(self._left - 1, -1)
        return self._left >= 0

    def _renew(self) -> None:
        self._left = TURN_BATCH


class _Pending:
    """A query on its way to the resolver. See `Later`."""

    def __init__(self, forwarder: "Forwarder", waiting: Waiting) -> None:
        self._forwarder = forwarder
        self._waiting = waiting

    def begin(self, client: str, deliver: Deliver) -> None:
        self._forwarder.begin(self._waiting, client, deliver)


class Forwarder:
    """Resolves names for the loop that it is used on. See `Elsewhere`."""

    def __init__(
        self,
        resolver: Resolver,
        reply_times: ReplyTimes,
        sockets_max: int,
        clock: Callable[[], float] = time.monotonic,
        panics: Panics | None = None,
    ) -> None:
        """`reply_times`: those that `resolver` counts. `sockets_max`: open at once; without one an attempt fails.
        `panics`: where to count, if somebody wants to know."""
        self.resolver = resolver
        self._panics = panics or Panics()
        self._sockets_max = sockets_max
        self._sockets = Sockets(self._proceed)
        self._turn = _Turn()
        self._reply_times = reply_times
        self._opened: dict[tuple[str, str], int] = {}
        self._clock = clock
        self._channels: dict[Flight, dict[int, Channel]] = {}
        self._timers: dict[Flight, asyncio.TimerHandle] = {}
        self._loop_check: asyncio.TimerHandle | None = None
        self._known_loops: set[str] = set()
        self._closed = False

    def resolve(self, query: Query, ident: bytes, transport: int, aliases: Sequence[Alias] = ()) -> bytes | Later:
        """See `Elsewhere`."""
        found = self.resolver.lookup(query, ident, transport, aliases, self._clock())
        if isinstance(found, bytes):
            self.resolver.counts.at_hand += 1
            return found
        return _Pending(self, found)

    def begin(self, waiting: Waiting, client: str, deliver: Deliver) -> None:
        """See `Later`."""
        admitted = self.resolver.admit(waiting, client, deliver, self._clock())
        if admitted is not None:
            self._carry_out(*admitted)

    def use(self, default: Sequence[str] | None, stubs: Mapping[str, Sequence[str]]) -> None:
        """Ask these upstreams from now on, see `Upstreams.replace`, and find out whether one of them loops."""
        for address in self.resolver.upstreams.replace(default, stubs):
            log.warning("an upstream is this server itself, it is left out", extra={"upstream": address})
        known = {each.address for each in self.resolver.upstreams}
        self._reply_times.forget(known)
        self._opened = {key: count for key, count in self._opened.items() if key[0] in known}
        self.find_loops()

    def find_loops(self) -> None:
        """Find out about every upstream whether it loops. Only a server that answers sees its questions come back."""
        self._check_loops(everybody=True)

    def close(self) -> None:
        """Give everything up. Whoever waits gets no response."""
        self._closed = True
        if self._loop_check is not None:
            self._loop_check.cancel()
        for flight in list(self._channels):
            self._land(flight)
        self._sockets.close()

    def statistics(self) -> ForwardStatistics:
        """What has been counted."""
        core = self.resolver
        return ForwardStatistics(
            responses={key: list(tally) for key, tally in core.responses.items()},
            upstreams=tuple(
                UpstreamStatistics(each.address, each.suspect, each.looping, each.unanswered_total)
                for each in core.upstreams
            ),
            reply_times=self._reply_times.histograms,
            stores=tuple(
                StoreStatistics(kind, len(store), store.octets, store.hits, store.evictions)
                for kind, store in core.cache.stores.items()
            ),
            hits=core.hits,
            misses=core.misses,
            stale=core.stale,
            rejected=core.rejected,
            broken=core.broken,
            ignored=core.ignored,
            flights=core.flights,
            waiting=core.waiting,
            sockets=dict(self._opened),
        )

    # --- loops

    def _check_loops(self, *, everybody: bool = False) -> None:
        if self._closed:
            return
        for flight, steps in self.resolver.check_loops(self._clock(), everybody=everybody):
            self._carry_out(flight, steps)
        looping = {each.address for each in self.resolver.upstreams if each.looping}
        for address in looping - self._known_loops:
            log.warning("an upstream sends questions back to this server, it is not asked", extra={"upstream": address})
        for address in self._known_loops - looping:
            log.info("an upstream loops no longer", extra={"upstream": address})
        self._known_loops = looping
        if self._loop_check is not None:
            self._loop_check.cancel()
        loop = asyncio.get_running_loop()
        self._loop_check = loop.call_later(LOOP_CHECK_INTERVAL, self._check_loops)

    # --- flights

    def _carry_out(self, flight: Flight, steps: Steps) -> None:
        channels = self._channels.setdefault(flight, {})
        pending = deque(steps)
        while pending:
            step = pending.popleft()
            if isinstance(step, Drop):
                channel = channels.pop(step.attempt, None)
                if channel is not None:
                    self._sockets.remove(channel)
                continue
            try:
                channels[step.attempt] = self._open(flight, step)
            except OSError as exc:
                pending += self.resolver.failed(flight, step.attempt, self._clock(), ours=exc.errno in _OURS)
        if flight.over:
            self._land(flight)
        else:
            self._wake_later(flight)

    def _open(self, flight: Flight, ask: Ask) -> Channel:
        require(len(self._sockets) < self._sockets_max, errno.EMFILE)
        opened = ask.upstream.address, "tcp" if ask.tcp else "udp"
        self._opened[opened] = self._opened.get(opened, 0) + 1
        channel = open_channel(flight, ask)
        self._sockets.add(channel)
        return channel

    def _proceed(self, channel: Channel) -> None:
        flight, attempt = channel.flight, channel.attempt
        awaited = channel.events
        try:
            message = channel.proceed()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            steps = self.resolver.failed(flight, attempt, self._clock(), ours=exc.errno in _OURS)
        else:
            if message is None:
                if channel.events != awaited:
                    self._sockets.renew(channel)
                return
            try:
                steps = self.resolver.received(flight, attempt, message, self._clock())
            except Exception:  # noqa: BLE001  # it costs the attempt, not those who wait
                self._panics.caught("a reply could not be taken in")
                steps = self.resolver.failed(flight, attempt, self._clock(), ours=False)
        self._carry_out(flight, steps)

    def _wake_later(self, flight: Flight) -> None:
        timer = self._timers.pop(flight, None)
        if timer is not None:
            timer.cancel()
        delay = max(flight.wake_at - self._clock(), 0.0) + 0.001  # timers are of whole milliseconds
        self._timers[flight] = asyncio.get_running_loop().call_later(delay, self._wake, flight)

    def _wake(self, flight: Flight) -> None:
        if not self._turn.take():
            self._timers[flight] = asyncio.get_running_loop().call_later(0, self._wake, flight)
            return
        self._carry_out(flight, self.resolver.woken(flight, self._clock()))

    def _land(self, flight: Flight) -> None:
        timer = self._timers.pop(flight, None)
        if timer is not None:
            timer.cancel()
        for channel in self._channels.pop(flight, {}).values():
            self._sockets.remove(channel)
