# SPDX-License-Identifier: Apache-2.0
"""From a question and the name that it is about to a response that can be rendered. Pure.

Rdata names canonical labels and the zone as the question spells it. Target and owner names are compressed only where
every reader expects it: not in SRV (RFC 2782).
"""

import struct
from collections.abc import Iterable

from svcproxy_dns.addresses import pack_ip
from svcproxy_dns.domains import Domain
from svcproxy_dns.rendered import Answer, Rotating, StartOfAuthority, WithSoa
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.sections import Records
from svcproxy_dns.service import ServiceNames
from svcproxy_dns.wire import (
    AA,
    HEADER_OCTETS,
    NAME_MAX_OCTETS,
    QUESTION_POINTER,
    Query,
    Rcode,
    RRType,
    encode_labels,
    encode_pointer,
    encode_record,
)
from svcproxy_dns.zone import Name, Zone

DNS_VERSION_TTL = 28800
"""Seconds; CoreDNS' value."""
_SRV = struct.Struct(">3H")


class Responses:
    """Makes responses about names that exist and are no alias."""

    def __init__(self, zone: Zone, soa: StartOfAuthority, primary: Domain) -> None:
        self._zone = zone
        self._soa = soa
        self._primary = primary

    def about(self, query: Query, domain: Domain, name: Name) -> bytes | Answer:
        """What the name holds of the type asked; octets after the ID, without OPT, if every transport carries them."""
        qtype = query.qtype
        if addresses := addresses_of(name, qtype):
            return _addresses(query, addresses)
        if qtype == RRType.SRV and name.service is not None:
            return self._services(query, domain, name, name.service) or self.negative(query, domain)
        if qtype == RRType.PTR and name.pointers:
            return self._pointers(query, name.pointers)
        if name.apex and qtype == RRType.SOA:
            return WithSoa(query.response_flags(Rcode.NOERROR), query.question, self._soa, _place(query, domain), 1)
        if name.apex and qtype == RRType.NS:
            return self._name_servers(query, domain)
        if qtype == RRType.TXT and name.text is not None:
            text = encode_labels((name.text,))
            return _answer(query, [encode_record(QUESTION_POINTER, RRType.TXT, DNS_VERSION_TTL, text)])
        return self.negative(query, domain)

    def negative(self, query: Query, domain: Domain, rcode: Rcode = Rcode.NOERROR) -> WithSoa:
        """No such data, or with another code no such name, or not known yet."""
        return WithSoa(query.response_flags(rcode), query.question, self._soa, _place(query, domain), 0)

    def soa(self, query: Query, domain: Domain) -> bytes:
        """The zone's SOA record in a response to this query."""
        return self._soa.record(*_place(query, domain))

    def _services(self, query: Query, domain: Domain, name: Name, service: ServiceNames) -> bytes | Answer | None:
        """SRV of a Service, a port or an endpoint; None if it has no ports."""
        ttl = self._zone.ttl
        targets = service.targets(name.port, name.endpoints)
        offset, _ = _place(query, domain)
        own = encode_labels(service.labels)
        spelled = own + query.question[offset - HEADER_OCTETS : -4]
        owner = encode_pointer(offset - len(own)) if query.lower else own + encode_pointer(offset)
        room = NAME_MAX_OCTETS - len(spelled)
        answers = [
            encode_record(
                QUESTION_POINTER,
                RRType.SRV,
                ttl,
                _SRV.pack(0, targets.weight, port) + (encode_labels((label,)) + spelled if label else spelled),
            )
            for port, label in targets.ports
            if len(label) < room
        ]
        if not answers:
            return None
        additionals = [
            _address(encode_labels((label,)) + owner if label else owner, ip, ttl)
            for label, ip in targets.addresses
            if len(label) < room
        ]
        return _answer(query, answers, additionals)

    def _pointers(self, query: Query, pointers: Iterable[tuple[str, ...]]) -> bytes | Answer:
        targets = [encode_labels(labels) + self._primary.wire for labels in pointers]
        return _answer(
            query,
            [
                encode_record(QUESTION_POINTER, RRType.PTR, self._zone.ttl, target)
                for target in targets
                if len(target) <= NAME_MAX_OCTETS
            ],
        )

    def _name_servers(self, query: Query, domain: Domain) -> bytes | Answer:
        end = self._primary.wire if domain.reverse else QUESTION_POINTER
        ttl = self._zone.ttl
        servers = [(encode_labels(labels) + end, ips) for labels, ips in self._zone.name_servers()]
        answers = [encode_record(QUESTION_POINTER, RRType.NS, ttl, name) for name, _ in servers]
        return _answer(query, answers, [_address(name, ip, ttl) for name, ips in servers for ip in ips])


def addresses_of(name: Name, qtype: int) -> AddressSet | None:
    """The addresses that the name holds of a type."""
    if qtype == RRType.A:
        return name.ipv4
    return name.ipv6 if qtype == RRType.AAAA else None


def _addresses(query: Query, addresses: AddressSet) -> bytes | Answer:
    answer = Rotating(query.response_flags(Rcode.NOERROR), query.question, addresses)
    return answer.whole() if len(addresses) == 1 else answer


def _answer(query: Query, answers: list[bytes], additionals: Iterable[bytes] = ()) -> bytes | Answer:
    flags = query.response_flags(Rcode.NOERROR, AA)
    return Records(flags, query.question, answers, additionals=tuple(additionals)).settled()


def _address(owner: bytes, ip: str, ttl: int) -> bytes:
    return encode_record(owner, RRType.AAAA if ":" in ip else RRType.A, ttl, pack_ip(ip))


def _place(query: Query, domain: Domain) -> tuple[int, bool]:
    """Where the zone's name stands in a message with this question, and whether it is a zone of addresses."""
    left = query.labels[: -domain.depth]
    return HEADER_OCTETS + len(left) + sum(map(len, left)), domain.reverse
