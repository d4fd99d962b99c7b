# SPDX-License-Identifier: Apache-2.0
"""DNS over one UDP socket. A shell: it moves datagrams and counts them."""

import asyncio
import socket
from collections.abc import Callable

from svcproxy_dns.listeners import is_wildcard, report_destination, transport_of

BATCH = 64
"""Datagrams answered in one turn of the loop: under a millisecond, so that nothing else waits longer."""
DATAGRAM_OCTETS = 4096
"""Read of one datagram; a query is at most a few hundred octets and what lies beyond is ignored."""
_ANCILLARY_OCTETS = socket.CMSG_SPACE(32)
"""Room for an `in_pktinfo` or `in6_pktinfo`."""

Respond = Callable[[bytes, int], bytes | None]
"""Message and transport in, response out; None for silence. Never raises."""


class UdpListener:
    """Answers what arrives on a socket, from the address that it was sent to."""

    def __init__(self, sock: socket.socket, respond: Respond) -> None:
        self.socket = sock
        self._respond = respond
        self._transport = transport_of(sock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.unsent = 0
        """Responses that the kernel refused: no room in the socket, no route, forbidden by a filter."""

    def start(self) -> None:
        """Read from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        if is_wildcard(self.socket):
            report_destination(self.socket)
            self._loop.add_reader(self.socket, self._answer_batch_from_destination)
        else:
            self._loop.add_reader(self.socket, self._answer_batch)

    def stop(self) -> None:
        """Read no more. Datagrams that wait stay in the socket for whoever reads it next."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket)
            self._loop = None

    def _answer_batch(self) -> None:
        receive, send, respond, transport = self.socket.recvfrom, self.socket.sendto, self._respond, self._transport
        for _ in range(BATCH):
            try:
                message, client = receive(DATAGRAM_OCTETS)
            except OSError:
                return
            response = respond(message, transport)
            if response is not None:
                try:
                    send(response, client)
                except OSError:
                    self.unsent += 1

    def _answer_batch_from_destination(self) -> None:
        for _ in range(BATCH):
            try:
                message, ancillary, _, client = self.socket.recvmsg(DATAGRAM_OCTETS, _ANCILLARY_OCTETS)
            except OSError:
                return
            response = self._respond(message, self._transport)
            if response is not None:
                try:
                    self.socket.sendmsg([response], [_as_source(item) for item in ancillary], 0, client)
                except OSError:
                    self.unsent += 1


def _as_source(item: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    """The control message that sends from the address that a received one names, on whichever route."""
    level, kind, octets = item
    if level == socket.IPPROTO_IP:  # in_pktinfo: interface, local address, destination
        return level, kind, bytes(4) + octets[4:8] + bytes(4)
    link_local = octets[0] == 0xFE and octets[1] & 0xC0 == 0x80
    return level, kind, octets if link_local else octets[:16] + bytes(4)  # in6_pktinfo: address, interface
