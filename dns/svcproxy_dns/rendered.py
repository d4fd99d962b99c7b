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
from svcproxy_dns.wire import RRType, encode_name, encode_pointer, encode_record

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
    """An answer with a part that differs each time."""

    def render(self, transport: int) -> bytes:
        """The response after the ID."""
        ...


class StartOfAuthority:
    """The zone's SOA as it looks in a response, by where the zone's name stands in the question."""

    __slots__ = ("_by_offset", "_serial", "_ttl")

    def __init__(self, ttl: int, serial: int) -> None:
        self._ttl = ttl
        self._serial = serial
        self._by_offset: dict[int, bytes] = {}
        """At most one for each offset in a name."""

    @property
    def serial(self) -> int:
        """The zone's serial (RFC 1035 §3.3.13), modulo 2³²."""
        return self._serial

    @serial.setter
    def serial(self, serial: int) -> None:
        self._serial = serial & 0xFFFFFFFF
        self._by_offset.clear()

    def record(self, offset: int) -> bytes:
        """The SOA record in a message whose octet `offset` begins the zone's name."""
        record = self._by_offset.get(offset)
        if record is None:
            zone = encode_pointer(offset)
            mname, rname = encode_name("ns.dns")[:-1] + zone, encode_name("hostmaster")[:-1] + zone
            times = struct.pack(">5I", self._serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, self._ttl)
            record = encode_record(zone, RRType.SOA, min(self._ttl, SOA_TTL_MAX), mname + rname + times)
            self._by_offset[offset] = record
        return record


class WithSoa:
    """A response with the SOA as it is when asked: the answer at the apex, or NODATA."""

    __slots__ = ("_front", "_offset", "_opt", "_soa")

    def __init__(self, front: bytes, soa: StartOfAuthority, offset: int, opt: bytes) -> None:
        self._front = front
        self._soa = soa
        self._offset = offset
        self._opt = opt

    def render(self, transport: int) -> bytes:  # noqa: ARG002  # fits every transport
        """The response after the ID."""
        return self._front + self._soa.record(self._offset) + self._opt


class Rotating:
    """Several addresses, in another order each time, as many as the transport carries."""

    __slots__ = ("_addresses", "_opt", "_tcp", "_udp")

    def __init__(self, addresses: AddressSet, udp: tuple[bytes, int], tcp: tuple[bytes, int], opt: bytes) -> None:
        self._addresses = addresses
        self._udp = udp
        """Header after the ID and question, and the number of records."""
        self._tcp = tcp
        self._opt = opt

    def render(self, transport: int) -> bytes:
        """The response after the ID."""
        front, count = self._tcp if transport & TCP else self._udp
        return front + self._addresses.take(count) + self._opt


Kept = tuple[bytes | Answer, Tally, Source, int]
"""The response after the ID or what makes it, the counter it belongs to, and the source with the revision it is of."""


class Rendered:
    """Answers kept by query after the ID. Whoever finds one compares its revision with its source's."""

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
    return ENTRY_OCTETS + (len(kept[0]) if isinstance(kept[0], bytes) else 0)
