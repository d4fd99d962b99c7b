# SPDX-License-Identifier: Apache-2.0
"""TCP frontends: accept, choose a backend, connect, hand over to a relay.

A client whose connection is accepted and cannot be served is reset. That is also what a dropped packet becomes here
(`Refusal.DROP`, a source outside the ranges): a program cannot take a connection and stay silent without holding it.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from enum import Enum, auto

from svcproxy.config import UserspaceConfig
from svcproxy.dataplane.userspace.balancer import Balancer
from svcproxy.dataplane.userspace.counters import CounterBook
from svcproxy.dataplane.userspace.dial import Dial
from svcproxy.dataplane.userspace.notice import Notice, Report
from svcproxy.dataplane.userspace.places import Place
from svcproxy.dataplane.userspace.poller import READ, Poller
from svcproxy.dataplane.userspace.relay import READ_OCTETS, Relay
from svcproxy.dataplane.userspace.sockets import (
    EXHAUSTED,
    LISTEN_BACKLOG,
    is_listening,
    reason,
    reset_on_close,
    stop_listening,
)
from svcproxy.frontends.decision import SourceKind, admits
from svcproxy.frontends.keys import FrontendKey

ACCEPTS_PER_TURN = 64
"""Connections that one listener accepts before others get their turn."""
PAUSE_FIRST = 0.05
"""Seconds without accepting after descriptors ran out; doubled each time it happens again."""
PAUSE_MAX = 1.0
"""Upper bound of that."""
RECOVERED_AFTER = 10.0
"""Seconds since descriptors ran out last, until a good connection means that it is over: one report for each spell."""


class TcpEngine:
    """What all TCP frontends of a data plane share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        balancer: Balancer,
        counters: CounterBook,
        config: UserspaceConfig,
        *,
        source_kind: Callable[[str], SourceKind],
        clock: Callable[[], float],
        report: Report,
    ) -> None:
        self.loop = loop
        self.poller = poller
        self.balancer = balancer
        self.counters = counters
        self.config = config
        self.clock = clock
        self._source_kind = source_kind
        self._report = report
        self._buffer = memoryview(bytearray(READ_OCTETS))
        self._flows: set[Dial | Relay] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._exhausted_at: float | None = None
        """When descriptors or memory ran out last, None if that is over."""

    @property
    def active(self) -> int:
        """Connections now, those still looking for a backend included."""
        return len(self._flows)

    def accepted(self, key: FrontendKey, client: socket.socket, ip: str) -> None:
        """Take over a connection to a frontend."""
        frontend = self.balancer.table.frontends.get(key)
        if frontend is None:
            self.reset(client)
            return
        counters = self.counters.of(key)
        if len(self._flows) >= self.config.connections_max:
            counters.over_limit += 1
            self.reset(client)
            return
        if not admits(frontend, ip):
            counters.not_admitted += 1
            self.reset(client)
            return
        client.setblocking(False)
        dial = Dial(self, key, client, ip, self._source_kind(ip), counters)
        counters.flows += 1
        counters.active += 1
        self._flows.add(dial)
        self._idle.clear()
        dial.next_backend()

    def connected(self, dial: Dial, backend: socket.socket) -> None:
        """A backend took the connection."""
        self._flows.discard(dial)
        self._flows.add(Relay(self.poller, self._buffer, dial.client, backend, dial.counters, self.ended))
        if self._exhausted_at is not None and self.clock() >= self._exhausted_at + RECOVERED_AFTER:
            self._exhausted_at = None
            self._report(Notice("connections are taken again", None, ""))

    def ended(self, flow: Dial | Relay) -> None:
        """A connection is over, its sockets closed."""
        self._flows.discard(flow)
        flow.counters.active -= 1
        if not self._flows:
            self._idle.set()

    def reset(self, client: socket.socket) -> None:
        """Refuse an accepted connection."""
        reset_on_close(client)
        self.poller.close_socket(client)

    def exhausted(self, error: OSError) -> None:
        """Descriptors or memory ran out; reported at the first time, until it is over."""
        if self._exhausted_at is None:
            self._report(Notice("connections cannot be taken", None, reason(error)))
        self._exhausted_at = self.clock()

    async def wait_idle(self) -> None:
        """Return when there is no connection."""
        await self._idle.wait()

    def abort_all(self) -> None:
        """Reset every connection."""
        for flow in tuple(self._flows):
            flow.abort()


class ListenerState(Enum):
    """What a client of the address meets."""

    NEW = auto()
    """Bound, perhaps inherited and listening: to be told whether to serve or to refuse."""
    REFUSING = auto()
    """The kernel refuses: nobody would be served."""
    SERVING = auto()
    PAUSED = auto()
    """Connections wait in the backlog: descriptors ran out."""
    RELEASED = auto()
    """Another process serves the socket."""
    CLOSED = auto()


class TcpListener:
    """One bound address. Owns its socket."""

    def __init__(self, engine: TcpEngine, place: Place, key: FrontendKey, sock: socket.socket) -> None:
        self.place = place
        self.key = key
        """The frontend that has the place; the owner writes it."""
        self.sock = sock
        self._engine = engine
        self._descriptor = sock.fileno()
        self._state = ListenerState.NEW
        self._pause = PAUSE_FIRST
        self._resume: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """Whether somebody else closed the socket."""
        return self._state not in (ListenerState.CLOSED, ListenerState.RELEASED) and self.sock.fileno() < 0

    def serve(self) -> None:
        """Take connections. Raises OSError when somebody else listens there."""
        if self._state in (ListenerState.NEW, ListenerState.REFUSING):
            self.sock.listen(LISTEN_BACKLOG)
            self._engine.poller.watch(self.sock, READ, self._on_readable)
            self._state = ListenerState.SERVING

    def refuse(self) -> None:
        """Let the kernel refuse connections; those completed before are taken first."""
        if self._state in (ListenerState.NEW, ListenerState.SERVING, ListenerState.PAUSED):
            if is_listening(self.sock):
                self._accept_queued()
                self._stop_watching()
                stop_listening(self.sock)
            self._state = ListenerState.REFUSING

    def release(self) -> None:
        """Leave the socket, with the connections that wait in it, to the process that has it too.

        Our descriptor is closed: as long as it were open, the other process could not give the address up.
        """
        self._stop_watching()
        self._engine.poller.close_socket(self.sock)
        self._state = ListenerState.RELEASED

    def close(self) -> None:
        """Give the address up."""
        if self._state is ListenerState.RELEASED:
            return
        self._stop_watching()
        self._engine.poller.close_socket(self.sock)
        self._state = ListenerState.CLOSED

    def _stop_watching(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self.lost:
            self._engine.poller.forget_closed(self._descriptor, self._on_readable)
        else:
            self._engine.poller.forget(self.sock)

    def _on_readable(self, _events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept():
                return

    def _accept_queued(self) -> None:
        for _ in range(LISTEN_BACKLOG):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Take one connection; False when there is none, or none can be taken."""
        try:
            client, address = self.sock.accept()
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                self._pause_accepting(exc)
                return False
            # Errors of the connection, not of the listener (accept(2)); the next one may be good.
            return exc.errno not in (errno.EBADF, errno.EINVAL)
        self._pause = PAUSE_FIRST
        self._engine.accepted(self.key, client, address[0].partition("%")[0])
        return True

    def _pause_accepting(self, error: OSError) -> None:
        self._engine.exhausted(error)
        if self._state is ListenerState.SERVING:
            self._engine.poller.change(self.sock, 0)
            self._resume = self._engine.loop.call_later(self._pause, self._resume_accepting)
            self._pause = min(2 * self._pause, PAUSE_MAX)
            self._state = ListenerState.PAUSED

    def _resume_accepting(self) -> None:
        self._resume = None
        self._engine.poller.change(self.sock, READ)
        self._state = ListenerState.SERVING
