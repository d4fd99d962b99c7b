# SPDX-License-Identifier: Apache-2.0
"""DNS messages on the wire: queries in, and the parts of which responses are made. Pure.

All integers are big-endian (RFC 1035 §2.3.2).
"""

import struct
from collections.abc import Iterable
from enum import IntEnum

HEADER_OCTETS = 12
ID_OCTETS = 2
UDP_DEFAULT_OCTETS = 512
"""What any client takes over UDP (RFC 1035 §4.2.1); a smaller EDNS payload size means this one (RFC 6891 §6.2.3)."""
UDP_MAX_OCTETS = 4096
"""The largest response over UDP, whatever the client allows."""
TCP_MAX_OCTETS = 65535
NAME_MAX_OCTETS = 255
TYPE_CLASS_OCTETS = 4
"""What follows the name in a question."""
LABEL_MAX_OCTETS = 63

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE_MASK = 0x7800
CLASS_IN = 1
POINTER_MAX = 0x3FFF
"""The last octet of a message that a pointer reaches."""
QUESTION_POINTER = b"\xc0\x0c"
"""The name of the question, compressed (RFC 1035 §4.1.4)."""
DO = 0x8000
"""DNSSEC OK, in the low half of an OPT's TTL field (RFC 3225 §3)."""

_HEADER = struct.Struct(">6H")
_AFTER_ID = struct.Struct(">5H")
_TYPE_CLASS = struct.Struct(">2H")
_FIXED = struct.Struct(">2HIH")
_ADDITIONAL_MAX = 2
"""Additional records that a query may bring, an OPT and a TSIG; of the other sections one each, for transfers."""


class RRType(IntEnum):
    """Types that are named here; any other is a number like them."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    OPT = 41
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255


class Rcode(IntEnum):
    """Response codes (RFC 1035 §4.1.1, RFC 6891 §9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Query:
    """A well-formed query."""

    __slots__ = (
        "dnssec_ok",
        "edns_version",
        "flags",
        "labels",
        "lower",
        "octets",
        "opt_payload",
        "plain",
        "qclass",
        "qtype",
        "question",
    )

    def __init__(self, flags: int, question: bytes, labels: list[str], qtype: int, qclass: int) -> None:
        self.flags = flags
        """The second 16 bits of the header."""
        self.question = question
        """As asked: name in its own spelling, type, class."""
        self.labels = labels
        """Lower case, without the root. An octet above 127 is the Latin-1 character, which no name of ours has."""
        self.qtype = qtype
        self.qclass = qclass
        self.octets = 0
        """Of the message."""
        self.opt_payload: int | None = None
        """The EDNS payload size as asked; None without an OPT."""
        self.edns_version = 0
        self.dnssec_ok = False
        self.lower = False
        """Whether the name is spelled in lower case."""
        self.plain = False
        """Whether the message is nothing but lower-case question and OPT, of any options: worth remembering."""

    @property
    def udp_limit(self) -> int:
        """Octets that the response may have over UDP."""
        if self.opt_payload is None:
            return UDP_DEFAULT_OCTETS
        return min(max(self.opt_payload, UDP_DEFAULT_OCTETS), UDP_MAX_OCTETS)

    @property
    def wants_authentic(self) -> bool:
        """Whether the client understands AD (RFC 6840 §5.7)."""
        return self.dnssec_ok or bool(self.flags & AD)

    def response_flags(self, rcode: int, extra: int = 0) -> int:
        """Header flags of a response: RD and CD as asked (RFC 1035 §4.1.1, RFC 4035 §3.1.6), the rest ours."""
        return QR | extra | (self.flags & (RD | CD)) | (rcode & 0xF)

    def opt_record(self, rcode: Rcode = Rcode.NOERROR) -> bytes:
        """The OPT of the response, empty if the query had none: same payload size and DO, version 0, no options."""
        if self.opt_payload is None:
            return b""
        ttl = (rcode >> 4) << 24 | (DO if self.dnssec_ok else 0)
        return b"\0" + _FIXED.pack(RRType.OPT, self.opt_payload, ttl, 0)


def parse_query(message: bytes) -> Query | Rcode | None:
    """The query in a message; the code to refuse it with by header alone; None when it deserves no reply.

    What follows the records that the header announces is ignored.
    """
    if len(message) < HEADER_OCTETS:
        return None
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & QR:
        return None
    if flags & OPCODE_MASK:
        return Rcode.NOTIMP
    if questions != 1 or answers > 1 or authorities > 1 or additional > _ADDITIONAL_MAX:
        return Rcode.FORMERR
    # Length octets are at most 63 and so never letters: a name can be lowered as it is.
    lowered = message[HEADER_OCTETS : HEADER_OCTETS + NAME_MAX_OCTETS].lower()
    labels, end = _read_labels(lowered)
    name_end = HEADER_OCTETS + end
    end = name_end + TYPE_CLASS_OCTETS
    if labels is None or end > len(message):
        return Rcode.FORMERR
    qtype, qclass = _TYPE_CLASS.unpack_from(message, name_end)
    query = Query(flags, message[HEADER_OCTETS:end], labels, qtype, qclass)
    plain = query.lower = lowered[: name_end - HEADER_OCTETS] == message[HEADER_OCTETS:name_end]
    if answers or authorities or additional:
        read = _read_records(query, message, end, (answers, authorities, additional))
        if not read:
            return Rcode.FORMERR
        plain = plain and additional == 1 and not answers and not authorities and query.opt_payload is not None
        end = read
    query.octets = len(message)
    query.plain = plain and end == query.octets
    return query


OPT_OCTETS = 11
"""An OPT record without options."""
OPT_FRONT_OCTETS = 9
"""What of it comes before the length of the options."""


def options_end(message: bytes, start: int) -> int:
    """Where the OPT ends that starts there; 0 if it is cut within `OPT_OCTETS`."""
    end = start + OPT_OCTETS
    return end + int.from_bytes(message[end - 2 : end], "big") if end <= len(message) else 0


def _read_labels(octets: bytes) -> tuple[list[str] | None, int]:
    """The labels of the name that begins `octets`, and its length; None if it is too long, cut, or compressed."""
    text = octets.decode("latin-1")
    labels: list[str] = []
    position, last = 0, len(octets)
    while position < last:
        length = octets[position]
        position += 1
        if not length:
            return labels, position
        if length > LABEL_MAX_OCTETS:
            break
        labels.append(text[position : position + length])
        position += length
    return None, 0


def _read_records(query: Query, message: bytes, position: int, counts: tuple[int, int, int]) -> int:
    """Step over the records of a query, taking note of its OPT; the offset after them, 0 if they are malformed."""
    answers, authorities, additional = counts
    for index in range(answers + authorities + additional):
        start, position = position, skip_name(message, position)
        if not position or position + _FIXED.size > len(message):
            return 0
        rrtype, payload, ttl, length = _FIXED.unpack_from(message, position)
        position += _FIXED.size + length
        if position > len(message):
            return 0
        if rrtype != RRType.OPT:
            continue
        if index < answers + authorities or message[start] or query.opt_payload is not None:
            return 0  # RFC 6891 §6.1.1: one at most, owned by the root, in the additional section
        query.opt_payload = payload
        query.edns_version = (ttl >> 16) & 0xFF
        query.dnssec_ok = bool(ttl & DO)
    return position


def skip_name(message: bytes, position: int) -> int:
    """The offset after a name of a record, which may end in a pointer; 0 if it is malformed."""
    while position < len(message):
        length = message[position]
        if not length:
            return position + 1
        if length >= 0xC0:
            return position + 2
        if length > LABEL_MAX_OCTETS:
            return 0
        position += length + 1
    return 0


def header_only(message: bytes, rcode: Rcode) -> bytes:
    """The response to a message that could not be read: its ID, opcode and RD, no records."""
    flags = int.from_bytes(message[2:4], "big")
    return message[:2] + _HEADER.pack(0, QR | (flags & (OPCODE_MASK | RD)) | rcode, 0, 0, 0, 0)[2:]


def front(flags: int, question: bytes, answers: int, authorities: int, additionals: int) -> bytes:
    """Header after the ID, and question. `additionals` counts the OPT."""
    return _AFTER_ID.pack(flags, 1, answers, authorities, additionals) + question


_LENGTHS = [bytes((length,)) for length in range(LABEL_MAX_OCTETS + 1)]


def encode_label(label: str) -> bytes:
    """One label on the wire, see `encode_labels`."""
    return _LENGTHS[len(label)] + label.encode("latin-1")


def encode_labels(labels: Iterable[str]) -> bytes:
    """The labels of a name on the wire, without its end. They are of 1 to 63 octets; a character is an octet."""
    return "".join([f"{len(label):c}{label}" for label in labels]).encode("latin-1")


def encode_name(name: str) -> bytes:
    """A name on the wire, uncompressed. Raises `ValueError` for an empty or long label or a long name."""
    labels = name.removesuffix(".").split(".")
    if not all(0 < len(label) <= LABEL_MAX_OCTETS for label in labels):
        raise ValueError(f"bad label in {name!r}")
    encoded = encode_labels(labels) + b"\0"
    if len(encoded) > NAME_MAX_OCTETS:
        raise ValueError(f"{name!r} is too long")
    return encoded


def encode_record(owner: bytes, rrtype: int, ttl: int, rdata: bytes) -> bytes:
    """A record of class IN; `owner` on the wire, possibly compressed."""
    return owner + _FIXED.pack(rrtype, CLASS_IN, ttl, len(rdata)) + rdata


def encode_pointer(offset: int) -> bytes:
    """A pointer to a name at `offset` of the message, at most `POINTER_MAX`."""
    return (0xC000 | offset).to_bytes(2, "big")
