# SPDX-License-Identifier: Apache-2.0
"""Packets with open descriptors, between processes that share a Unix socket (unix(7), SCM_RIGHTS)."""

import array
import os
import socket
from collections.abc import Sequence

from svcproxy.errors import HandoverError

DESCRIPTORS_MAX = 253
"""Descriptors in one packet (Linux, SCM_MAX_FD)."""
PACKET_OCTETS_MAX = 128 << 10

_INT = array.array("i").itemsize


def send_packet(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet. Raises `OSError`, `BlockingIOError` if there is no room for it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], rights)


def receive_packet(connection: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """One packet and the descriptors that came with it, closed on exec, which are the caller's to close.

    With `MSG_PEEK` in `flags` the packet stays in the socket, and so do its descriptors: these are copies. Raises
    `HandoverError` for a packet that is cut short and at the end of the stream, with nothing left open, and `OSError`.
    """
    space = socket.CMSG_SPACE(DESCRIPTORS_MAX * _INT)
    data, ancillary, found, _ = connection.recvmsg(PACKET_OCTETS_MAX, space, flags | socket.MSG_CMSG_CLOEXEC)
    received: list[int] = []
    for level, kind, octets in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received += array.array("i", octets[: len(octets) - len(octets) % _INT])
    if not data or found & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(received)
        raise HandoverError("cut short: out of descriptors, or too much at once" if data else "the other side left")
    return data, received


def close_all(descriptors: Sequence[int]) -> None:
    """Close each of them."""
    for descriptor in descriptors:
        os.close(descriptor)
