# SPDX-License-Identifier: Apache-2.0
"""The socket to connection tracking: lists and removes flows, reads statistics.

Calls block while the kernel works: it walks the whole table for each list, about 10 ms for one of 262,144 buckets, and
each flow that the kernel hands over takes about 5 µs here. One thread at a time.
"""

import errno
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

from svcproxy.dataplane.nftables import ctnetlink
from svcproxy.dataplane.nftables.ctnetlink import (
    Content,
    CpuStatistics,
    End,
    Filter,
    Flow,
    Occupancy,
    Translation,
    refusal,
)
from svcproxy.dataplane.nftables.listing import Listing
from svcproxy.dataplane.nftables.netfilter import NetfilterSocket, datagrams, drain
from svcproxy.errors import ConntrackError, DecodeError

BUFFER_OCTETS = 1 << 20
"""Of the socket, each way: room for the answers to a batch of removals."""
REMOVALS_PER_SEND = 128
"""Removals asked for at once."""
CROWDED_SHARE = 0.8
"""From which on a table is worth a warning."""

_SEQUENCE_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Statistics:
    """How connection tracking fares in this network namespace."""

    entries: int
    maximum: int
    """0 if the kernel does not say."""
    cpus: tuple[CpuStatistics, ...]

    @property
    def crowded(self) -> bool:
        """Whether the table is nearly full. When it is full, packets of new flows are dropped in silence."""
        return 0 < self.maximum * CROWDED_SHARE <= self.entries

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


class Conntrack(NetfilterSocket):
    """Flows and statistics of the network namespace in which it was made. Needs CAP_NET_ADMIN.

    Every call raises `ConntrackError` when the kernel refuses or its answer is lost; the next call starts afresh.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        super().__init__(BUFFER_OCTETS, BUFFER_OCTETS)
        self._sequence = 0

    def listing(self, wanted: Filter, picked: Set[Translation] = frozenset(), room: int = 0) -> Listing:
        """The translations of the flows that the filter admits, and the flows whose translation is `picked`."""
        listing = Listing(wanted, self._take(1), picked, room)
        self._write(ctnetlink.list_flows(wanted, self._sequence))
        with self._reading() as waiting:
            for datagram in waiting:
                listing.take(datagram)
        if not listing.complete:
            raise ConntrackError("the list has no end")
        return listing

    def delete(self, flows: Sequence[Flow]) -> int:
        """Remove flows, and return how many were there to be removed."""
        removed = 0
        for start in range(0, len(flows), REMOVALS_PER_SEND):
            batch = flows[start : start + REMOVALS_PER_SEND]
            removed += self._delete(batch)
        return removed

    def statistics(self) -> Statistics:
        """Counters since boot, and how full the table is now."""
        cpus = tuple(each for each in self._ask(ctnetlink.get_statistics) if isinstance(each, CpuStatistics))
        for content in self._ask(ctnetlink.get_occupancy):
            if isinstance(content, Occupancy):
                return Statistics(content.entries, content.maximum, cpus)
        raise ConntrackError("the kernel does not say how full its table is")

    def _delete(self, batch: Sequence[Flow]) -> int:
        first = self._take(len(batch))
        self._write(b"".join(ctnetlink.delete_flow(flow, first + index) for index, flow in enumerate(batch)))
        reports = [
            content.report
            for sequence, content in self._answers()
            if first <= sequence < first + len(batch) and isinstance(content, End)
        ]
        for report in reports:
            if report.errno not in (0, errno.ENOENT):
                raise refusal(report)
        if len(reports) != len(batch):
            raise ConntrackError(f"{len(batch)} flows were to be removed, {len(reports)} answers came")
        return sum(report.errno == 0 for report in reports)

    def _ask(self, request: Callable[[int], bytes]) -> list[Content]:
        """What the kernel answers."""
        asked = self._take(1)
        self._write(request(asked))
        contents = [content for sequence, content in self._answers() if sequence == asked]
        for content in contents:
            if isinstance(content, End) and content.report.errno:
                raise refusal(content.report)
        return contents

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

    def _answers(self) -> list[tuple[int, Content]]:
        """All that waits in the socket, with the numbers of the requests."""
        with self._reading() as waiting:
            return [(answer.sequence, answer.content) for datagram in waiting for answer in ctnetlink.parse(datagram)]

    @contextmanager
    def _reading(self) -> Iterator[Iterator[bytes]]:
        """What waits in the socket; after an error nothing does, so that it does not keep the next answers out."""
        try:
            yield datagrams(self._sock, self._buffer)
        except (OSError, DecodeError) as exc:
            drain(self._sock)
            raise ConntrackError(f"netlink: {exc}") from exc
        except ConntrackError:
            drain(self._sock)
            raise
