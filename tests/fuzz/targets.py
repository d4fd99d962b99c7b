# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed, with what to begin with. A seed's first octets choose how the rest is used."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import dns.message
import dns.rrset
from dns.edns import GenericOption, OptionType

from svcproxy_dns.answers import Answers
from svcproxy_dns.framing import frame
from svcproxy_dns.wire import Query, parse_query
from tests.dns.oracles import CACHED, check_query, check_reply, check_stream, populated

QTYPES = ("A", "AAAA", "SRV", "PTR", "CNAME", "SOA", "NS", "TXT", "MX", "HTTPS", "ANY", "NAPTR", "DNAME")
NAMES = (
    "web.shop.svc.cluster.local",
    "_http._tcp.web.shop.svc.cluster.local",
    "db-0.hl.shop.svc.cluster.local",
    "big.shop.svc.cluster.local",
    "ext.shop.svc.cluster.local",
    "alias.shop.svc.cluster.local",
    "10-1-2-3.shop.pod.cluster.local",
    "1.10.96.10.in-addr.arpa",
    "dns-version.cluster.local",
    "cluster.local",
    "www.example.com",
    CACHED,
)
ANSWER_LINES = (
    "www.example.com. 300 IN A 192.0.2.53",
    "www.example.com. 5 IN CNAME a.example.net.",
    "a.example.net. 7 IN A 192.0.2.1",
    "www.example.com. 5 IN SRV 1 2 3 a.www.example.com.",
    "www.example.com. 5 IN MX 1 a.www.example.com.",
    'www.example.com. 9 IN NAPTR 1 2 "a" "b" "c" .',
    "example.com. 5 IN DNAME example.net.",
    "example.com. 900 IN SOA ns.example.com. hostmaster.example.com. 1 2 3 4 60",
    'www.example.com. 9 IN TXT "text"',
    "www.example.com. 9 IN RP a.example.com. b.example.com.",
)


@dataclass(frozen=True)
class Target:
    """One of them."""

    check: Callable[[bytes], None]
    """Raises if what must hold does not."""
    seeds: Callable[[], Iterator[bytes]]


@cache
def _answers() -> Answers:
    return populated()


def _queries() -> Iterator[bytes]:
    for number, name in enumerate(NAMES):
        for qtype in QTYPES:
            query = dns.message.make_query(name, qtype, id=7)
            if number % 2:
                query.use_edns(0, payload=1232, options=[GenericOption(OptionType.COOKIE, b"cookie..")])
            yield query.to_wire()


def _query(octets: bytes) -> None:
    if octets:
        check_query(_answers(), octets[1:], octets[0] & 3)


def _query_seeds() -> Iterator[bytes]:
    for number, query in enumerate(_queries()):
        yield bytes([number & 3]) + query


def _stream(octets: bytes) -> None:
    if octets:
        count = octets[0] & 15
        check_stream(octets[1 + count :], octets[1 : 1 + count], 64)


def _stream_seeds() -> Iterator[bytes]:
    queries = list(_queries())
    for first, second in pairwise(queries):
        yield bytes((3, 1, 20, 40)) + frame(first) + frame(b"") + frame(second)


@cache
def _asked(qtype: str) -> Query:
    query = parse_query(dns.message.make_query("www.example.com", qtype, use_edns=0, payload=1232).to_wire())
    assert isinstance(query, Query)
    return query


def _reply(octets: bytes) -> None:
    if octets:
        check_reply(octets[1:], _asked(QTYPES[octets[0] % len(QTYPES)]), dnssec=bool(octets[0] & 0x80))


def _reply_seeds() -> Iterator[bytes]:
    for number, qtype in enumerate(QTYPES):
        for line in ANSWER_LINES:
            reply = dns.message.make_response(dns.message.make_query("www.example.com", qtype, id=7))
            owner, ttl, rrclass, rrtype, rdata = line.split(maxsplit=4)
            records = dns.rrset.from_text(owner, int(ttl), rrclass, rrtype, rdata)
            section = reply.authority if rrtype == "SOA" else reply.answer
            section.append(records)
            yield bytes([number]) + reply.to_wire()


TARGETS = {
    "query": Target(_query, _query_seeds),
    "stream": Target(_stream, _stream_seeds),
    "reply": Target(_reply, _reply_seeds),
}
