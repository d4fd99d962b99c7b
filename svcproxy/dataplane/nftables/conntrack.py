# SPDX-License-Identifier: Apache-2.0
"""The socket to connection tracking: lists and removes flows, reads statistics.

Calls block while the kernel works: it walks the whole table for each list, about 10 ms for one of 262,144 buckets, and
what the filter admits is decoded, about 20 µs a flow. One thread at a time.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from svcproxy.dataplane.nftables import ctnetlink
from svcproxy.dataplane.nftables.ctnetlink import Answer, Content, CpuStatistics, End, Filter, Flow, Occupancy
from svcproxy.dataplane.nftables.netfilter import datagrams, drain, open_socket
from svcproxy.errors import ConntrackError, DecodeError

BUFFER_OCTETS = 1 << 20
"""Of the socket, each way: room for the answers to a batch of removals."""
REMOVALS_PER_SEND = 128
"""Removals asked for at once."""

_SEQUENCE_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Statistics:
    """How connection tracking fares in this network namespace."""

    entries: int
    maximum: int
    """0 if the kernel does not say."""
    cpus: tuple[CpuStatistics, ...]

    @property
    def insert_failed(self) -> int:
        """Flows that could not be entered, of which the first packet was dropped; modulo 2^32 for each CPU."""
        return sum(cpu.insert_failed for cpu in self.cpus)

    @property
    def dropped(self) -> int:
        """Packets dropped for want of memory or room; modulo 2^32 for each CPU."""
        return sum(cpu.drop for cpu in self.cpus)

    @property
    def early_dropped(self) -> int:
        """Flows removed to make room; modulo 2^32 for each CPU."""
        return sum(cpu.early_drop for cpu in self.cpus)


class Conntrack:
    """Flows and statistics of the network namespace in which it was made. Needs CAP_NET_ADMIN.

    Every call raises `ConntrackError` when the kernel refuses or its answer is lost; the next call starts afresh.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._sock = open_socket(BUFFER_OCTETS, BUFFER_OCTETS)
        self._sequence = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def flows(self, wanted: Filter) -> Generator[Flow, None, None]:
        """The flows that the filter admits, as they are read.

        The list is no snapshot: a flow may be in it twice, and one that came meanwhile may be missing. An iterator that
        is not read to its end has to be closed before the next call.
        """
        with closing(self._list(lambda sequence: ctnetlink.list_flows(wanted, sequence))) as listed:
            for content in listed:
                if isinstance(content, Flow) and wanted.admits(content):
                    yield content

    def delete(self, flows: Sequence[Flow]) -> int:
        """Remove flows, and return how many were there to be removed."""
        removed = 0
        for start in range(0, len(flows), REMOVALS_PER_SEND):
            batch = flows[start : start + REMOVALS_PER_SEND]
            removed += self._delete(batch)
        return removed

    def statistics(self) -> Statistics:
        """Counters since boot, and how full the table is now."""
        cpus = tuple(each for each in self._list(ctnetlink.get_statistics) if isinstance(each, CpuStatistics))
        match self._ask(ctnetlink.get_occupancy):
            case Occupancy(entries=entries, maximum=maximum):
                return Statistics(entries, maximum, cpus)
            case End(report):
                raise _refused(report.errno)
            case other:
                raise ConntrackError(f"asked how full its table is, the kernel says {other}")

    def _delete(self, batch: Sequence[Flow]) -> int:
        first = self._take(len(batch))
        self._write(b"".join(ctnetlink.delete_flow(flow, first + index) for index, flow in enumerate(batch)))
        codes = [
            answer.content.report.errno
            for answer in self._answers()
            if first <= answer.sequence < first + len(batch) and isinstance(answer.content, End)
        ]
        for code in codes:
            if code not in (0, errno.ENOENT):
                raise _refused(code)
        if len(codes) != len(batch):
            raise ConntrackError(f"{len(batch)} flows were to be removed, {len(codes)} answers came")
        return codes.count(0)

    def _list(self, request: Callable[[int], bytes]) -> Generator[Content, None, None]:
        """What the kernel lists, without the end. Raises `ConntrackError` where the list is not complete."""
        sequence = self._take(1)
        self._write(request(sequence))
        complete = False
        try:
            for answer in self._answers():
                if answer.sequence != sequence:
                    continue  # an answer to something given up
                if answer.interrupted:
                    raise ConntrackError("the list is not consistent")
                if isinstance(answer.content, End):
                    if answer.content.report.errno:
                        raise _refused(answer.content.report.errno)
                    complete = True
                    return
                yield answer.content
            raise ConntrackError("the list has no end")
        finally:
            if not complete:
                drain(self._sock)

    def _ask(self, request: Callable[[int], bytes]) -> Content:
        """The one answer to a request."""
        sequence = self._take(1)
        self._write(request(sequence))
        answers = [answer.content for answer in self._answers() if answer.sequence == sequence]
        if len(answers) != 1:
            raise ConntrackError(f"{len(answers)} answers where there should be one")
        return answers[0]

    def _take(self, count: int) -> int:
        """The first of `count` sequence numbers that no answer under way has."""
        if self._sequence + count > _SEQUENCE_MAX:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def _write(self, octets: bytes) -> None:
        try:
            self._sock.send(octets)
        except OSError as exc:
            raise ConntrackError(f"netlink: {exc.strerror}") from exc

    def _answers(self) -> Iterator[Answer]:
        try:
            for datagram in datagrams(self._sock):
                yield from ctnetlink.parse(datagram)
        except (OSError, DecodeError) as exc:
            drain(self._sock)
            raise ConntrackError(f"netlink: {exc}") from exc


def _refused(code: int) -> ConntrackError:
    return ConntrackError(f"{errno.errorcode.get(code, code)} ({os.strerror(code)})")
