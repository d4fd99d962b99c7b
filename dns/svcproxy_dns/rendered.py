# SPDX-License-Identifier: Apache-2.0
"""Answers ready to be sent, by the query that asks for them. Pure.

An answer has a fixed part, made once, and perhaps a part that differs each time: the order of addresses, the serial of
the SOA. Bounds are in entries and octets; the oldest entry makes room.
"""

import struct
from collections import deque
from typing import Protocol

from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.service import Source
from svcproxy_dns.wire import (
    HEADER_OCTETS,
    TC,
    RRType,
    encode_labels,
    encode_pointer,
    encode_record,
    front,
)

KEPT_MAX = 65536
"""Answers kept: A and AAAA of every name of a large cluster, for the few spellings that clients use."""
KEPT_MAX_OCTETS = 32 << 20
"""Memory of the answers kept, by the estimate of `ENTRY_OCTETS`."""
ENTRY_OCTETS = 400
"""What an entry takes besides the octets of its key and its answer; measured on 64-bit CPython 3.11."""

SOA_REFRESH, SOA_RETRY, SOA_EXPIRE = 7200, 1800, 86400
"""Seconds; nobody transfers the zone, resolvers expect sane values."""
SOA_TTL_MAX = 300

TCP = 2
"""Transports are numbers: this bit says TCP, the lowest IPv6. They index a `Tally`."""

Tally = list[int]
"""Responses by transport."""


class Answer(Protocol):
    """An answer with a part that differs each time, or with what the transport carries."""

    @property
    def octets(self) -> int:
        """Estimate of the memory that it holds alone."""
        ...

    def render(self, limit: int, opt: bytes) -> bytes:
        """The response after the ID within `limit` octets, ID and OPT included. `opt`: the OPT record, or empty."""
        ...


class StartOfAuthority:
    """The SOA of every zone as it looks in a response, by where the zone's name stands in the question.

    The server and the mailbox have their names in the question's zone, or, if that holds addresses, in `primary`: a
    cluster domain's name on the wire.
    """

    __slots__ = ("_by_place", "_primary", "_serial", "_ttl")

    def __init__(self, ttl: int, serial: int, primary: bytes) -> None:
        self._ttl = ttl
        self._serial = serial
        self._primary = primary
        self._by_place: dict[tuple[int, bool], bytes] = {}
        """By where the zone's name stands: in the question, or at the end of aliases, of which there are few."""

    @property
    def serial(self) -> int:
        """The zone's serial (RFC 1035 §3.3.13), modulo 2³²."""
        return self._serial

    @serial.setter
    def serial(self, serial: int) -> None:
        self._serial = serial & 0xFFFFFFFF
        self._by_place.clear()

    def record(self, offset: int, reverse: bool) -> bytes:
        """The SOA record in a message whose octet `offset` begins the zone's name."""
        record = self._by_place.get((offset, reverse))
        if record is None:
            zone = encode_pointer(offset)
            domain = self._primary if reverse else zone
            names = encode_labels(("ns", "dns")) + domain + encode_labels(("hostmaster",)) + domain
            times = struct.pack(">5I", self._serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, self._ttl)
            record = encode_record(zone, RRType.SOA, min(self._ttl, SOA_TTL_MAX), names + times)
            self._by_place[offset, reverse] = record
        return record


class WithSoa:
    """A response with the SOA as it is when asked: the answer at the apex, or NODATA."""

    __slots__ = ("_answers", "_flags", "_place", "_question", "_soa")

    def __init__(
        self, flags: int, question: bytes, soa: StartOfAuthority, place: tuple[int, bool], answer: int
    ) -> None:
        """`place`: see `StartOfAuthority.record`. `answer`: 1 if the SOA is the answer, 0 if it says there is none."""
        self._flags = flags
        self._question = question
        self._soa = soa
        self._place = place
        self._answers = answer

    @property
    def octets(self) -> int:
        """See `Answer`."""
        return len(self._question)

    def render(self, limit: int, opt: bytes) -> bytes:  # noqa: ARG002  # fits every transport
        """The response after the ID."""
        answer = self._answers
        head = front(self._flags, self._question, answer, 1 - answer, 1 if opt else 0)
        return head + self._soa.record(*self._place) + opt


class Rotating:
    """The addresses of the question's name, in another order each time, as many as the transport carries."""

    __slots__ = ("_addresses", "_flags", "_question")

    def __init__(self, flags: int, question: bytes, addresses: AddressSet) -> None:
        self._flags = flags
        self._question = question
        self._addresses = addresses

    @property
    def octets(self) -> int:
        """See `Answer`."""
        return len(self._question)

    def render(self, limit: int, opt: bytes) -> bytes:
        """The response after the ID. TC says that there are more (RFC 2181 §9)."""
        addresses = self._addresses
        room = limit - HEADER_OCTETS - len(self._question) - len(opt)
        every = len(addresses)
        count = min(every, room // addresses.record_octets)
        flags = self._flags if count == every else self._flags | TC
        return front(flags, self._question, count, 0, 1 if opt else 0) + addresses.take(count) + opt


Kept = tuple[bytes | Answer, Tally, Source, int]
"""The response after the ID and without OPT if every transport carries it, else what makes it; its counter;
and the source with the revision it is of."""


class Rendered:
    """Answers kept by query after the ID, without OPT. Whoever finds one compares its revision with its source's."""

    def __init__(self, *, entries: int = KEPT_MAX, octets: int = KEPT_MAX_OCTETS) -> None:
        self.answers: dict[bytes, Kept] = {}
        """For the look-up alone; `keep` writes."""
        self._entries = entries
        self._octets_max = octets
        self.octets = 0
        """The estimate of what the answers take."""
        self._order: deque[bytes] = deque()

    def keep(self, key: bytes, kept: Kept) -> None:
        """Keep an answer. In place of an earlier one of the same key it is as old as that one was."""
        earlier = self.answers.get(key)
        self.answers[key] = kept
        self.octets += _weight(kept)
        if earlier is None:
            self.octets += len(key)
            self._order.append(key)
        else:
            self.octets -= _weight(earlier)
        while len(self._order) > self._entries or self.octets > self._octets_max:
            oldest = self._order.popleft()
            self.octets -= len(oldest) + _weight(self.answers.pop(oldest))


def _weight(kept: Kept) -> int:
    """Octets of an entry without its key."""
    answer = kept[0]
    return ENTRY_OCTETS + (len(answer) if isinstance(answer, bytes) else answer.octets)
