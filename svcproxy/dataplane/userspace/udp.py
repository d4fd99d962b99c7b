# SPDX-License-Identifier: Apache-2.0
"""UDP frontends: a session for each client of a frontend, with a socket of its own that is connected to the backend.

A session ends when no datagram passed for the idle timeout, with the first datagram after its backend left the Service
port or answered "unreachable", and when room is needed (the longest idle first). The client notices nothing: its next
datagram begins another session. Replies leave from the frontend's own socket. A datagram without a backend is dropped;
where nobody would be served the socket refuses datagrams, and the kernel answers with port unreachable.
"""

import errno
import socket
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Any

from svcproxy.config import UserspaceConfig
from svcproxy.dataplane.userspace.balancer import Balancer, Choice
from svcproxy.dataplane.userspace.counters import CounterBook, FrontendCounters
from svcproxy.dataplane.userspace.notice import Notice, Report
from svcproxy.dataplane.userspace.places import Place
from svcproxy.dataplane.userspace.poller import READ, Poller
from svcproxy.dataplane.userspace.sessions import SessionTable
from svcproxy.dataplane.userspace.sockets import (
    EXHAUSTED,
    accept_datagrams,
    open_towards,
    reason,
    refuse_datagrams,
)
from svcproxy.frontends.decision import SourceKind, admits
from svcproxy.frontends.keys import Backend, FrontendKey, Refusal
from svcproxy.model.meta import Protocol

DATAGRAM_OCTETS = 65535
"""No IP datagram is larger."""
DATAGRAMS_PER_TURN = 64
"""Datagrams that one frontend takes from its clients before others get their turn."""
REPLIES_PER_TURN = 16
"""Datagrams that one session takes from its backend before others get their turn."""
QUEUED_MAX = 65536
"""Datagrams read out of a socket that stops serving; what arrives meanwhile does not keep us there."""

_UNREACHABLE = frozenset((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN))

ClientAddress = tuple[Any, ...]
"""As `recvfrom` gives it: (ip, port) or (ip, port, flow, scope)."""


class UdpSession:
    """Datagrams of one client of one frontend, and the backend's replies. Its listener and engine write it."""

    __slots__ = ("choice", "client", "counters", "dead", "last_used", "listener", "sock")

    def __init__(
        self,
        listener: "UdpListener",
        client: ClientAddress,
        choice: Choice,
        sock: socket.socket,
        counters: FrontendCounters,
    ) -> None:
        self.listener = listener
        self.client = client
        self.choice = choice
        self.sock = sock
        self.counters = counters
        self.last_used = 0.0
        self.dead = False
        """The backend is gone, or answered "unreachable": the next datagram goes to another, and nothing to this one.
        A reply that is on its way still reaches the client."""

    def on_readable(self, _events: int) -> None:
        """Called by the poller."""
        self.listener.reply(self)


class UdpEngine:
    """What all UDP frontends of a data plane share. Sessions are owned here."""

    def __init__(
        self,
        poller: Poller,
        balancer: Balancer,
        counters: CounterBook,
        config: UserspaceConfig,
        *,
        source_kind: Callable[[str], SourceKind],
        clock: Callable[[], float],
        report: Report,
    ) -> None:
        self.poller = poller
        self.balancer = balancer
        self.counters = counters
        self.clock = clock
        self.buffer = memoryview(bytearray(DATAGRAM_OCTETS))
        """Shared: nothing is in it between two calls."""
        self.sessions: SessionTable[UdpSession] = SessionTable()
        self._config = config
        self._source_kind = source_kind
        self._report = report
        self._exhausted = False

    def open_session(
        self, listener: "UdpListener", client: ClientAddress, now: float, tried: tuple[Backend, ...] = ()
    ) -> UdpSession | None:
        """A new session for a client, None when it gets none; the reason is counted."""
        frontend = self.balancer.table.frontends.get(listener.key)
        if frontend is None:
            return None
        counters = self.counters.of(listener.key)
        ip = client[0].partition("%")[0]
        if not admits(frontend, ip):
            counters.not_admitted += 1
            return None
        kind = self._source_kind(ip)
        choice = self.balancer.choose(frontend, ip, kind, now, tried)
        if choice is Refusal.REJECT and tried:
            choice = self.balancer.choose(frontend, ip, kind, now)  # the failed one is all there is
        if isinstance(choice, Refusal):
            counters.no_backend += 1
            return None
        if len(self.sessions) >= self._config.udp_sessions_max:
            self._make_room()
        sock = self._connect(choice.backend)
        if sock is None:
            counters.datagrams_dropped += 1
            return None
        session = UdpSession(listener, client, choice, sock, counters)
        listener.sessions[client] = session
        self.sessions.add(session, now)
        self.poller.watch(sock, READ, session.on_readable)
        counters.flows += 1
        counters.active += 1
        return session

    def end(self, session: UdpSession) -> None:
        """Close a session."""
        self.sessions.remove(session)
        if session.listener.sessions.get(session.client) is session:
            del session.listener.sessions[session.client]
        self.poller.close_socket(session.sock)
        session.counters.active -= 1
        session.listener.session_ended()

    def backends_gone(self, choices: Iterable[Choice]) -> None:
        """Send nothing more to backends that are no longer offered."""
        for choice in choices:
            for session in self.sessions.going_to(choice):
                session.dead = True

    def expire(self, now: float) -> None:
        """End the sessions that are idle for too long."""
        for session in self.sessions.idle_since(now - self._config.udp_idle_timeout):
            self.end(session)

    def end_all(self) -> None:
        """Close every session."""
        for session in self.sessions.all():
            self.end(session)

    def _make_room(self) -> bool:
        if (session := self.sessions.longest_idle()) is None:
            return False
        self.end(session)
        return True

    def _connect(self, backend: Backend) -> socket.socket | None:
        for _ in range(2):
            try:
                sock = open_towards(backend.ip, Protocol.UDP)
            except OSError as exc:
                if exc.errno not in EXHAUSTED:
                    return None
                self._note_exhausted(exc)
                # A descriptor freed within a batch is closed at its end: the room serves the next datagram at worst.
                if not self._make_room():
                    return None
                continue
            try:
                sock.connect((backend.ip, backend.port))
            except OSError:
                sock.close()
                return None
            self._exhausted = False
            return sock
        return None

    def _note_exhausted(self, error: OSError) -> None:
        if not self._exhausted:
            self._exhausted = True
            self._report(Notice("UDP sessions cut short", None, reason(error)))


class ListenerState(Enum):
    """What a client of the address meets."""

    NEW = auto()
    """Bound, perhaps inherited: to be told whether to serve or to refuse."""
    REFUSING = auto()
    """The kernel refuses: nobody would be served."""
    SERVING = auto()
    RELEASED = auto()
    """Another process reads the socket; replies of the last sessions here still leave from it."""
    CLOSED = auto()


class UdpListener:
    """One bound address. Owns its socket."""

    def __init__(self, engine: UdpEngine, place: Place, key: FrontendKey, sock: socket.socket) -> None:
        self.place = place
        self.key = key
        """The frontend that has the place; the owner writes it."""
        self.sock = sock
        self.sessions: dict[ClientAddress, UdpSession] = {}
        self._engine = engine
        self._descriptor = sock.fileno()
        self._state = ListenerState.NEW

    @property
    def lost(self) -> bool:
        """Whether somebody else closed the socket."""
        return self._state is not ListenerState.CLOSED and self.sock.fileno() < 0

    def serve(self) -> None:
        """Take datagrams. Raises OSError."""
        if self._state in (ListenerState.NEW, ListenerState.REFUSING):
            accept_datagrams(self.sock)
            self._engine.poller.watch(self.sock, READ, self._on_readable)
            self._state = ListenerState.SERVING

    def refuse(self) -> None:
        """Let the kernel answer with port unreachable. Datagrams that wait are passed on, if anyone takes them."""
        if self._state in (ListenerState.NEW, ListenerState.SERVING):
            refuse_datagrams(self.sock)
            self._read(QUEUED_MAX)
            self._engine.poller.forget(self.sock)
            self._state = ListenerState.REFUSING

    def release(self) -> None:
        """Leave datagrams to the process that has the socket too. Ours is closed with the last session: as long as it
        were open, that process could not give the address up."""
        self._stop_watching()
        self._state = ListenerState.RELEASED
        self.session_ended()

    def session_ended(self) -> None:
        """Called when `sessions` has become smaller."""
        if self._state is ListenerState.RELEASED and not self.sessions:
            self._engine.poller.close_socket(self.sock)
            self._state = ListenerState.CLOSED

    def end_sessions(self) -> None:
        """Close the sessions of this address."""
        for session in tuple(self.sessions.values()):
            self._engine.end(session)

    def close(self) -> None:
        """Give the address up, and its sessions."""
        self.end_sessions()
        if self._state is ListenerState.CLOSED:
            return
        self._stop_watching()
        self._engine.poller.close_socket(self.sock)
        self._state = ListenerState.CLOSED

    def reply(self, session: UdpSession) -> None:
        """Pass on what the backend sent."""
        engine = self._engine
        for _ in range(REPLIES_PER_TURN):
            try:
                size = session.sock.recv_into(engine.buffer)
            except BlockingIOError:
                return
            except OSError:
                session.counters.connect_failures += 1
                session.dead = True
                engine.poller.forget(session.sock)
                return
            engine.sessions.touch(session, engine.clock())
            try:
                self.sock.sendto(engine.buffer[:size], session.client)
            except OSError:
                session.counters.datagrams_dropped += 1
            else:
                session.counters.octets_out += size

    def _stop_watching(self) -> None:
        if self.lost:
            self._engine.poller.forget_closed(self._descriptor, self._on_readable)
        else:
            self._engine.poller.forget(self.sock)

    def _on_readable(self, _events: int) -> None:
        self._read(DATAGRAMS_PER_TURN)

    def _read(self, most: int) -> None:
        engine = self._engine
        now = engine.clock()
        for _ in range(most):
            try:
                size, client = self.sock.recvfrom_into(engine.buffer)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error that an earlier reply met; reading it took it off the socket
            self._forward(client, size, now)

    def _forward(self, client: ClientAddress, size: int, now: float) -> None:
        engine = self._engine
        session = self.sessions.get(client)
        if session is None:
            session = engine.open_session(self, client, now)
        elif session.dead:
            session = self._replace(session, now)
        if session is None:
            return
        try:
            session.sock.send(engine.buffer[:size])
        except OSError as exc:
            if exc.errno not in _UNREACHABLE:
                session.counters.datagrams_dropped += 1
                return
        else:
            session.counters.octets_in += size
            engine.sessions.touch(session, now)
            return
        # The error is about an earlier datagram, and this one was not sent.
        session.counters.connect_failures += 1
        session = self._replace(session, now)
        if session is None:
            return
        try:
            session.sock.send(engine.buffer[:size])
            session.counters.octets_in += size
        except OSError:
            session.counters.datagrams_dropped += 1

    def _replace(self, session: UdpSession, now: float) -> UdpSession | None:
        self._engine.end(session)
        return self._engine.open_session(self, session.client, now, (session.choice.backend,))
