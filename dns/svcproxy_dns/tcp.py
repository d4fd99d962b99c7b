# SPDX-License-Identifier: Apache-2.0
"""DNS over TCP (RFC 7766): several queries on a connection. A shell.

What is at hand is answered in order. What has to be found out elsewhere is answered when it is known, and holds up
nothing.
"""

import asyncio
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from svcproxy_dns.elsewhere import Later
from svcproxy_dns.framing import MessageReader, frame
from svcproxy_dns.listeners import TCP_BACKLOG, transport_of
from svcproxy_dns.panics import Panics
from svcproxy_dns.query_log import QueryLog
from svcproxy_dns.traffic import Traffic
from svcproxy_dns.udp import Respond

BATCH = 32
"""Queries of one connection answered in one turn of the loop."""
UNREAD_MAX = 256 << 10
"""Octets that a connection may owe to a client that does not read when a late response comes; it ends then."""


@dataclass(frozen=True, slots=True)
class TcpLimits:
    """What TCP clients may take. Seconds."""

    connections: int = 1024
    """At once, over all addresses; a further one is closed at once."""
    idle: float = 10.0
    """Between an answer and the next query."""
    message: float = 3.0
    """From the connection to the first message, and from a message's first octet to its last."""
    write: float = 5.0
    """For a client to read answers once the connection's buffers are full."""


@dataclass(slots=True)
class TcpState:
    """What the connections of one server share."""

    respond: Respond
    limits: TcpLimits
    traffic: Traffic
    panics: Panics
    log: QueryLog | None = None
    """Is told of every response."""
    connections: set["TcpConnection"] = field(default_factory=set)
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection has gone."""
    refused: int = 0
    """Connections closed because there were too many."""
    expired: int = 0
    """Connections closed because the client was too slow, or idle."""
    draining: bool = False
    """Whether a connection ends once it has nothing left to answer."""


class TcpConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, state: TcpState, transport_number: int) -> None:
        self._state = state
        self._number = transport_number
        self._reader = MessageReader()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._answering = False
        """Whether a turn of the loop is booked to answer more of what has been read."""
        self._blocked = False
        """Whether the client does not read."""
        self._waiting = 0
        """Queries whose response is being found out."""
        self._ended = False
        """Whether the client has sent its last octet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it."""
        transport = cast("asyncio.Transport", transport)  # by its methods: uvloop's is no subclass
        if len(self._state.connections) >= self._state.limits.connections:
            self._state.refused += 1
            transport.abort()
            return
        self._transport = transport
        self._peer = transport.get_extra_info("peername")
        self._client = str(self._peer[0])
        self._state.connections.add(self)
        self._state.empty.clear()
        self._expire_after(self._state.limits.message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the client is gone either way
        """Forget the connection."""
        self._transport = None
        self._state.connections.discard(self)
        if not self._state.connections:
            self._state.empty.set()
        self._expire_never()

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        fresh = not self._reader.pending
        self._reader.feed(data)
        if fresh:
            self._expire_after(self._state.limits.message)
        if not self._answering:
            self._answer()

    def eof_received(self) -> bool:
        """Answer the rest, then close: a client may half-close after its last query."""
        self._ended = True
        self._close_if_done()
        return True

    def pause_writing(self) -> None:
        """The client does not read: neither do we, and it has not for ever."""
        self._blocked = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._expire_after(self._state.limits.write)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked = False
        if not self._answering:
            self._answer()

    def close_when_idle(self) -> None:
        """Close now if everything that was asked has been answered, else after it has been."""
        self._close_if_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _answer(self) -> None:
        """Answer up to a batch; book another turn if there is more."""
        self._answering = False
        if self._transport is None or self._blocked or self._transport.is_closing():
            return
        answered = False
        for _ in range(BATCH):
            message = self._reader.next_message()
            if message is None:
                break
            answered = self._answer_one(message, self._transport) or answered
            if self._blocked:
                return  # type: ignore[unreachable]  # writing may have called pause_writing
        else:
            self._answering = True
            self._loop.call_soon(self._answer)
        if self._transport.is_closing():
            return
        if self._answering:
            self._transport.pause_reading()
            self._expire_after(self._state.limits.write)
            return
        self._transport.resume_reading()
        if not self._reader.pending:
            self._expire_when_idle()
        elif answered:
            self._expire_after(self._state.limits.message)
        self._close_if_done()

    def _answer_one(self, message: bytes, transport: asyncio.Transport) -> bool:
        """Answer a message, now or later; False if it gets no answer."""
        log = self._state.log
        read_at = log.clock() if log is not None else 0.0
        response = self._respond(message)
        if isinstance(response, bytes):
            transport.write(frame(response))
            if log is not None:
                log.answered(message, response, self._peer, self._number, read_at)
        elif response is not None:
            if log is not None:
                response = log.follow(response, message, self._peer, self._number, read_at)
            self._waiting += 1
            response.begin(self._client, partial(self._deliver, time.perf_counter()))
        return response is not None

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
        if not self._blocked and not self._answering and not self._reader.pending:
            self._expire_when_idle()
        self._close_if_done()

    def _expire_when_idle(self) -> None:
        """The client may be idle for a while from the last response on."""
        if self._waiting:
            self._expire_never()
        else:
            self._expire_after(self._state.limits.idle)

    def _close_if_done(self) -> None:
        if self._transport is None or self._answering or self._blocked or self._waiting:
            return
        if self._ended or (self._state.draining and not self._reader.pending):
            self._transport.close()

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
