# SPDX-License-Identifier: Apache-2.0
"""DNS over one UDP socket. A shell: it moves datagrams and counts them."""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from svcproxy_dns.datagrams import (
    RECEIVED_AT,
    RECEIVED_STRIDE,
    SENT_AT,
    SENT_STRIDE,
    SLOT_OCTETS,
    SLOTS,
    Ancillary,
    Slots,
)
from svcproxy_dns.elsewhere import Later
from svcproxy_dns.listeners import is_wildcard, report_destination, transport_of
from svcproxy_dns.panics import Panics
from svcproxy_dns.query_log import QueryLog
from svcproxy_dns.traffic import Traffic

BATCH = 2 * SLOTS
"""Datagrams answered in one turn of the loop: under a millisecond, so that nothing else waits longer."""
LATER_BATCH = 8
"""Those that have to be found out elsewhere and are begun in one turn: each costs as much as ten that are at hand."""

Respond = Callable[[bytes, int], bytes | Later | None]
"""Message and transport in, response or what finds it out back; None for silence."""


class UdpListener:
    """Answers what arrives on a socket, from the address that it was sent to."""

    def __init__(self, sock: socket.socket, respond: Respond, traffic: Traffic, panics: Panics) -> None:
        self.socket = sock
        self._respond = respond
        self._traffic = traffic
        self._panics = panics
        self._transport = transport_of(sock)
        self._wildcard = is_wildcard(sock)
        self._slots = Slots(sock, destinations=self._wildcard)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.log: QueryLog | None = None
        """Is told of every response."""
        self.unsent = 0
        """Responses that the kernel refused: no room in the socket, no route, forbidden by a filter."""
        self._waiting = 0
        self._postponed: deque[tuple[Later, _Client]] = deque()
        """Those for whom nothing has been begun yet; while there are any, nothing is read."""
        self.quiet = asyncio.Event()
        """Set while no response is being found out."""
        self.quiet.set()

    def start(self) -> None:
        """Read from now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        if self._wildcard:
            report_destination(self.socket)
        self._loop.add_reader(self.socket, self._answer_batch)

    def stop(self) -> None:
        """Read no more. Datagrams that wait stay in the socket for whoever reads it next."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket)
            self._loop = None

    def _answer_batch(self) -> None:
        answer = self._answer if self.log is None else partial(self._answer_logged, self.log)
        for _ in range(BATCH // SLOTS):
            if self._postponed:
                return
            count = self._slots.receive()
            if count:
                answer(count)
            if count < SLOTS:
                return

    def _answer(self, count: int) -> None:
        """Answer what is in the first slots. Responses are written back into them, and sent together."""
        began = time.perf_counter()
        respond, transport, elsewhere = self._respond, self._transport, self._traffic.elsewhere
        slots, received, sent = self._slots.slots, self._slots.received, self._slots.sent
        at_hand = elsewhere.at_hand
        unsent = start = others = 0
        for number in range(count):
            message = slots[number][: received[RECEIVED_AT + number * RECEIVED_STRIDE]].tobytes()
            try:
                response = respond(message, transport)
            except Exception:  # noqa: BLE001  # the way of one query ends here, not the worker's
                response = self._panics.response(message)
            if isinstance(response, bytes) and (octets := len(response)) <= SLOT_OCTETS:
                slots[number][:octets] = response
                sent[SENT_AT + number * SENT_STRIDE] = octets
                continue
            if start < number:
                unsent += self._slots.send(start, number)
            start = number + 1
            if isinstance(response, bytes):
                unsent += not self._send(self._slots.source(number), self._slots.sender(number), response)
            else:
                others += 1
                if response is not None:
                    client = _Client(self, message, self._slots.source(number), self._slots.sender(number), began)
                    self._postpone(response, client)
        if start < count:
            unsent += self._slots.send(start, count)
        self.unsent += unsent
        self._traffic.took(time.perf_counter() - began, count - others, elsewhere.at_hand - at_hand)
        if self._postponed:
            self._begin_postponed()

    def _answer_logged(self, log: QueryLog, count: int) -> None:
        """The same, but each response is sent by itself and told to the log."""
        transport, elsewhere = self._transport, self._traffic.elsewhere
        for number in range(count):
            began, read_at, at_hand = time.perf_counter(), log.clock(), elsewhere.at_hand
            message = self._slots.slots[number][
                : self._slots.received[RECEIVED_AT + number * RECEIVED_STRIDE]
            ].tobytes()
            source, address = self._slots.source(number), self._slots.sender(number)
            try:
                response = self._respond(message, transport)
            except Exception:  # noqa: BLE001  # as above
                response = self._panics.response(message)
            if isinstance(response, bytes):
                self.unsent += not self._send(source, address, response)
                self._traffic.took(time.perf_counter() - began, 1, elsewhere.at_hand - at_hand)
                log.answered(message, response, address, transport, read_at)
            elif response is not None:
                later = log.follow(response, message, address, transport, read_at)
                self._postpone(later, _Client(self, message, source, address, began))
        if self._postponed:
            self._begin_postponed()

    def _postpone(self, later: Later, client: "_Client") -> None:
        self._waiting += 1
        self.quiet.clear()
        self._postponed.append((later, client))

    def _begin_postponed(self) -> None:
        """Begin to find out what a batch has left; some, and the others in turns of the loop to come."""
        for _ in range(min(LATER_BATCH, len(self._postponed))):
            later, client = self._postponed.popleft()
            try:
                later.begin(client.address[0], client.deliver)
            except Exception:  # noqa: BLE001  # as above
                client.deliver(self._panics.response(client.message))
        if self._postponed:
            asyncio.get_running_loop().call_soon(self._begin_postponed)

    def deliver(self, client: "_Client", response: bytes | None) -> None:
        """Send what has been found out."""
        self._waiting -= 1
        if not self._waiting:
            self.quiet.set()
        if response is not None:
            self.unsent += not self._send(client.source, client.address, response)
            self._traffic.elsewhere.durations.observe(time.perf_counter() - client.began)

    def _send(self, source: list[Ancillary], client: Any, response: bytes) -> bool:
        """Send one response; False if the kernel refuses it."""
        try:
            self.socket.sendmsg([response], source, 0, client)
        except OSError:
            return False
        return True


class _Client:
    """Who waits for a response."""

    __slots__ = ("_listener", "address", "began", "message", "source")

    def __init__(
        self, listener: UdpListener, message: bytes, source: list[Ancillary], address: Any, began: float
    ) -> None:
        self._listener: UdpListener | None = listener
        self.message = message
        self.source = source
        self.address = address
        self.began = began

    def deliver(self, response: bytes | None) -> None:
        """Send the response, the first time."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.deliver(self, response)
