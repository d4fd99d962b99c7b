# SPDX-License-Identifier: Apache-2.0
"""What holds for every message, however it is made: for the properties here and the fuzzers of `tests/fuzz`."""

import random
import struct
from collections.abc import Sequence

import dns.exception
import dns.message
import dns.name
import dns.opcode
import dns.rdata

from svcproxy.config import UpstreamPolicy
from svcproxy_dns.answers import Answers
from svcproxy_dns.body import Body
from svcproxy_dns.cache import Cache, CacheLimits
from svcproxy_dns.domains import Domains
from svcproxy_dns.elsewhere import Alias, Deliver, Later
from svcproxy_dns.forwarding import Timing
from svcproxy_dns.framing import MessageReader
from svcproxy_dns.rendered import TCP, Rendered
from svcproxy_dns.replies import Malformed, Record, read_front, read_reply, select
from svcproxy_dns.resolver import Bounds, Resolver, Waiting
from svcproxy_dns.upstreams import Upstreams
from svcproxy_dns.wire import (
    HEADER_OCTETS,
    TCP_MAX_OCTETS,
    UDP_DEFAULT_OCTETS,
    UDP_MAX_OCTETS,
    Query,
    RRType,
    encode_name,
    parse_query,
)
from tests.dns.world import SERIAL, ZONES, records, synced_zone

CLIENT = "10.244.1.5"
CACHED = "many.example.com"
"""A name outside the zone whose answer is kept, and fits no datagram."""


class _Later:
    def __init__(self, resolver: Resolver, waiting: Waiting) -> None:
        self._resolver = resolver
        self._waiting = waiting

    def begin(self, client: str, deliver: Deliver) -> None:
        assert self._resolver.admit(self._waiting, client, deliver, 0.0) is None


class Elsewhere:
    """The resolver with a cache and no upstreams: what is not kept is SERVFAIL, delivered before `begin` returns."""

    def __init__(self) -> None:
        rng = random.Random(7)
        upstreams = Upstreams(UpstreamPolicy.SEQUENTIAL, rng)
        upstreams.replace((), {})
        self._resolver = Resolver(upstreams, Cache(CacheLimits()), rng, bounds=Bounds(), timing=Timing())
        name = encode_name(CACHED)
        body = Body(name, 0, [Record(name, RRType.A, 300, bytes((192, 0, 2, low))) for low in range(200)])
        query = parse_query(dns.message.make_query(CACHED, "A").to_wire())
        assert isinstance(query, Query)
        waiting = self._resolver.lookup(query, b"id", 0, (), 0.0)
        assert isinstance(waiting, Waiting)
        self._resolver.cache.keep(waiting.question.key, body, 300, denies=False, now=0.0)

    def resolve(self, query: Query, ident: bytes, transport: int, aliases: Sequence[Alias] = ()) -> bytes | Later:
        found = self._resolver.lookup(query, ident, transport, aliases, 0.0)
        return _Later(self._resolver, found) if isinstance(found, Waiting) else found


def populated() -> Answers:
    """Answers of the acceptance cases' cluster, and the resolver behind it."""
    return Answers(synced_zone(records()), Domains(ZONES), Rendered(), SERIAL, Elsewhere())


def response_to(answers: Answers, message: bytes, transport: int) -> bytes | None:
    """The response, found out if need be."""
    found = answers.respond(message, transport)
    if found is None or isinstance(found, bytes):
        return found
    delivered: list[bytes] = []
    found.begin(CLIENT, delivered.append)
    (response,) = delivered
    return response


def check_query(answers: Answers, message: bytes, transport: int) -> None:
    """Every message is answered or dropped as it should be, and answered again in the same way."""
    response = response_to(answers, message, transport)
    if len(message) < HEADER_OCTETS or message[2] & 0x80:
        assert response is None, "a reply to a reply, or to what is no message"
        return
    assert response is not None, "a query without a response"
    assert response[:2] == message[:2], "another ID"
    assert response[2] & 0xF8 == 0x80 | (message[2] & 0x78), "no response, or another opcode"
    assert answers.respond(response, transport) is None, "a reply to a reply"
    assert len(response) <= limit_of(message, transport), "larger than asked for"
    read = dns.message.from_wire(response)
    if response[4:6] == b"\0\1":
        assert message[HEADER_OCTETS:].startswith(_question(response)), "another question"
    else:
        assert len(response) == HEADER_OCTETS, "records without a question"
    if read.opcode() == dns.opcode.QUERY and message[10:12] == b"\0\0":
        assert read.edns < 0, "EDNS to a client without"
    again = response_to(answers, message, transport)
    assert again is not None
    assert _shape(again) == _shape(response), "another response to the same query"


def limit_of(message: bytes, transport: int) -> int:
    """Octets that the response to a message may have, by dnspython's reading of it."""
    if transport & TCP:
        return TCP_MAX_OCTETS
    try:
        query = dns.message.from_wire(message, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return UDP_MAX_OCTETS
    return min(max(query.payload, UDP_DEFAULT_OCTETS), UDP_MAX_OCTETS) if query.edns >= 0 else UDP_DEFAULT_OCTETS


def _question(response: bytes) -> bytes:
    end = HEADER_OCTETS
    while response[end]:
        end += response[end] + 1
    return response[HEADER_OCTETS : end + 5]


def _shape(response: bytes) -> tuple[bytes, int]:
    """Header, but AA, which tells in forwarded answers whether they were kept; and length."""
    return response[:2] + bytes([response[2] & 0xFB]) + response[3:HEADER_OCTETS], len(response)


def check_records(message: bytes) -> None:
    """The message is whole, to the last octet, and so is the rdata of types that are encoded here.

    The rdata of others is the upstream's own, whatever that is.
    """
    position, counts = HEADER_OCTETS, struct.unpack_from(">4H", message, 4)
    for section, count in enumerate(counts):
        for _ in range(count):
            position += dns.name.from_wire(message, position)[1]
            if section == 0:
                position += 4
                continue
            rrtype, rrclass, _, length = struct.unpack_from(">2HIH", message, position)
            position += 10
            if rrtype in _ENCODED:
                dns.rdata.from_wire(rrclass, rrtype, message, position, length)
            position += length
    assert position == len(message), "cut, or more than it says"


_ENCODED = frozenset({RRType.A, RRType.NS, RRType.CNAME, RRType.SOA, RRType.PTR, RRType.MX, RRType.AAAA, RRType.SRV})


def check_stream(stream: bytes, cuts: Sequence[int], kept: int) -> None:
    """However a stream is cut into pieces, its messages are the same; little is held of those that are too long."""
    reader, found = MessageReader(kept), list[bytes]()
    position = 0
    for cut in (*cuts, len(stream)):
        piece = stream[position : position + cut]
        position += len(piece)
        reader.feed(piece)
        while reader.ready:
            message = reader.next_message()
            assert message is not None
            found.append(message)
        assert reader.next_message() is None
        assert reader.pending <= 2 + kept + len(piece)
    expected, at = list[bytes](), 0
    while at + 2 <= len(stream) and at + 2 + int.from_bytes(stream[at : at + 2], "big") <= len(stream):
        length = int.from_bytes(stream[at : at + 2], "big")
        expected.append(stream[at + 2 : at + 2 + min(length, kept)])
        at += 2 + length
    assert found == expected


def check_reply(octets: bytes, query: Query, *, dnssec: bool) -> None:
    """An upstream's reply is read or refused, and what is taken from it is a message that fits."""
    front = read_front(octets)
    if front is None:
        return
    qname = query.question[:-4]
    try:
        reply = read_reply(octets)
    except Malformed:
        return
    relevant = select(reply, qname, query.qtype, dnssec=dnssec)
    try:
        body = Body.of(qname, relevant, authentic=False)
    except ValueError:  # it would be longer than a message
        return
    for limit in (UDP_DEFAULT_OCTETS, TCP_MAX_OCTETS):
        response = bytes(2) + body.render(query, limit, 30)
        assert len(response) <= limit
        check_records(response)
    kept = body.records(qname)
    for before, after in zip(relevant[1:4], kept[1:], strict=True):
        assert [_spelled_alike(each) for each in before] == [_spelled_alike(each) for each in after]


def _spelled_alike(record: Record) -> Record:
    """Names are compressed whatever their spelling; TTLs are the response's."""
    return Record(record.owner.lower(), record.rrtype, 0, record.rdata.lower())
