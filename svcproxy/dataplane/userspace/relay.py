# SPDX-License-Identifier: Apache-2.0
"""One established pair of TCP connections: octets pass both ways until both ends are done, or one breaks.

Half-close: the end of one direction is passed on when all before it is, and the other direction goes on. Backpressure:
a side is read only while the other takes everything, so at most one read is ever held back for each direction. A reset
of one side becomes a reset of the other.
"""

import socket
from collections.abc import Callable

from svcproxy.dataplane.userspace.counters import FrontendCounters
from svcproxy.dataplane.userspace.poller import ERROR, HANG_UP, READ, WRITE, Poller
from svcproxy.dataplane.userspace.sockets import reset_on_close

READ_OCTETS = 256 << 10
"""Octets taken by one read; also the most that is held back for one direction."""


class End:
    """One of the two connections."""

    __slots__ = ("broken", "finished", "interest", "pending", "relay", "shut", "sock", "watched")

    def __init__(self, relay: "Relay", sock: socket.socket) -> None:
        self.relay = relay
        self.sock = sock
        self.interest = READ
        self.watched = True
        self.pending = memoryview(b"")
        """Octets that this connection has yet to take; the other end is not read meanwhile."""
        self.finished = False
        """The peer sent its end."""
        self.shut = False
        """We sent ours."""
        self.broken = False
        """The peer takes no more; what it sent earlier is still read."""

    def on_events(self, events: int) -> None:
        """Called by the poller."""
        relay = self.relay
        if events & WRITE and self.pending:
            relay.flush(self)
            if relay.closed:
                return
        if not events & ~WRITE:
            return
        if self.interest & READ:
            relay.pump(self)
        elif events & ERROR and not self.pending:
            relay.abort()
        elif events & HANG_UP and not self.interest:
            relay.unwatch(self)  # level-triggered: the hang-up would come again at every turn


class Relay:
    """Owns both sockets from the moment it is made."""

    __slots__ = ("_buffer", "_ended", "_poller", "backend", "client", "closed", "counters")

    def __init__(
        self,
        poller: Poller,
        buffer: memoryview,
        client: socket.socket,
        backend: socket.socket,
        counters: FrontendCounters,
        ended: Callable[["Relay"], None],
    ) -> None:
        """`buffer` holds `READ_OCTETS` and is shared: nothing is in it between two calls. `ended` is called once."""
        self._poller = poller
        self._buffer = buffer
        self.counters = counters
        self._ended = ended
        self.closed = False
        self.client = End(self, client)
        self.backend = End(self, backend)
        poller.watch(client, READ, self.client.on_events)
        poller.watch(backend, READ, self.backend.on_events)

    def pump(self, end: End) -> None:
        """Read once from `end` and pass on."""
        try:
            size = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        other = self.backend if end is self.client else self.client
        if not size:
            end.finished = True
            self._pass_end(end, other)
            return
        if end is self.client:
            self.counters.octets_in += size
        else:
            self.counters.octets_out += size
        try:
            sent = other.sock.send(self._buffer[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break(other, end)
            return
        if sent < size:
            other.pending = memoryview(bytes(self._buffer[sent:size]))
            self._set_interest(end)
            self._set_interest(other)

    def flush(self, end: End) -> None:
        """Pass on what was held back for `end`."""
        other = self.backend if end is self.client else self.client
        try:
            sent = end.sock.send(end.pending)
        except BlockingIOError:
            return
        except OSError:
            end.pending = memoryview(b"")
            self._break(end, other)
            return
        end.pending = end.pending[sent:]
        if end.pending:
            return
        self._set_interest(end)
        self._set_interest(other)

    def abort(self) -> None:
        """Reset both connections."""
        if not self.closed:
            reset_on_close(self.client.sock)
            reset_on_close(self.backend.sock)
            self._close()

    def unwatch(self, end: End) -> None:
        """Events of `end` say nothing until its interest changes."""
        self._poller.forget(end.sock)
        end.watched = False

    def _pass_end(self, end: End, other: End) -> None:
        """`end` sent its end, and nothing of it is held back: it was not read otherwise."""
        if end.broken or other.broken:
            self.abort()
            return
        try:
            other.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        other.shut = True
        if end.shut:
            self._close()
        else:
            self._set_interest(end)

    def _break(self, end: End, source: End) -> None:
        """`end` refused octets: its peer is gone. Read what that sent before, then reset both."""
        end.broken = True
        if end.finished:
            self.abort()
            return
        self._set_interest(source)
        self._set_interest(end)

    def _set_interest(self, end: End) -> None:
        other = self.backend if end is self.client else self.client
        interest = WRITE if end.pending else 0
        if not (end.finished or other.pending or other.broken):
            interest |= READ
        if interest == end.interest:
            return
        end.interest = interest
        if end.watched:
            self._poller.change(end.sock, interest)
        elif interest:
            self._poller.watch(end.sock, interest, end.on_events)
            end.watched = True

    def _close(self) -> None:
        self.closed = True
        self._poller.close_socket(self.client.sock)
        self._poller.close_socket(self.backend.sock)
        self._ended(self)
        del self.client, self.backend  # the two refer to the relay: without this only the collector would free them
