# SPDX-License-Identifier: Apache-2.0
"""From a question and the name that it is about to a response that can be rendered. Pure.

Rdata names canonical labels and the zone as the question spells it. Names in rdata are not compressed in SRV (RFC
2782), but the owners of what belongs to a target point to it.
"""

import struct
from collections.abc import Iterable, Sequence

from svcproxy_dns.addresses import pack_ip
from svcproxy_dns.domains import Domain
from svcproxy_dns.rendered import Answer, Rotating, StartOfAuthority, WithSoa
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.sections import settled
from svcproxy_dns.service import ServiceNames
from svcproxy_dns.wire import (
    AA,
    CLASS_IN,
    HEADER_OCTETS,
    NAME_MAX_OCTETS,
    POINTER_MAX,
    QUESTION_POINTER,
    TYPE_CLASS_OCTETS,
    Query,
    Rcode,
    RRType,
    encode_label,
    encode_labels,
    encode_pointer,
    encode_record,
    front,
)
from svcproxy_dns.zone import Name, Zone

DNS_VERSION_TTL = 28800
"""Seconds; CoreDNS' value."""
_SRV_HEAD = struct.Struct(">2HI4H")
"""Type, class, TTL, length, priority, weight, port."""
_SRV_TARGET = len(QUESTION_POINTER) + _SRV_HEAD.size
"""Octets of a record before its target."""
_A, _NS, _SOA, _PTR, _TXT, _AAAA, _SRV = map(
    int, (RRType.A, RRType.NS, RRType.SOA, RRType.PTR, RRType.TXT, RRType.AAAA, RRType.SRV)
)
_NOERROR = int(Rcode.NOERROR)


class Responses:
    """Makes responses about names that exist and are no alias."""

    def __init__(self, zone: Zone, soa: StartOfAuthority, primary: Domain) -> None:
        self._zone = zone
        self._soa = soa
        self._primary = primary

    def about(self, query: Query, domain: Domain, name: Name) -> bytes | Answer:
        """What the name holds of the type asked; octets after the ID, without OPT, if every transport carries them."""
        qtype = query.qtype
        if qtype == _SRV and name.service is not None:
            return self._services(query, domain, name, name.service) or self.negative(query, domain)
        if addresses := addresses_of(name, qtype):
            return _addresses(query, addresses)
        if qtype == _PTR and name.pointers:
            return _answer(query, self._pointers(QUESTION_POINTER, name.pointers))
        if name.apex and qtype == _SOA:
            return WithSoa(query.response_flags(_NOERROR, AA), query.question, self._soa, _place(query, domain), 1)
        if name.apex and qtype == _NS:
            return self._name_servers(query, domain)
        if qtype == _TXT and name.text is not None:
            return _answer(query, [_text(QUESTION_POINTER, name.text)])
        return self.negative(query, domain)

    def at_target(self, name: Name, qtype: int, target: int, domain: Domain) -> list[bytes]:
        """What the name holds of a type other than SRV, in a message that spells it at octet `target`."""
        owner = encode_pointer(target)
        if addresses := addresses_of(name, qtype):
            return addresses.owned_by(owner)
        if qtype == _PTR:
            return self._pointers(owner, name.pointers)
        if qtype == _TXT and name.text is not None:
            return [_text(owner, name.text)]
        if name.apex and qtype == _SOA:
            return [self._soa.record(target, domain.reverse)]
        return self._name_server_records(owner, domain)[0] if name.apex and qtype == _NS else []

    def negative(self, query: Query, domain: Domain, rcode: int = _NOERROR) -> WithSoa:
        """No such data, or with another code no such name, or not known yet."""
        return WithSoa(query.response_flags(rcode, AA), query.question, self._soa, _place(query, domain), 0)

    def soa(self, query: Query, domain: Domain) -> bytes:
        """The zone's SOA record in a response to this query."""
        return self._soa.record(*_place(query, domain))

    def _services(self, query: Query, domain: Domain, name: Name, service: ServiceNames) -> bytes | Answer | None:
        """SRV of a Service, a port or an endpoint; None if it has no ports."""
        ttl = self._zone.ttl
        own = encode_labels(service.labels)
        spelled = own + query.question[-TYPE_CLASS_OCTETS - len(domain.wire) : -TYPE_CLASS_OCTETS]
        if name.endpoints is None and not service.follows_endpoints:
            weight, ports = service.own_ports(name.port)
            answers = [_srv(ttl, weight, port, spelled) for port in ports]
            owner = encode_pointer(HEADER_OCTETS + len(query.question) + _SRV_TARGET)
            ipv4, ipv6 = self._zone.service_addresses(service)
            additionals = ipv4.owned_by(owner)
            if ipv6:
                additionals += ipv6.owned_by(owner)
        else:
            answers, additionals = self._targets(query, service, name, spelled)
        return _answer(query, answers, additionals) if answers else None

    def _targets(
        self, query: Query, service: ServiceNames, name: Name, spelled: bytes
    ) -> tuple[list[bytes], list[bytes]]:
        """SRV records of endpoints and the addresses of these. `spelled`: the Service's name, as in a target."""
        ttl = self._zone.ttl
        targets = service.targets(name.port, name.endpoints)
        sets = self._zone.service_addresses(service) if service.follows_endpoints else None
        room = NAME_MAX_OCTETS - len(spelled)
        position = HEADER_OCTETS + len(query.question)
        owners: dict[str, bytes] = {}
        answers = []
        for port, label in targets.ports:
            if len(label) < room:
                target = encode_label(label) + spelled
                record = _srv(ttl, targets.weight, port, target)
                answers.append(record)
                if label not in owners:
                    place = position + _SRV_TARGET
                    owners[label] = encode_pointer(place) if place <= POINTER_MAX else target
                position += len(record)
        additionals = []
        for label, ip in targets.addresses:
            if label in owners:
                known = sets[":" in ip].after_owner(ip) if sets is not None else None
                owner = owners[label]
                additionals.append(owner + known if known is not None else _address(owner, ip, ttl))
        return answers, additionals

    def _pointers(self, owner: bytes, pointers: Iterable[tuple[str, ...]]) -> list[bytes]:
        targets = [encode_labels(labels) + self._primary.wire for labels in pointers]
        return [
            encode_record(owner, _PTR, self._zone.ttl, target) for target in targets if len(target) <= NAME_MAX_OCTETS
        ]

    def _name_servers(self, query: Query, domain: Domain) -> bytes | Answer:
        return _answer(query, *self._name_server_records(QUESTION_POINTER, domain))

    def _name_server_records(self, zone: bytes, domain: Domain) -> tuple[list[bytes], list[bytes]]:
        """NS of the zone that `zone` points to, and the addresses of these."""
        end = self._primary.wire if domain.reverse else zone
        ttl = self._zone.ttl
        servers = [(encode_labels(labels) + end, ips) for labels, ips in self._zone.name_servers()]
        answers = [encode_record(zone, _NS, ttl, name) for name, _ in servers]
        return answers, [_address(name, ip, ttl) for name, ips in servers for ip in ips]


def addresses_of(name: Name, qtype: int) -> AddressSet | None:
    """The addresses that the name holds of a type."""
    if qtype == _A:
        return name.ipv4
    return name.ipv6 if qtype == _AAAA else None


def _addresses(query: Query, addresses: AddressSet) -> bytes | Answer:
    flags = query.response_flags(_NOERROR, AA)
    if len(addresses) == 1:
        return front(flags, query.question, 1, 0, 0) + addresses.take(1)
    return Rotating(flags, query.question, addresses)


def _answer(query: Query, answers: Sequence[bytes], additionals: Sequence[bytes] = ()) -> bytes | Answer:
    return settled(query.response_flags(_NOERROR, AA), query.question, answers, additionals)


def _text(owner: bytes, text: str) -> bytes:
    return encode_record(owner, _TXT, DNS_VERSION_TTL, encode_labels((text,)))


def _srv(ttl: int, weight: int, port: int, target: bytes) -> bytes:
    return QUESTION_POINTER + _SRV_HEAD.pack(_SRV, CLASS_IN, ttl, len(target) + 6, 0, weight, port) + target


def _address(owner: bytes, ip: str, ttl: int) -> bytes:
    return encode_record(owner, _AAAA if ":" in ip else _A, ttl, pack_ip(ip))


def _place(query: Query, domain: Domain) -> tuple[int, bool]:
    """Where the zone's name stands in a message with this question, and whether it is a zone of addresses."""
    return HEADER_OCTETS + len(query.question) - TYPE_CLASS_OCTETS - len(domain.wire), domain.reverse
