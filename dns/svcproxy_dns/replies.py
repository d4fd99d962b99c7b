# SPDX-License-Identifier: Apache-2.0
"""What an upstream replied: octets to records, and from them only what answers the question. Pure.

Nothing of a reply is taken on trust. Names are read with bounds, pointers only lead backwards, records that the
question does not lead to are left out (RFC 5452 §6, RFC 2181 §5.4.1).
"""

import struct
from typing import NamedTuple

from svcproxy_dns.wire import (
    CLASS_IN,
    HEADER_OCTETS,
    LABEL_MAX_OCTETS,
    NAME_MAX_OCTETS,
    QR,
    TYPE_CLASS_OCTETS,
    Rcode,
    RRType,
)

RECORDS_MAX = 4096
"""Records of one reply; one with more is refused."""
POINTERS_MAX = 127
"""Pointers of one name: one for each label that it can have."""
ALIASES_MAX = 16
"""CNAMEs followed within one reply."""
TTL_MAX = 0x7FFFFFFF
"""What is above counts as 0 (RFC 2181 §8)."""

_HEADER = struct.Struct(">6H")
_FIXED = struct.Struct(">2HIH")
_POINTER = 0xC0
_NAPTR = 35
_DNSSEC = frozenset({46, 47, 50})
"""RRSIG, NSEC, NSEC3: proofs, for those who asked for them."""
_RRSIG, _DNAME = 46, 39
_LAYOUTS = {
    **dict.fromkeys((RRType.NS, RRType.CNAME, RRType.PTR, 3, 4, 7, 8, 9, _DNAME), (0, 1)),
    **dict.fromkeys((RRType.MX, 18, 21, 36), (2, 1)),
    **dict.fromkeys((RRType.SOA, 14, 17), (0, 2)),
    RRType.SRV: (6, 1),
    26: (2, 2),
}
"""Octets before the names in the rdata of types that may hold compressed ones, and how many names (RFC 1035 §3.3,
RFC 3597 §4); nothing follows the names but in a SOA."""
_SOA_NUMBERS_OCTETS = 20
_SIZES = {int(RRType.A): 4, int(RRType.AAAA): 16}


class Malformed(ValueError):
    """A message that cannot be read."""


class Record(NamedTuple):
    """A record of class IN. Names, also those in the rdata, are uncompressed and as the upstream spells them."""

    owner: bytes
    rrtype: int
    ttl: int
    rdata: bytes


class Front(NamedTuple):
    """Header and question of a reply."""

    ident: int
    flags: int
    rcode: int
    """The low four bits."""
    question: bytes
    """Name as spelled, type, class; empty if there is none."""


class Reply(NamedTuple):
    """The records of a reply."""

    rcode: int
    """With the upper bits that an OPT brings (RFC 6891 §6.1.3)."""
    answers: list[Record]
    authorities: list[Record]
    additionals: list[Record]


class Relevant(NamedTuple):
    """What of a reply answers the question, CNAMEs before what they lead to."""

    rcode: int
    answers: list[Record]
    authorities: list[Record]
    additionals: list[Record]
    ttl: int | None
    """Seconds for which it may be kept; None if it may not be."""
    denies: bool
    """NXDOMAIN, or NODATA."""
    lame: bool
    """Neither an answer nor a denial: a referral, from something that does not resolve."""


def read_front(message: bytes, expected: bytes = b"") -> Front | None:
    """Header and question; None for what is no reply to anything.

    `expected`: the question that was asked; where it is there as it was sent, it need not be read.
    """
    if len(message) < HEADER_OCTETS:
        return None
    ident, flags, questions, *_ = _HEADER.unpack_from(message)
    if not flags & QR or flags & 0x7800 or questions > 1:
        return None
    if not questions:
        return Front(ident, flags, flags & 0xF, b"")
    if expected and message.startswith(expected, HEADER_OCTETS):
        return Front(ident, flags, flags & 0xF, expected)
    try:
        name, position = _Reader(message).name(HEADER_OCTETS)
    except Malformed:
        return None
    if position + 4 > len(message):
        return None
    return Front(ident, flags, flags & 0xF, name + message[position : position + 4])


def read_reply(message: bytes, question: bytes = b"") -> Reply:
    """The records of a message whose front has been read. Raises `Malformed`.

    `question`: with what the message begins after its header, if that is known.
    """
    _, flags, questions, *counts = _HEADER.unpack_from(message)
    if sum(counts) > RECORDS_MAX:
        raise Malformed("too many records")
    reader = _Reader(message)
    position = HEADER_OCTETS
    if questions and question:
        reader.know(position, question[:-TYPE_CLASS_OCTETS])
        position += len(question)
    elif questions:
        position = reader.name(position)[1] + TYPE_CLASS_OCTETS
    rcode = flags & 0xF
    sections: list[list[Record]] = []
    for count in counts:
        records: list[Record] = []
        for _ in range(count):
            owner, position = reader.name(position)
            if position + _FIXED.size > len(message):
                raise Malformed("cut in a record")
            rrtype, rrclass, ttl, length = _FIXED.unpack_from(message, position)
            start = position + _FIXED.size
            position = start + length
            if position > len(message):
                raise Malformed("cut in a record")
            if rrtype == RRType.OPT:
                rcode |= ttl >> 24 << 4
            elif rrclass == CLASS_IN:
                records.append(
                    Record(owner, rrtype, ttl if ttl <= TTL_MAX else 0, reader.rdata(rrtype, start, position))
                )
        sections.append(records)
    return Reply(rcode, *sections)


class _Reader:
    """Reads names. What pointers lead to is remembered, so that a message costs in proportion to its octets."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._pointed: dict[int, bytes] = {}

    def know(self, position: int, name: bytes) -> None:
        """Where a whole name stands."""
        self._pointed[position] = name

    def name(self, position: int) -> tuple[bytes, int]:
        """The name at `position`, uncompressed, and where it ends there. Raises `Malformed`."""
        message, before, end = self._message, position, 0
        labels = bytearray()
        jumps: list[tuple[int, int]] = []
        while len(labels) <= NAME_MAX_OCTETS:
            if position >= len(message):
                raise Malformed("cut in a name")
            length = message[position]
            if length >= _POINTER:
                if position + 1 >= len(message):
                    raise Malformed("cut in a pointer")
                target = (length & 0x3F) << 8 | message[position + 1]
                end = end or position + 2
                if not HEADER_OCTETS <= target < before or len(jumps) == POINTERS_MAX:
                    raise Malformed("pointer that does not lead back")
                if (known := self._pointed.get(target)) is not None:
                    labels += known
                    break
                jumps.append((target, len(labels)))
                position = before = target
                continue
            if length > LABEL_MAX_OCTETS:
                raise Malformed("bad label")
            labels += message[position : position + length + 1]
            position += length + 1
            if not length:
                break
        if len(labels) > NAME_MAX_OCTETS:
            raise Malformed("name too long")
        name = bytes(labels)
        for target, start in jumps:
            self._pointed[target] = name[start:]
        return name, end or position

    def rdata(self, rrtype: int, start: int, end: int) -> bytes:
        """Rdata with its names uncompressed."""
        message = self._message
        if rrtype == _NAPTR:
            fixed, names = 4, 1
            for _ in range(3):
                if start + fixed >= end:
                    raise Malformed("cut in rdata")
                fixed += message[start + fixed] + 1
        else:
            layout = _LAYOUTS.get(rrtype)
            if layout is None:
                if end - start != _SIZES.get(rrtype, end - start):
                    raise Malformed("no address")
                return message[start:end]
            fixed, names = layout
        position = start + fixed
        parts = [message[start:position]]
        for _ in range(names):
            name, position = self.name(position)
            parts.append(name)
        if end - position != (_SOA_NUMBERS_OCTETS if rrtype == RRType.SOA else 0):
            raise Malformed("rdata does not fit its type")
        parts.append(message[position:end])
        return b"".join(parts)


def names_in(record: Record) -> tuple[int, list[bytes]]:
    """Where the names of an (uncompressed) rdata begin, and the names. Not those of a NAPTR."""
    fixed, count = _LAYOUTS.get(record.rrtype, (0, 0))
    names, position = [], fixed
    for _ in range(count):
        end = position
        while record.rdata[end]:
            end += record.rdata[end] + 1
        names.append(record.rdata[position : end + 1])
        position = end + 1
    return fixed, names


def is_below(name: bytes, ancestor: bytes) -> bool:
    """Whether a name, lower case on the wire, is `ancestor` or below it."""
    if not name.endswith(ancestor):
        return False
    position, cut = 0, len(name) - len(ancestor)
    while position < cut:
        position += name[position] + 1
    return position == cut


def select(reply: Reply, qname: bytes, qtype: int, *, dnssec: bool) -> Relevant:
    """What of a reply answers a question: the chain from its name, and the proofs of a denial.

    The additional section keeps addresses of names that the answers mention. `dnssec`: keep signatures and proofs too.
    """
    answers, final, complete = _chain(reply.answers, qname.lower(), qtype, dnssec=dnssec)
    soas = [each for each in reply.authorities if each.rrtype == RRType.SOA and is_below(final, each.owner.lower())]
    denies = reply.rcode == Rcode.NXDOMAIN or not complete
    authorities = soas[:1] if denies else []
    if dnssec:
        authorities += [each for each in reply.authorities if each.rrtype in _DNSSEC]
    additionals = _mentioned(answers, reply.additionals) if reply.additionals else []
    lame = (
        reply.rcode == Rcode.NOERROR
        and not answers
        and not soas
        and any(each.rrtype == RRType.NS for each in reply.authorities)
    )
    return Relevant(reply.rcode, answers, authorities, additionals, _ttl(answers, authorities, denies), denies, lame)


def _mentioned(answers: list[Record], additionals: list[Record]) -> list[Record]:
    """The addresses of names that answers lead to."""
    names = {name.lower() for each in answers if each.rrtype != RRType.CNAME for name in names_in(each)[1]}
    return [each for each in additionals if each.rrtype in _SIZES and each.owner.lower() in names]


def _chain(found: list[Record], name: bytes, qtype: int, *, dnssec: bool) -> tuple[list[Record], bytes, bool]:
    """Records from the question's name on, the name that they end at, and whether it has what was asked for."""
    by_owner: dict[bytes, list[Record]] = {}
    for record in found:
        by_owner.setdefault(record.owner.lower(), []).append(record)
    answers: list[Record] = []
    for _ in range(ALIASES_MAX):
        owned = by_owner.pop(name, [])
        asked = [each for each in owned if each.rrtype == qtype or qtype == RRType.ANY]
        alias = next((each for each in owned if each.rrtype == RRType.CNAME), None)
        signatures = [each for each in owned if each.rrtype == _RRSIG] if dnssec and qtype != RRType.ANY else []
        if asked:
            return [*answers, *asked, *signatures], name, True
        if alias is None:
            break
        for owner in [each for each in by_owner if is_below(name, each)]:
            if any(each.rrtype == _DNAME for each in by_owner[owner]):
                wanted = {_DNAME, _RRSIG} if dnssec else {_DNAME}
                answers += [each for each in by_owner.pop(owner) if each.rrtype in wanted]
        answers += [alias, *signatures]
        name = alias.rdata.lower()
    return answers, name, False


def _ttl(answers: list[Record], authorities: list[Record], denies: bool) -> int | None:
    """RFC 2308 §5: a denial is kept as long as the SOA says, and not without one."""
    ttls = [each.ttl for each in answers]
    if denies:
        soa = next((each for each in authorities if each.rrtype == RRType.SOA), None)
        if soa is None:
            return None
        ttls += [soa.ttl, min(int.from_bytes(soa.rdata[-4:], "big"), TTL_MAX)]
    return min(ttls, default=None)
