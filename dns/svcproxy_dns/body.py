# SPDX-License-Identifier: Apache-2.0
"""The records of a response, encoded once, ready to be sent to whoever asks the question. Pure.

A question has the same length however it is spelled, and so the compressed names after it hold for each spelling: names
that end like the question are spelled like it.

Several addresses come in another order each time, so that each is first once in a round.
"""

import struct
from array import array
from collections.abc import Sequence

from svcproxy_dns.replies import Record, Relevant, Reply, names_in, read_reply
from svcproxy_dns.wire import (
    AD,
    CLASS_IN,
    HEADER_OCTETS,
    QR,
    RA,
    TC,
    TCP_MAX_OCTETS,
    Query,
    Rcode,
    RRType,
    encode_pointer,
)

BODY_OCTETS = 220
"""What a body takes besides its octets; measured on 64-bit CPython 3.11."""

_FIXED = struct.Struct(">2HIH")
_AFTER_ID = struct.Struct(">5H")
_TTL_OFFSET = 4
"""From the type of a record to its TTL."""
_POINTER_MAX = 0x3FFF
_POINTED_OCTETS = 12
"""A record before its rdata, owned by a name that stands elsewhere."""
_ADDRESS_OCTETS = {int(RRType.A): 4, int(RRType.AAAA): 16}
_COMPRESSED = frozenset({RRType.NS, RRType.CNAME, RRType.PTR, RRType.MX, RRType.SOA})
"""Types whose rdata every client can read compressed (RFC 3597 §4)."""


class Body:
    """What follows the question. Offsets are those of the octets."""

    __slots__ = ("_counts", "_octets", "_ring", "_ttl", "_ttl_offsets", "_turn", "authentic", "rcode")

    def __init__(
        self,
        qname: bytes,
        rcode: int,
        answers: Sequence[Record] = (),
        authorities: Sequence[Record] = (),
        additionals: Sequence[Record] = (),
        *,
        authentic: bool = False,
    ) -> None:
        """`qname` on the wire; records owned by it are spelled as it is asked."""
        self.rcode = rcode
        self.authentic = authentic
        """Whether the upstream has validated it (RFC 4035 §3.2.3)."""
        writer = _Writer(qname)
        for record in (*answers, *authorities, *additionals):
            writer.add(record)
        self._octets = bytes(writer.octets)
        """The records, each with the TTL `_ttl`."""
        self._ttl = 0
        self._ttl_offsets = array("H", writer.ttl_offsets)
        self._counts = len(answers), len(authorities), len(additionals)
        self._ring = _ring(answers, writer)
        self._turn = 0

    @classmethod
    def of(cls, qname: bytes, relevant: Relevant, *, authentic: bool) -> "Body":
        """Of what answers the question."""
        return cls(
            qname, relevant.rcode, relevant.answers, relevant.authorities, relevant.additionals, authentic=authentic
        )

    def records(self, qname: bytes) -> Reply:
        """The records, for a question about `qname`; TTLs are 0."""
        self._age(0)
        header = struct.pack(">6H", 0, QR, 1, *self._counts)
        return read_reply(header + qname + bytes(4) + self._octets)

    @property
    def weight(self) -> int:
        """Estimate of the octets of memory."""
        return BODY_OCTETS + len(self._octets) + 2 * len(self._ttl_offsets)

    def render(self, query: Query, limit: int, ttl: int, flags: int = 0) -> bytes:
        """The response after the ID, every record with that TTL.

        What does not fit in `limit` octets is left out from the end; TC says so if it is more than additional records
        (RFC 2181 §9).
        """
        opt = query.opt_record(Rcode.NOERROR)
        if ttl != self._ttl:  # the same for all who ask within a second
            self._age(ttl)
        octets, counts = self._turned(), self._counts
        room = limit - HEADER_OCTETS - len(query.question) - len(opt)
        if len(octets) > room:
            octets, counts = self._cut(octets, room)
            if counts[:2] != self._counts[:2]:
                flags |= TC
        if self.authentic and query.wants_authentic:
            flags |= AD
        header = _AFTER_ID.pack(
            query.response_flags(Rcode.NOERROR, flags | RA) | (self.rcode & 0xF),
            1,
            counts[0],
            counts[1],
            counts[2] + (1 if opt else 0),
        )
        return header + query.question + octets + opt

    def _age(self, ttl: int) -> None:
        octets, encoded = bytearray(self._octets), ttl.to_bytes(4, "big")
        for offset in self._ttl_offsets:
            octets[offset : offset + 4] = encoded
        self._octets, self._ttl = bytes(octets), ttl

    def _turned(self) -> bytes:
        """The octets, with the next address first."""
        if self._ring is None:
            return self._octets
        start, size, count = self._ring
        octets, middle, end = self._octets, start + self._turn * size, start + count * size
        self._turn = (self._turn + 1) % count
        return octets[:start] + octets[middle:end] + octets[start:middle] + octets[end:]

    def _cut(self, octets: bytes, room: int) -> tuple[bytes, tuple[int, int, int]]:
        """As many records as fit."""
        kept = end = 0
        for offset in self._ttl_offsets:
            following = offset + 6 + int.from_bytes(octets[offset + 4 : offset + 6], "big")
            if following > room:
                break
            kept, end = kept + 1, following
        answers, authorities, additionals = self._counts
        counts = (
            min(kept, answers),
            min(max(kept - answers, 0), authorities),
            min(max(kept - answers - authorities, 0), additionals),
        )
        return octets[:end], counts


def _ring(answers: Sequence[Record], writer: "_Writer") -> tuple[int, int, int] | None:
    """Where the addresses begin, octets of each, and how many: the last ones of one type, equally long."""
    if len(answers) < 2:
        return None
    kinds = [record.rrtype for record in answers]
    kind = next((each for each in kinds if each in _ADDRESS_OCTETS), None)
    if kind is None:
        return None
    first, count = kinds.index(kind), kinds.count(kind)
    size = _POINTED_OCTETS + _ADDRESS_OCTETS[kind]
    last = first + count - 1
    start = writer.starts[first]
    if count < 2 or writer.ttl_offsets[last] + 6 + _ADDRESS_OCTETS[kind] - start != count * size:
        return None
    alike = {record.owner.lower() for record in answers[first : last + 1]}
    return (start, size, count) if len(alike) == 1 and set(kinds[first : last + 1]) == {kind} else None


class _Writer:
    """Encodes records with names compressed (RFC 1035 §4.1.4)."""

    def __init__(self, qname: bytes) -> None:
        self.octets = bytearray()
        self.starts: list[int] = []
        """Where the records begin."""
        self.ttl_offsets: list[int] = []
        self._start = HEADER_OCTETS + len(qname) + 4
        """Where the octets begin in the message."""
        self._known: dict[bytes, int] = {}
        """Where in the message names stand, lower case."""
        self._note(qname.lower(), HEADER_OCTETS)

    def add(self, record: Record) -> None:
        """Encode a record. Raises `ValueError` if the message grows too long."""
        self.starts.append(len(self.octets))
        self._name(record.owner)
        self.ttl_offsets.append(len(self.octets) + _TTL_OFFSET)
        self.octets += _FIXED.pack(record.rrtype, CLASS_IN, 0, 0)
        start = len(self.octets)
        if record.rrtype in _COMPRESSED:
            fixed, names = names_in(record)
            self.octets += record.rdata[:fixed]
            for name in names:
                self._name(name)
            self.octets += record.rdata[fixed + sum(map(len, names)) :]
        else:
            self.octets += record.rdata
        self.octets[start - 2 : start] = (len(self.octets) - start).to_bytes(2, "big")
        if self._start + len(self.octets) > TCP_MAX_OCTETS:
            raise ValueError("response too long")

    def _name(self, name: bytes) -> None:
        lowered = name.lower()
        at = 0
        while lowered[at]:
            offset = self._known.get(lowered[at:])
            if offset is not None:
                break
            at += lowered[at] + 1
        else:
            offset = None
        begin = self._start + len(self.octets)
        if offset is None:
            self.octets += name
        else:
            self.octets += name[:at] + encode_pointer(offset)
        self._note(lowered, begin, at)

    def _note(self, lowered: bytes, begin: int, end: int | None = None) -> None:
        """Remember where a name and its parents stand; those from `end` on stand elsewhere."""
        at = 0
        while lowered[at] and (end is None or at < end) and begin + at <= _POINTER_MAX:
            self._known[lowered[at:]] = begin + at
            at += lowered[at] + 1
