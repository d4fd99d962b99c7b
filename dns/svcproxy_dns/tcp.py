# SPDX-License-Identifier: Apache-2.0
"""DNS over TCP (RFC 7766): several queries on a connection. A shell.

What is at hand is answered in order. What has to be found out elsewhere is answered when it is known, and holds up
nothing. Clients take turns, so that one with many queries or connections keeps no other waiting.
"""

import asyncio
import socket
import time
from functools import partial
from typing import Any, cast

from svcproxy_dns.admission import Admission, Refusal, TcpLimits
from svcproxy_dns.elsewhere import Later
from svcproxy_dns.framing import MessageReader, frame
from svcproxy_dns.listeners import TCP_BACKLOG, transport_of
from svcproxy_dns.panics import Panics
from svcproxy_dns.query_log import QueryLog
from svcproxy_dns.traffic import Traffic
from svcproxy_dns.turns import Turns
from svcproxy_dns.udp import Respond

TURN_COST = 64
"""What is answered over TCP in one turn of the loop, counted in queries that are at hand: under a millisecond."""
LATER_COST = 8
"""What one costs that has to be found out elsewhere."""
BATCH = 8
"""Queries of one connection answered before it is the next one's turn."""
READ_OCTETS = 16384
"""Read at once. A connection is not read while it holds that much unanswered."""
QUERY_OCTETS = 4096
"""Held of one query, see `svcproxy_dns.udp.DATAGRAM_OCTETS`; it is answered by what it says in these."""
UNREAD_MAX = 256 << 10
"""Octets that a connection may owe to a client that does not read when a late response comes; it ends then."""


class TcpState:
    """What the connections of one server share."""

    def __init__(self, respond: Respond, limits: TcpLimits, traffic: Traffic, panics: Panics) -> None:
        self.respond = respond
        self.limits = limits
        self.traffic = traffic
        self.panics = panics
        self.log: QueryLog | None = None
        """Is told of every response."""
        self.connections: set[TcpConnection] = set()
        self.idle: dict[TcpConnection, None] = {}
        """Those of them that have nothing to be answered, the longest idle first."""
        self.empty = asyncio.Event()
        """Set when the last connection has gone."""
        self.refused = dict.fromkeys(Refusal, 0)
        """Connections closed because there were too many."""
        self.displaced = 0
        """Connections closed, because they were idle, for others."""
        self.expired = 0
        """Connections closed because the client was too slow, or idle."""
        self.draining = False
        """Whether a connection ends once it has nothing left to answer, see `TcpConnection.close_when_idle`."""
        self.buffer = memoryview(bytearray(READ_OCTETS))
        """What has just been read on one of them."""
        self._admission = Admission(limits)
        self._turns: Turns[TcpConnection] = Turns()
        self._booked = False
        """Whether connections take turns in the next turn of the loop."""

    def enter(self, connection: "TcpConnection", client: str) -> bool:
        """Take a connection in, if need be in the place of one that is idle; whether there is room for it."""
        refusal = self._admission.refusal(client)
        if refusal is Refusal.TOTAL and self.idle:
            self.displaced += 1
            next(iter(self.idle)).abort()
        elif refusal is not None:
            self.refused[refusal] += 1
            return False
        self._admission.entered(client)
        self.connections.add(connection)
        self.empty.clear()
        return True

    def leave(self, connection: "TcpConnection", client: str) -> None:
        """A connection has ended."""
        self._admission.left(client)
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        if not self.connections:
            self.empty.set()

    def enqueue(self, connection: "TcpConnection", client: str) -> None:
        """Have `connection.answer` called when it is its turn."""
        self._turns.add(client, connection)
        if not self._booked:
            self._booked = True
            asyncio.get_running_loop().call_soon(self._take_turns)

    def _take_turns(self) -> None:
        left = TURN_COST
        try:
            while left > 0 and self._turns:
                left -= self._turns.take().answer()
        finally:
            self._booked = bool(self._turns)
            if self._booked:
                asyncio.get_running_loop().call_soon(self._take_turns)


class TcpConnection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, state: TcpState, transport_number: int) -> None:
        self._state = state
        self._number = transport_number
        self._reader = MessageReader(QUERY_OCTETS)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        """None before it has been taken, and once it has ended."""
        self._peer: tuple[Any, ...] = ()
        self._client = ""
        self._queued = False
        """Whether it waits for its turn."""
        self._paused = False
        """Whether it is not read for the time being."""
        self._blocked = False
        """Whether the client does not read."""
        self._waiting = 0
        """Queries whose response is being found out."""
        self._fresh = True
        """Whether no message has come yet: the first is on its way."""
        self._ended = False
        """Whether the client has sent its last octet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it."""
        transport = cast("asyncio.Transport", transport)  # by its methods: uvloop's is no subclass
        peer = transport.get_extra_info("peername")  # None if it has gone already
        if peer is None or not self._state.enter(self, peer[0]):
            transport.abort()
            return
        self._transport = transport
        self._peer = peer
        self._client = peer[0]
        self._state.idle[self] = None
        self._expire_after(self._state.limits.message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the client is gone either way
        """Forget the connection."""
        self._leave()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # it is the same for all
        """Where to read into; emptied by `buffer_updated` before anything else is read."""
        return self._state.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Have what is complete answered."""
        if self._transport is None:
            return
        fresh = not self._reader.pending
        self._reader.feed(self._state.buffer[:nbytes])
        self._state.idle.pop(self, None)
        if self._reader.pending >= READ_OCTETS:
            self._pause()
        if self._queued or self._blocked:
            return
        if self._reader.ready:
            self._enqueue()
        elif fresh:
            self._expire_after(self._state.limits.message)

    def eof_received(self) -> bool:
        """Answer the rest, then close: a client may half-close after its last query."""
        self._ended = True
        self._close_if_done()
        return True

    def pause_writing(self) -> None:
        """The client does not read: neither do we, and it has not for ever."""
        self._blocked = True
        self._pause()
        self._expire_after(self._state.limits.write)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked = False
        if not self._queued:
            self._go_on(answered=True)

    def close_when_idle(self) -> None:
        """Close now if everything that was asked has been answered, else after it has been.

        A connection on which nothing has been asked yet is closed after its first query.
        """
        self._close_if_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
            self._leave()

    def answer(self) -> int:
        """Answer up to a batch and wait for another turn if there is more; what that has cost, see `TURN_COST`."""
        self._queued = False
        cost = 1
        if self._transport is None or self._blocked or self._transport.is_closing():
            return cost
        answered = False
        responses: list[bytes] = []
        for _ in range(BATCH):
            message = self._reader.next_message()
            if message is None:
                break
            self._fresh = False
            log = self._state.log
            read_at = log.clock() if log is not None else 0.0
            response = self._respond(message)
            cost += 1
            if isinstance(response, bytes):
                responses.append(frame(response))
                if log is not None:
                    log.answered(message, response, self._peer, self._number, read_at)
            elif response is not None:
                if log is not None:
                    response = log.follow(response, message, self._peer, self._number, read_at)
                self._waiting += 1
                cost += LATER_COST
                answered = True
                response.begin(self._client, partial(self._deliver, time.perf_counter()))
        if responses:
            answered = True
            self._transport.write(b"".join(responses))
        if not self._blocked:
            self._go_on(answered=answered)
        return cost

    def _respond(self, message: bytes) -> bytes | Later | None:
        began, elsewhere = time.perf_counter(), self._state.traffic.elsewhere
        at_hand = elsewhere.at_hand
        try:
            response = self._state.respond(message, self._number)
        except Exception:  # noqa: BLE001  # the way of one query ends here, not the connection's
            response = self._state.panics.response(message)
        if isinstance(response, bytes):
            self._state.traffic.took(time.perf_counter() - began, 1, elsewhere.at_hand - at_hand)
        return response

    def _deliver(self, began: float, response: bytes) -> None:
        """Write a response that has been found out for a query that was read when it `began`."""
        self._waiting -= 1
        self._state.traffic.elsewhere.durations.observe(time.perf_counter() - began)
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNREAD_MAX:
            self.abort()
            return
        self._transport.write(frame(response))
        if not self._blocked and not self._queued:
            self._go_on(answered=False)

    def _go_on(self, *, answered: bool) -> None:
        """After something has been done: wait for the next turn, or for the client."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._reader.ready:
            self._enqueue()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if not self._reader.pending:
            if self._waiting:
                self._expire_never()
            else:
                self._state.idle[self] = None
                self._expire_after(self._state.limits.idle)
        elif answered:
            self._expire_after(self._state.limits.message)
        self._close_if_done()

    def _enqueue(self) -> None:
        self._queued = True
        self._expire_never()
        self._state.enqueue(self, self._client)

    def _pause(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _close_if_done(self) -> None:
        if self._transport is None or self._queued or self._blocked or self._waiting:
            return
        if self._ended or (self._state.draining and not self._fresh and not self._reader.pending):
            self._transport.close()

    def _leave(self) -> None:
        if self._transport is not None:
            self._transport = None
            self._state.leave(self, self._client)
        self._expire_never()

    def _expire_never(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire_after(self, seconds: float) -> None:
        self._expire_never()
        self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._state.expired += 1
        self.abort()


class TcpListener:
    """Accepts connections on a socket."""

    def __init__(self, sock: socket.socket, state: TcpState) -> None:
        self.socket = sock
        self._state = state
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept from now on."""
        number = transport_of(self.socket)
        duplicate = self.socket.dup()  # closing the server closes what it was given, and ours must stay open
        duplicate.setblocking(False)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: TcpConnection(self._state, number), sock=duplicate, backlog=TCP_BACKLOG
        )

    def stop(self) -> None:
        """Accept no more. Connections that wait stay in the socket for whoever accepts next."""
        if self._server is not None:
            self._server.close()
            self._server = None
