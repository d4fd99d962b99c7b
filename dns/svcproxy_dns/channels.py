# SPDX-License-Identifier: Apache-2.0
"""One socket for each attempt to ask an upstream, and one descriptor for the loop to wait for all of them. A shell.

Each is connected, so that the kernel draws its port at random and lets in nothing that comes from elsewhere (RFC 5452).
"""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable

from svcproxy_dns.forwarding import Ask
from svcproxy_dns.framing import MessageReader, frame
from svcproxy_dns.resolver import Flight
from svcproxy_dns.upstreams import Upstream

TURN_BATCH = 8
"""Replies, and time-outs, dealt with in one turn of the loop: about a millisecond, so that the zone's clients do not
wait when many come at once."""
DATAGRAM_OCTETS = 4096
"""Read of one datagram; we allow upstreams less, and what is cut is asked for again over TCP."""
_READ_OCTETS = 65536


class Channel:
    """One attempt's socket. Raises OSError if there is no sending or connecting."""

    __slots__ = ("attempt", "flight", "socket")

    def __init__(self, flight: Flight, ask: Ask, kind: socket.SocketKind) -> None:
        self.flight = flight
        self.attempt = ask.attempt
        family = socket.AF_INET6 if ":" in ask.upstream.host else socket.AF_INET
        self.socket = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._begin(ask)
        except OSError:
            self.socket.close()
            raise

    @property
    def events(self) -> int:
        """What to wait for."""
        return select.EPOLLIN

    def _begin(self, ask: Ask) -> None:
        raise NotImplementedError

    def proceed(self) -> bytes | None:
        """Go on, for something has happened: a whole message if there is one. Raises OSError if it is over."""
        raise NotImplementedError


class _UdpChannel(Channel):
    __slots__ = ()

    def _begin(self, ask: Ask) -> None:
        self.socket.connect(_destination(ask.upstream))
        self.socket.send(ask.message)

    def proceed(self) -> bytes | None:
        return self.socket.recv(DATAGRAM_OCTETS)


class _TcpChannel(Channel):
    __slots__ = ("_reader", "_unsent")

    def _begin(self, ask: Ask) -> None:
        self._unsent = frame(ask.message)
        self._reader = MessageReader()
        code = self.socket.connect_ex(_destination(ask.upstream))
        require(code in {0, errno.EINPROGRESS}, code)

    @property
    def events(self) -> int:
        return select.EPOLLOUT if self._unsent else select.EPOLLIN

    def proceed(self) -> bytes | None:
        if self._unsent:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            require(not code, code)
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
            return None
        octets = self.socket.recv(_READ_OCTETS)
        require(bool(octets), errno.ECONNRESET)
        self._reader.feed(octets)
        return self._reader.next_message()


def open_channel(flight: Flight, ask: Ask) -> Channel:
    """A channel for an attempt, its message sent or on its way. Raises OSError."""
    return _TcpChannel(flight, ask, socket.SOCK_STREAM) if ask.tcp else _UdpChannel(flight, ask, socket.SOCK_DGRAM)


class Sockets:
    """Waits for all sockets towards upstreams. The loop sees one descriptor: what it does for each costs more."""

    def __init__(self, happened: Callable[[Channel], None]) -> None:
        """`happened`: called when something has, at most `TURN_BATCH` times in one turn of the loop."""
        self._happened = happened
        self._epoll: select.epoll | None = None
        self._channels: dict[int, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: Channel) -> None:
        """Wait for a channel, see `happened`."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._poll)
        descriptor = channel.socket.fileno()
        self._channels[descriptor] = channel
        self._epoll.register(descriptor, channel.events)

    def renew(self, channel: Channel) -> None:
        """Another thing is to be waited for."""
        if self._epoll is not None:
            self._epoll.modify(channel.socket.fileno(), channel.events)

    def remove(self, channel: Channel) -> None:
        """Close a channel; the kernel then waits for it no longer (epoll(7))."""
        del self._channels[channel.socket.fileno()]
        channel.socket.close()

    def close(self) -> None:
        """Close all."""
        for channel in list(self._channels.values()):
            self.remove(channel)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0, TURN_BATCH):
            channel = self._channels.get(descriptor)
            if channel is not None:
                self._happened(channel)


def require(condition: bool, code: int) -> None:
    """Raise the OSError of that code unless it holds."""
    if not condition:
        raise OSError(code, os.strerror(code))


def _destination(upstream: Upstream) -> tuple[str, int] | tuple[str, int, int, int]:
    """Where an upstream is. Raises OSError if its interface does not exist."""
    if upstream.zone:
        return upstream.host, upstream.port, 0, socket.if_nametoindex(upstream.zone)
    return upstream.host, upstream.port
