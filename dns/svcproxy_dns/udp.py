# SPDX-License-Identifier: Apache-2.0
"""DNS over one UDP socket. A shell: it moves datagrams and counts them."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from svcproxy_dns.elsewhere import Later
from svcproxy_dns.listeners import is_wildcard, report_destination, transport_of
from svcproxy_dns.query_log import QueryLog

BATCH = 64
"""Datagrams answered in one turn of the loop: under a millisecond, so that nothing else waits longer."""
LATER_BATCH = 8
"""Those of a turn that have to be found out elsewhere: each costs as much as ten that are at hand."""
DATAGRAM_OCTETS = 4096
"""Read of one datagram; a query is at most a few hundred octets and what lies beyond is ignored."""
_ANCILLARY_OCTETS = socket.CMSG_SPACE(32)
"""Room for an `in_pktinfo` or `in6_pktinfo`."""

_Ancillary = tuple[int, int, bytes]
Respond = Callable[[bytes, int], bytes | Later | None]
"""Message and transport in, response or what finds it out back; None for silence. Never raises."""


class UdpListener:
    """Answers what arrives on a socket, from the address that it was sent to."""

    def __init__(self, sock: socket.socket, respond: Respond) -> None:
        self.socket = sock
        self._respond = respond
        self._transport = transport_of(sock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log: QueryLog | None = None
        self.unsent = 0
        """Responses that the kernel refused: no room in the socket, no route, forbidden by a filter."""
        self._waiting = 0
        self.quiet = asyncio.Event()
        """Set while no response is being found out."""
        self.quiet.set()

    def use_log(self, log: QueryLog | None) -> None:
        """Tell the log of every response from now on."""
        self._log = log
        if self._loop is not None:
            self.start()

    def start(self) -> None:
        """Read from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        if is_wildcard(self.socket):
            report_destination(self.socket)
        if self._log is not None:
            self._loop.add_reader(self.socket, self._answer_batch_logged, self._log)
        elif is_wildcard(self.socket):
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
        later = 0
        for _ in range(BATCH):
            try:
                message, client = receive(DATAGRAM_OCTETS)
            except OSError:
                return
            response = respond(message, transport)
            if isinstance(response, bytes):
                try:
                    send(response, client)
                except OSError:
                    self.unsent += 1
            elif response is not None:
                self._answer_later(response, [], client)
                later += 1
                if later == LATER_BATCH:
                    return

    def _answer_batch_from_destination(self) -> None:
        later = 0
        for _ in range(BATCH):
            try:
                message, ancillary, _, client = self.socket.recvmsg(DATAGRAM_OCTETS, _ANCILLARY_OCTETS)
            except OSError:
                return
            response = self._respond(message, self._transport)
            source = [_as_source(item) for item in ancillary]
            if isinstance(response, bytes):
                self._send(source, client, response)
            elif response is not None:
                self._answer_later(response, source, client)
                later += 1
                if later == LATER_BATCH:
                    return

    def _answer_batch_logged(self, log: QueryLog) -> None:
        """As the others, but slower."""
        later = 0
        for _ in range(BATCH):
            try:
                message, ancillary, _, client = self.socket.recvmsg(DATAGRAM_OCTETS, _ANCILLARY_OCTETS)
            except OSError:
                return
            began = log.clock()
            response = self._respond(message, self._transport)
            source = [_as_source(item) for item in ancillary]
            if isinstance(response, bytes):
                self._send(source, client, response)
                log.answered(message, response, client, self._transport, began)
            elif response is not None:
                self._answer_later(log.follow(response, message, client, self._transport, began), source, client)
                later += 1
                if later == LATER_BATCH:
                    return

    def _answer_later(self, later: Later, source: list[_Ancillary], client: Any) -> None:
        self._waiting += 1
        self.quiet.clear()
        later.begin(client[0], partial(self._deliver, source, client))

    def _deliver(self, source: list[_Ancillary], client: Any, response: bytes) -> None:
        self._waiting -= 1
        if not self._waiting:
            self.quiet.set()
        self._send(source, client, response)

    def _send(self, source: list[_Ancillary], client: Any, response: bytes) -> None:
        try:
            self.socket.sendmsg([response], source, 0, client)
        except OSError:
            self.unsent += 1


def _as_source(item: _Ancillary) -> _Ancillary:
    """The control message that sends from the address that a received one names, on whichever route."""
    level, kind, octets = item
    if level == socket.IPPROTO_IP:  # in_pktinfo: interface, local address, destination
        return level, kind, bytes(4) + octets[4:8] + bytes(4)
    link_local = octets[0] == 0xFE and octets[1] & 0xC0 == 0x80
    return level, kind, octets if link_local else octets[:16] + bytes(4)  # in6_pktinfo: address, interface
