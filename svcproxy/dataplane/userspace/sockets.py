# SPDX-License-Identifier: Apache-2.0
"""The system calls about sockets that the relays share: opening, adopting, refusing, resetting.

A frontend without a usable backend keeps its address. A bound TCP socket that does not listen makes the kernel answer
with a reset; a bound UDP socket that is connected to itself takes nothing from anyone, so the kernel answers with port
unreachable. Both turn back into serving sockets without a bind that could fail or lose the address to somebody else.
"""

import ctypes
import errno
import os
import socket
import struct

from svcproxy.dataplane.userspace.places import Place
from svcproxy.model.meta import Family, Protocol

LISTEN_BACKLOG = 4096
"""Connections the kernel completes before we accept them; it caps this at net.core.somaxconn."""

KEEPALIVE_IDLE = 600
"""Seconds of silence before the kernel asks whether a peer still exists."""

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors that say that the process or the node has no descriptors or memory left: waiting helps."""

_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_TYPES = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)
_libc = ctypes.CDLL(None, use_errno=True)

_REASONS = {
    errno.EADDRNOTAVAIL: "the address is not on this node",
    errno.EACCES: "binding this port needs CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another socket has this address and port",
    errno.EAFNOSUPPORT: "the node has no such address family",
    errno.EMFILE: "this process has no file descriptors left",
    errno.ENFILE: "the node has no file descriptors left",
}


def family_constant(ip: str) -> socket.AddressFamily:
    """The socket family of an address in text form."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def reason(error: OSError) -> str:
    """For people: why a frontend cannot be opened."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def open_bound(place: Place) -> socket.socket:
    """A non-blocking socket bound to the place, not listening. Raises OSError."""
    sock = socket.socket(_FAMILIES[place.family], _TYPES[place.protocol])
    try:
        sock.setblocking(False)
        if place.family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if place.protocol is Protocol.TCP:
            # What accepted sockets inherit is set here, once.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.bind((place.ip, place.port))
    except BaseException:
        sock.close()
        raise
    return sock


def adoptable(sock: socket.socket, place: Place) -> bool:
    """Whether an inherited socket is what `open_bound` would have made for the place."""
    try:
        bound = sock.getsockname()
    except OSError:
        return False
    return (
        sock.family == _FAMILIES[place.family]
        and sock.type == _TYPES[place.protocol]
        and bound[0] == place.ip
        and bound[1] == place.port
    )


def is_listening(sock: socket.socket) -> bool:
    """Whether a TCP socket listens."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def stop_listening(sock: socket.socket) -> None:
    """Make connections be refused and keep the address (Linux: shutdown of a listening socket is reversible).

    Connections that were completed and not accepted are reset: accept them first.
    """
    sock.shutdown(socket.SHUT_RD)


def refuse_datagrams(sock: socket.socket) -> None:
    """Make datagrams meet port unreachable and keep the address. Datagrams queued earlier stay queued."""
    sock.connect(sock.getsockname())


def accept_datagrams(sock: socket.socket) -> None:
    """Undo `refuse_datagrams`; connect(2) with AF_UNSPEC, which Python's `connect` cannot say. Raises OSError."""
    if _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def open_towards(ip: str, protocol: Protocol) -> socket.socket:
    """A non-blocking socket for a flow to a backend. Raises OSError."""
    sock = socket.socket(family_constant(ip), _TYPES[protocol] | socket.SOCK_NONBLOCK)
    if protocol is Protocol.TCP:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    return sock


def reset_on_close(sock: socket.socket) -> None:
    """Make the close a reset: what is not sent is dropped and the peer sees an error, not an end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        return  # the connection is gone already; so is what a reset would say
