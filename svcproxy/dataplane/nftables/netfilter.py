# SPDX-License-Identifier: Apache-2.0
"""A socket to the kernel's netfilter subsystems, in the network namespace of the thread that opens it.

The kernel works on a request while it is sent, so that its answers wait in the socket when `send` returns; a list is
written as it is read. Nothing here waits for a time-out.
"""

import errno
import socket
from collections.abc import Iterator
from typing import Self

DATAGRAM_OCTETS = 1 << 17
"""The kernel fills 32 KiB at most with a list, and no message of netfilter is longer than 64 KiB and its head."""
MAX_DATAGRAMS = 1_000_000
"""Datagrams read in one go: far more than the longest list has."""

SOL_NETLINK = 270

_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def open_socket(send_octets: int, receive_octets: int) -> socket.socket:
    """A socket with buffers of that size. Raises OSError: EPROTONOSUPPORT where the kernel has no netfilter."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.setblocking(False)
        _enlarge(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, send_octets)
        _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_octets)
        sock.setsockopt(SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class NetfilterSocket:
    """What every kind of socket here has: a descriptor, a buffer to read into, an end."""

    def __init__(self, send_octets: int, receive_octets: int) -> None:
        """As `open_socket`. Raises OSError."""
        self._sock = open_socket(send_octets, receive_octets)
        self._buffer = bytearray(DATAGRAM_OCTETS)

    def fileno(self) -> int:
        """The socket's descriptor; readable when there is something to read."""
        return self._sock.fileno()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._sock.fileno() < 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def datagrams(sock: socket.socket, buffer: bytearray) -> Iterator[bytes]:
    """What the socket holds, read until it holds nothing. `buffer`: of `DATAGRAM_OCTETS`, to read into.

    Raises OSError when something was lost: ENOBUFS for datagrams there was no room for, EMSGSIZE for one cut short,
    EOVERFLOW when there is no end to them.
    """
    for _ in range(MAX_DATAGRAMS):
        try:
            octets = sock.recv_into(buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            return
        if octets > len(buffer):
            raise OSError(errno.EMSGSIZE, f"a datagram of more than {len(buffer)} octets")
        yield bytes(memoryview(buffer)[:octets])
    raise OSError(errno.EOVERFLOW, f"more than {MAX_DATAGRAMS} datagrams at once")


def drain(sock: socket.socket) -> None:
    """Pass over what the socket holds, whatever it is: what is left would keep the next answers out."""
    for _ in range(MAX_DATAGRAMS):
        try:
            sock.recv(1)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.ENOBUFS:  # there is more behind that
                return


def _enlarge(sock: socket.socket, forced: int, allowed: int, octets: int) -> None:
    """Have a buffer of that size or, in a user namespace, as much of it as the host's net.core limits allow."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, allowed, octets)
