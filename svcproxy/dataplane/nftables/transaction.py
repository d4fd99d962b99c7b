# SPDX-License-Identifier: Apache-2.0
"""The sockets to nf_tables: one that changes and lists, one that hears of changes.

Calls block while the kernel works: milliseconds for a batch of thousands of elements, seconds for a list of hundreds of
thousands. One thread at a time; a table with an owner belongs to the `Kernel` that made or claimed it, and is free for
another when that closes.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from svcproxy.dataplane.nftables import messages
from svcproxy.dataplane.nftables.answers import (
    Answer,
    Content,
    Elements,
    Generation,
    ListEnd,
    ObjectState,
    Reply,
    StoredElement,
    TableState,
    parse,
)
from svcproxy.dataplane.nftables.messages import Element, Kind, Request, Table
from svcproxy.dataplane.nftables.netfilter import SOL_NETLINK, NetfilterSocket, datagrams, drain
from svcproxy.dataplane.nftables.netlink import ErrorReport, is_acknowledgement
from svcproxy.errors import DataplaneLost, DecodeError
from svcproxy.model.meta import Family

SEND_BUFFER_OCTETS = 16 << 20
"""A batch has to fit. An element takes about 50 octets in it."""
RECEIVE_BUFFER_OCTETS = 4 << 20
"""For the answers to a batch in which everything fails, and for changes that wait to be heard of."""
LIST_ATTEMPTS = 10
"""How often a list is asked for that others change while it is written."""


@dataclass(frozen=True, slots=True)
class Committed:
    """All of the batch is in force."""

    removed: tuple[Elements, ...] = ()
    """What requests with `echo` took out, with its final counters."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a batch is refused, as far as one request is concerned."""

    index: int | None
    """Of the request; None when it is about the batch as a whole."""
    errno: int
    text: str = ""
    """The kernel's words, if it has any."""
    element: int | None = None
    """Index of the element that is refused, in a request of elements and if the kernel says."""

    def __str__(self) -> str:
        said = f": {self.text}" if self.text else ""
        return f"{errno.errorcode.get(self.errno, self.errno)} ({os.strerror(self.errno)}){said}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Nothing of the batch is in force."""

    failures: tuple[Failure, ...]
    """At least one, in the order of the requests."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of requests that were sent in as many batches as it took."""

    in_force: int
    """Number of the requests that are in force, from the first on."""
    failures: tuple[Failure, ...] = ()
    """Why not all of them are. Indices count in all the requests."""


class Kernel(NetfilterSocket):
    """Changes nf_tables and lists what is there, over one socket in the network namespace of the caller.

    Every call raises `DataplaneLost` when the kernel's answer is lost or cannot be understood: what was asked for may
    be in force or not. Closed, its tables lose their owner; without PERSIST they go.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        super().__init__(SEND_BUFFER_OCTETS, RECEIVE_BUFFER_OCTETS)
        self._sequence = 0

    @property
    def port(self) -> int:
        """By which the kernel names this socket: as a table's owner, as the cause of a change."""
        port: int = self._sock.getsockname()[0]
        return port

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        """Put all of the requests in force, or none.

        A batch too large for the socket or the memory is `Rejected` with EMSGSIZE, ENOBUFS or ENOMEM and no index,
        any batch of a process without CAP_NET_ADMIN with EPERM and no index.
        """
        if not requests:
            return Committed()
        first = self._take(len(requests) + 2)
        try:
            self._sock.send(messages.batch(requests, first))
        except OSError as exc:
            if exc.errno not in _TOO_LARGE:
                raise DataplaneLost(f"netlink: {exc.strerror}") from exc
            return Rejected((Failure(None, exc.errno),))
        return self._outcome(requests, first)

    def load(self, requests: Sequence[Request]) -> Loaded:
        """Put the requests in force in order, in one batch or, if that is too large, in as few as the kernel takes.

        For filling what nothing refers to yet. Stops at the first batch that is rejected for what is in it.
        """
        done, pending = 0, [(0, len(requests))]
        while pending:
            start, end = pending.pop()
            outcome = self.commit(requests[start:end])
            if isinstance(outcome, Committed):
                done = end
            elif end - start > 1 and all(each.errno in _TOO_LARGE and each.index is None for each in outcome.failures):
                middle = (start + end) // 2
                pending += [(middle, end), (start, middle)]
            else:
                return Loaded(done, tuple(_moved(each, start) for each in outcome.failures))
        return Loaded(done)

    def generation(self) -> Generation:
        """The state of the ruleset: it changes with every commit, whoever makes it."""
        match self._ask(messages.get_generation()):
            case Generation() as generation:
                return generation
            case other:
                raise DataplaneLost(f"asked for its generation, the kernel says {other}")

    def tables(self, family: Family) -> tuple[TableState, ...]:
        """The tables of a family, whosever they are."""
        listed = self._list(messages.list_tables(family)) or ()
        return tuple(each for each in listed if isinstance(each, TableState))

    def chains(self, table: Table) -> tuple[ObjectState, ...]:
        """A table's chains; none if there is no such table."""
        return self._objects(messages.list_chains(table), table)

    def sets(self, table: Table) -> tuple[ObjectState, ...]:
        """A table's sets and maps; none if there is no such table."""
        return self._objects(messages.list_sets(table), table)

    def rules(self, table: Table) -> tuple[ObjectState, ...]:
        """A table's rules in order, each with the name of its chain; none if there is no such table."""
        return self._objects(messages.list_rules(table), table)

    def elements(self, table: Table, name: str, *, complete: bool = True) -> tuple[StoredElement, ...] | None:
        """The elements of a set or map; None if there is no such set.

        While the kernel makes a hash table larger or smaller, which it goes on with after a batch is acknowledged, a
        list lacks some elements, and may have others twice instead. It is asked for again, unless it need not be
        `complete`.
        """
        for attempt in range(LIST_ATTEMPTS):
            listed = self._list(messages.list_elements(table, name))
            if listed is None:
                return None
            stored = tuple(each for part in listed if isinstance(part, Elements) for each in part.elements)
            if not complete:
                return stored
            once = len({_identity(each.element) for each in stored}) == len(stored)
            if once and (attempt == LIST_ATTEMPTS - 1 or len(stored) >= self._number_of_elements(table, name)):
                return stored
        raise DataplaneLost(f"{name}: {LIST_ATTEMPTS} lists in a row had elements twice")

    def _number_of_elements(self, table: Table, name: str) -> int:
        """How many there are; 0 if the kernel does not say."""
        return next((each.use for each in self.sets(table) if each.name == name), 0)

    def element(self, table: Table, name: str, element: Element) -> StoredElement | None:
        """The element with this one's key, as the kernel has it; None if it, its set or its table is not there."""
        match self._ask(messages.get_element(table, name, element)):
            case Elements(elements=(stored,)):
                return stored
            case Reply(ErrorReport(errno=errno.ENOENT)):
                return None
            case other:
                raise DataplaneLost(f"asked for an element of {name}, the kernel says {other}")

    def _ask(self, request: Request) -> Content:
        """The one answer to a request."""
        for answer in self._answers(self._send(request)):
            return answer.content
        raise DataplaneLost(f"{request.kind.name}: no answer")

    def _objects(self, request: Request, table: Table) -> tuple[ObjectState, ...]:
        listed = self._list(request) or ()
        return tuple(each for each in listed if isinstance(each, ObjectState) and each.table == table)

    def _list(self, request: Request) -> list[Content] | None:
        """What the kernel lists, consistent; None if that of which it should list the parts is not there."""
        for _ in range(LIST_ATTEMPTS):
            listed: list[Content] = []
            interrupted = False
            for answer in self._answers(self._send(request)):
                interrupted |= answer.interrupted
                match answer.content:
                    case Reply(report) | ListEnd(report) if report.errno == errno.ENOENT:
                        return None
                    case Reply(report) | ListEnd(report) if report.errno not in (0, errno.EINTR):
                        raise DataplaneLost(f"{request.kind.name}: {os.strerror(report.errno)} {report.text}".rstrip())
                    case Reply(report) | ListEnd(report):
                        interrupted |= report.errno == errno.EINTR
                        break
                    case content:
                        listed.append(content)
            else:
                raise DataplaneLost(f"{request.kind.name}: the list has no end")
            if not interrupted:
                return listed
        raise DataplaneLost(f"{request.kind.name}: {LIST_ATTEMPTS} lists in a row changed while they were written")

    def _outcome(self, requests: Sequence[Request], first: int) -> Committed | Rejected:
        """What the answers that wait say about a batch that was sent."""
        failures: list[Failure] = []
        removed: list[Elements] = []
        acknowledged = False
        last = messages.wrapped(first + len(requests))
        for datagram in self._datagrams():
            if is_acknowledgement(datagram, last):
                acknowledged = True
                continue
            for answer in _understood(datagram):
                index = messages.position(answer.sequence, first)
                if isinstance(answer.content, Elements) and answer.content.removed:
                    removed.append(answer.content)  # newer kernels give it sequence number 0
                    continue
                if not isinstance(answer.content, Reply) or not -1 <= index <= len(requests):
                    continue  # an answer to something given up
                report = answer.content.report
                if report.errno:
                    failures.append(_failure(requests, index, report))
                elif index == len(requests) - 1:
                    acknowledged = True
        if failures:
            return Rejected(tuple(failures))
        if not acknowledged:
            raise DataplaneLost("the kernel did not acknowledge a batch")
        return Committed(tuple(removed))

    def _take(self, count: int) -> int:
        """The first of `count` sequence numbers that are free."""
        first = self._sequence
        self._sequence = messages.wrapped(first + count)
        return first

    def _send(self, request: Request) -> int:
        sequence = self._take(1)
        try:
            self._sock.send(messages.encode(request, sequence))
        except OSError as exc:
            raise DataplaneLost(f"{request.kind.name}: {exc.strerror}") from exc
        return sequence

    def _answers(self, sequence: int) -> Iterator[Answer]:
        found = (answer for datagram in self._datagrams() for answer in _understood(datagram))
        return (answer for answer in found if answer.sequence == sequence)

    def _datagrams(self) -> Iterator[bytes]:
        try:
            yield from _datagrams(self._sock, self._buffer)
        except DataplaneLost:
            drain(self._sock)
            raise


class Watch(NetfilterSocket):
    """Hears of changes to nf_tables in the network namespace in which it was made, whoever makes them.

    Except for one socket's: the kernel drops those before they take up room, so that one's own thousands of changes a
    second neither cost time nor push out a foreign one.
    """

    def __init__(self, own_port: int) -> None:
        """Open it, for all but the socket of that port (`Kernel.port`). Raises OSError."""
        super().__init__(SEND_BUFFER_OCTETS, RECEIVE_BUFFER_OCTETS)
        try:
            _drop_messages_of(self._sock, own_port)
        except BaseException:
            self.close()
            raise

    def listen(self, attention: bool = True) -> None:
        """Hear of what changes from now on, or of nothing more; it does not at first."""
        membership = _NETLINK_ADD_MEMBERSHIP if attention else _NETLINK_DROP_MEMBERSHIP
        self._sock.setsockopt(SOL_NETLINK, membership, _NFNLGRP_NFTABLES)

    def changes(self) -> Iterator[Answer]:
        """What has changed since the last call. Raises `DataplaneLost` when there was too much of it to keep."""
        return (answer for datagram in _datagrams(self._sock, self._buffer) for answer in _understood(datagram))


_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_DROP_MEMBERSHIP = 2
_NFNLGRP_NFTABLES = 7
_SO_ATTACH_FILTER = 26
_TOO_LARGE = frozenset((errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM))


def _datagrams(sock: socket.socket, buffer: bytearray) -> Iterator[bytes]:
    """What the socket holds, read until it holds nothing. Raises `DataplaneLost` when something was lost."""
    try:
        yield from datagrams(sock, buffer)
    except OSError as exc:
        raise DataplaneLost(f"netlink: {exc.strerror}") from exc


def _understood(datagram: bytes) -> Iterator[Answer]:
    try:
        yield from parse(datagram)
    except DecodeError as exc:
        raise DataplaneLost(f"netlink: {exc}") from exc


def _identity(element: Element) -> tuple[bytes, bytes, bool]:
    return element.key, element.key_end, element.interval_end


def _failure(requests: Sequence[Request], index: int, report: ErrorReport) -> Failure:
    if not 0 <= index < len(requests):
        return Failure(None, report.errno, report.text)
    refused = requests[index]
    listed = report.offset is not None and refused.kind in (Kind.NEW_ELEMENTS, Kind.DELETE_ELEMENTS)
    element = messages.element_at(refused, report.offset or 0) if listed else None
    return Failure(index, report.errno, report.text, element)


def _moved(failure: Failure, by: int) -> Failure:
    return failure if failure.index is None else replace(failure, index=failure.index + by)


def _drop_messages_of(sock: socket.socket, port: int) -> None:
    """Have the kernel drop what that port causes: a classic BPF program that looks at `nlmsg_pid`."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 12),  # ld [12], in network order
            (0x15, 0, 1, socket.htonl(port)),  # jeq port: next, else skip one
            (0x06, 0, 0, 0),  # ret 0: drop
            (0x06, 0, 0, 0xFFFFFFFF),  # ret all of it
        )
    )
    octets = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(octets))
    )
