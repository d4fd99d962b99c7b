# SPDX-License-Identifier: Apache-2.0
"""Queries in, responses out: what the zone says, in octets. Pure.

A query seen before costs one look-up, from its octets after the ID to those of the response. Only answers about names
that exist are kept, for those that do not are without number; an answer is right as long as its source is of the
revision that it was made from, so a change costs nothing here and is in force with the next query.

Messages of every kind are answered or dropped; none raises.
"""

from collections.abc import Mapping

from svcproxy_dns.assembly import Assembly
from svcproxy_dns.elsewhere import Alias, Elsewhere, Later
from svcproxy_dns.rendered import TCP, Answer, Rendered, Rotating, StartOfAuthority, Tally, WithSoa
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.wire import (
    AA,
    CLASS_IN,
    HEADER_OCTETS,
    TC,
    TCP_MAX_OCTETS,
    Query,
    Rcode,
    RRType,
    header_only,
    parse_query,
)
from svcproxy_dns.zone import Name, Unready, Zone

CHAIN_MAX = 10
"""CNAMEs followed within the zone for one answer."""
TRANSPORTS = 4
_OTHER = "other"
_COUNTED = {int(rrtype): rrtype.name for rrtype in RRType if rrtype not in {RRType.OPT, RRType.AXFR, RRType.IXFR}}
"""Types with a counter of their own; the rest share one, for queries can ask any of 65,536."""
_TRANSFERS = {RRType.AXFR, RRType.IXFR}


class Answers:
    """Answers queries from a zone. `serial` is the zone's first; the owner of the clock advances it.

    `elsewhere` resolves all other names; without it they are refused.
    """

    def __init__(self, zone: Zone, rendered: Rendered, serial: int, elsewhere: Elsewhere | None = None) -> None:
        self._zone = zone
        self._elsewhere = elsewhere
        self._rendered = rendered
        self._kept = rendered.answers
        self.soa = StartOfAuthority(zone.ttl, serial)
        self._tallies: dict[tuple[str, str], Tally] = {}
        self.dropped = 0
        """Messages that deserved no reply."""
        self.rendered = 0
        """Queries that were answered without a kept answer."""

    @property
    def tallies(self) -> Mapping[tuple[str, str], Tally]:
        """Responses by transport, by (type, rcode) of at most a few dozen; unread queries have an empty type."""
        return self._tallies

    def respond(self, message: bytes, transport: int) -> bytes | Later | None:
        """The response to a message, or what finds it out; None if it gets none.

        `transport`: see `svcproxy_dns.rendered.TCP`.
        """
        kept = self._kept.get(message[2:])
        if kept is not None:
            answer, tally, source, revision = kept
            if source.revision == revision:
                tally[transport] += 1
                if answer.__class__ is bytes:
                    return message[:2] + answer
                return message[:2] + answer.render(transport)  # type: ignore[union-attr]  # bytes went the line above
        return self._respond(message, transport)

    def _respond(self, message: bytes, transport: int) -> bytes | Later | None:
        query = parse_query(message)
        if query is None:
            self.dropped += 1
            return None
        self.rendered += 1
        if isinstance(query, Rcode):
            self._tally("", query)[transport] += 1
            return header_only(message, query)
        answer = self._answer(query, message, transport)
        return message[:2] + answer if isinstance(answer, bytes) else answer

    def _tally(self, rrtype: str, rcode: Rcode) -> Tally:
        tally = self._tallies.get((rrtype, rcode.name))
        if tally is None:
            tally = self._tallies[rrtype, rcode.name] = [0] * TRANSPORTS
        return tally

    def _answer(self, query: Query, message: bytes, transport: int) -> bytes | Later:
        """The response after the ID, or what finds the whole of it out."""
        zone = self._zone
        rcode, name = Rcode.NOERROR, None
        if query.edns_version:
            rcode = Rcode.BADVERS
        elif self._elsewhere is not None and query.labels[-len(zone.labels) :] != zone.labels:
            return self._elsewhere.resolve(query, message[:2], transport)
        elif query.qclass != CLASS_IN or query.labels[-len(zone.labels) :] != zone.labels or query.qtype in _TRANSFERS:
            rcode = Rcode.REFUSED
        else:
            found = zone.lookup(query.labels[: -len(zone.labels)])
            if isinstance(found, Name):
                name = found
            else:
                rcode = Rcode.NXDOMAIN if found is None else Rcode.SERVFAIL
        if name is not None and name.alias is not None and query.qtype != RRType.SRV:
            targets, end = self._chain(query, name.alias)
            if self._elsewhere is not None and end is _ELSEWHERE and query.qtype != RRType.CNAME:
                aliases = [Alias(target, zone.ttl) for target in targets]
                return self._elsewhere.resolve(query, message[:2], transport, aliases)
            response, rcode = self._follow(query, targets, end, transport)
            self._tally(_COUNTED.get(query.qtype, _OTHER), rcode)[transport] += 1
            return response
        tally = self._tally(_COUNTED.get(query.qtype, _OTHER), rcode)
        tally[transport] += 1
        if name is None:
            return self._without_name(query, rcode)
        answer = self._about(query, name)
        if name.source is not None and query.plain:
            self._rendered.keep(message[2:], (answer, tally, name.source, name.source.revision))
        return answer if isinstance(answer, bytes) else answer.render(transport)

    def _without_name(self, query: Query, rcode: Rcode) -> bytes:
        if rcode in {Rcode.REFUSED, Rcode.BADVERS}:
            return query.front(query.response_flags(rcode), 0, 0) + query.opt_record(rcode)
        front = query.front(query.response_flags(rcode, AA), 0, 1)
        return front + self.soa.record(self._zone_offset(query)) + query.opt_record()

    def _zone_offset(self, query: Query) -> int:
        """Where the zone's name stands in a message with this question."""
        left = query.labels[: -len(self._zone.labels)]
        return HEADER_OCTETS + len(left) + sum(map(len, left))

    def _about(self, query: Query, name: Name) -> bytes | Answer:
        """The answer about a name that exists and is no alias."""
        addresses = _addresses(name, query.qtype)
        opt = query.opt_record()
        if addresses:
            return _address_answer(query, addresses, opt)
        flags = query.response_flags(Rcode.NOERROR, AA)
        offset = self._zone_offset(query)
        if query.qtype == RRType.SOA and offset == HEADER_OCTETS:
            return WithSoa(query.front(flags, 1, 0), self.soa, offset, opt)
        return WithSoa(query.front(flags, 0, 1), self.soa, offset, opt)

    def _follow(
        self, query: Query, targets: list[str], end: Name | Unready | None, transport: int
    ) -> tuple[bytes, Rcode]:
        """CNAMEs from the question's name as far as the zone knows them, then what is asked (RFC 1034 §3.6.2).

        A target outside the zone ends the chain. One that does not exist gives its NXDOMAIN (RFC 6604 §3); a loop, and
        a chain longer than `CHAIN_MAX`, NODATA.
        """
        answer = Assembly(query, TCP_MAX_OCTETS if transport & TCP else query.udp_limit)
        rcode = Rcode.NOERROR
        if isinstance(end, Unready):
            rcode = Rcode.SERVFAIL
        else:
            for target in targets:
                answer.add_alias(target, self._zone.ttl)
        if end is None:
            rcode = Rcode.NXDOMAIN
        addresses = _addresses(end, query.qtype) if isinstance(end, Name) else None
        if addresses:
            answer.add_addresses(addresses)
        elif end is not _ELSEWHERE:
            answer.add_authority(self.soa.record(self._zone_offset(query)))
        return answer.response(rcode), rcode

    def _chain(self, query: Query, alias: str) -> tuple[list[str], Name | Unready | None]:
        """The targets of the aliases, in order, and what the last of them is."""
        if query.qtype == RRType.CNAME:
            return [alias], _ELSEWHERE
        zone_labels = self._zone.labels
        asked = ".".join(query.labels)
        targets = [alias]
        while True:
            target = targets[-1]
            labels = target.split(".")
            if labels[-len(zone_labels) :] != zone_labels:
                return targets, _ELSEWHERE
            if target == asked or target in targets[:-1] or len(targets) > CHAIN_MAX:
                return [], _NO_DATA
            found = self._zone.lookup(labels[: -len(zone_labels)])
            if not isinstance(found, Name) or found.alias is None:
                return targets, found
            targets.append(found.alias)


_ELSEWHERE = Name(None)
"""A name that this server does not answer for."""
_NO_DATA = Name(None)


def _addresses(name: Name, qtype: int) -> AddressSet | None:
    if qtype == RRType.A:
        return name.ipv4
    return name.ipv6 if qtype == RRType.AAAA else None


def _address_answer(query: Query, addresses: AddressSet, opt: bytes) -> bytes | Answer:
    """All addresses that the transport carries; TC says that there are more (RFC 2181 §9)."""
    fronts = []
    for limit in (query.udp_limit, TCP_MAX_OCTETS):
        room = limit - HEADER_OCTETS - len(query.question) - len(opt)
        count = min(len(addresses), room // addresses.record_octets)
        flags = AA if count == len(addresses) else AA | TC
        fronts.append((query.front(query.response_flags(Rcode.NOERROR, flags), count, 0), count))
    if len(addresses) == 1:
        return fronts[0][0] + addresses.take(1) + opt
    return Rotating(addresses, fronts[0], fronts[1], opt)
