# SPDX-License-Identifier: Apache-2.0
"""Queries in, responses out: what the zones say, in octets. Pure.

A query seen before costs one look-up, from its octets after the ID to those of the response. An OPT is taken off the
query first and put on the response after, until both have been seen together. Only answers about names that exist are
kept, for those that do not are without number; an answer is right as long as its source is of the revision that it was
made from, so a change costs nothing here and is in force with the next query.

Messages of every kind are answered or dropped; none raises.
"""

from collections.abc import Mapping

from svcproxy_dns.domains import Domain, Domains
from svcproxy_dns.elsewhere import Alias, Elsewhere, Later
from svcproxy_dns.rendered import TCP, Answer, Kept, Rendered, StartOfAuthority, Tally
from svcproxy_dns.responses import Responses
from svcproxy_dns.sections import Records, alias_records, with_opt
from svcproxy_dns.traffic import Counts
from svcproxy_dns.wire import (
    AA,
    CLASS_IN,
    HEADER_OCTETS,
    ID_OCTETS,
    OPT_FRONT_OCTETS,
    OPT_OCTETS,
    TCP_MAX_OCTETS,
    TYPE_CLASS_OCTETS,
    UDP_DEFAULT_OCTETS,
    Query,
    Rcode,
    RRType,
    front,
    header_only,
    options_end,
    parse_query,
)
from svcproxy_dns.zone import Name, Unready, Zone

CHAIN_MAX = 10
"""CNAMEs followed within the zones for one answer."""
OPTS_MAX = 1024
"""Spellings of OPT remembered; clients use a handful. One more and all are read anew."""
TRANSPORTS = 4
_COUNTED = {int(rrtype): rrtype.name for rrtype in RRType if rrtype not in {RRType.OPT, RRType.AXFR, RRType.IXFR}}
_UNREAD, _OTHERS = -1, -2
"""Stand for a type where messages are counted."""
"""Types with a counter of their own; the rest share one, for queries can ask any of 65,536."""
_TRANSFERS = frozenset(map(int, (RRType.AXFR, RRType.IXFR)))
_SRV, _CNAME = int(RRType.SRV), int(RRType.CNAME)
_NO_RECORD, _ONE_RECORD = b"\0\0", b"\0\1"
"""ARCOUNT of a query without and with an OPT."""


class Answers:
    """Answers queries from a zone. `serial` is the zone's first; the owner of the clock advances it.

    `elsewhere` resolves all other names; without it they are refused.
    """

    def __init__(
        self, zone: Zone, domains: Domains, rendered: Rendered, serial: int, elsewhere: Elsewhere | None = None
    ) -> None:
        self._zone = zone
        self._elsewhere = elsewhere
        self._domains = domains
        self._rendered = rendered
        self._kept = rendered.answers
        self.soa = StartOfAuthority(zone.ttl, serial, domains.primary.wire)
        self._responses = Responses(zone, self.soa, domains.primary)
        self._opts: dict[bytes, tuple[int, bytes, bool]] = {}
        """OPT of a query, up to its options, to the limit over UDP, the OPT of the response, and whether it has DO."""
        self.counts = Counts()
        """Of what is answered here; what is resolved elsewhere is counted there."""
        self._requests, self._responses_sent = self.counts.requests, self.counts.responses
        self._tallies: dict[tuple[int, int], Tally] = {}
        self.dropped = 0
        """Messages that deserved no reply."""
        self.rendered = 0
        """Queries that were answered without a kept answer."""

    @property
    def tallies(self) -> Mapping[tuple[str, str], Tally]:
        """Responses by transport, by (type, rcode) of at most a few dozen; unread queries have an empty type."""
        names = {**_COUNTED, _UNREAD: "", _OTHERS: "other"}
        return {(names[qtype], Rcode(rcode).name): tally for (qtype, rcode), tally in self._tallies.items()}

    def respond(self, message: bytes, transport: int) -> bytes | Later | None:
        """The response to a message, or what finds it out; None if it gets none.

        `transport`: see `svcproxy_dns.rendered.TCP`.
        """
        kept = self._kept.get(message[2:])
        if kept is not None:
            answer, tally, source, revision = kept
            if source.revision == revision:
                if answer.__class__ is bytes:
                    response = message[:2] + answer
                else:
                    limit = TCP_MAX_OCTETS if transport & TCP else UDP_DEFAULT_OCTETS
                    response = message[:2] + answer.render(limit, b"")  # type: ignore[union-attr]  # bytes went above
                tally[transport] += 1
                self._requests[transport][len(message)] += 1
                self._responses_sent[transport][len(response)] += 1
                return response
        if message[10:12] == _ONE_RECORD:
            known = self._respond_without_opt(message, transport)
            if known is not None:
                return known
        return self._respond(message, transport)

    def _respond_without_opt(self, message: bytes, transport: int) -> bytes | None:
        """The response made of an answer that is kept for the query without its OPT; None if there is none.

        Without options to look at and DO to count, it is kept too from then on.
        """
        # What is kept ends with its question, and has no null but the one after its name.
        null = message.find(0, HEADER_OCTETS)
        if null < 0:
            return None
        end = null + 1 + TYPE_CLASS_OCTETS
        known = self._opts.get(message[end : end + OPT_FRONT_OCTETS])
        kept = self._kept.get(message[2:10] + _NO_RECORD + message[12:end])
        if kept is None or known is None or options_end(message, end) != len(message):
            return None
        answer, tally, source, revision = kept
        if source.revision != revision:
            return None
        limit, opt, dnssec_ok = known
        if isinstance(answer, bytes):
            answer = with_opt(answer, opt)
            if len(message) == end + OPT_OCTETS and not dnssec_ok:
                self._rendered.keep(message[2:], (answer, tally, source, revision))
        else:
            answer = answer.render(TCP_MAX_OCTETS if transport & TCP else limit, opt)
        tally[transport] += 1
        response = message[:2] + answer
        self.counts.add(len(message), len(response), transport, dnssec_ok=dnssec_ok)
        return response

    def _respond(self, message: bytes, transport: int) -> bytes | Later | None:
        query = parse_query(message)
        if query is None:
            self.dropped += 1
            return None
        self.rendered += 1
        if isinstance(query, Rcode):
            self._tally(_UNREAD, query)[transport] += 1
            response = header_only(message, query)
            self.counts.add(len(message), len(response), transport, dnssec_ok=False)
            return response
        answer = self._answer(query, message, transport)
        return message[:2] + answer if isinstance(answer, bytes) else answer

    def _tally(self, qtype: int, rcode: int) -> Tally:
        tally = self._tallies.get((qtype, rcode))
        if tally is None:
            tally = self._tallies[qtype, rcode] = [0] * TRANSPORTS
        return tally

    def _answer(self, query: Query, message: bytes, transport: int) -> bytes | Later:
        """The response after the ID, or what finds the whole of it out."""
        elsewhere = self._elsewhere
        domain = self._domains.find(query.labels)
        if domain is None and elsewhere is not None and not query.edns_version:
            return elsewhere.resolve(query, message[:2], transport)
        if domain is None or query.qclass != CLASS_IN or query.qtype in _TRANSFERS or query.edns_version:
            rcode = Rcode.BADVERS if query.edns_version else Rcode.REFUSED
            self._count(query, rcode, transport)
            opt = query.opt_record(rcode)
            response = front(query.response_flags(rcode), query.question, 0, 0, 1 if opt else 0) + opt
            self.counts.add(len(message), len(response) + ID_OCTETS, transport, dnssec_ok=query.dnssec_ok)
            return response
        name = self._lookup(query.labels, domain)
        if elsewhere is not None and name is None and domain.reverse:
            return elsewhere.resolve(query, message[:2], transport)
        answer: bytes | Answer
        if not isinstance(name, Name):
            rcode = Rcode.NXDOMAIN if name is None else Rcode.SERVFAIL
            self._count(query, rcode, transport)
            answer = self._responses.negative(query, domain, rcode)
        elif name.alias is not None and query.qtype != _SRV:
            targets, end = self._chain(query, name.alias)
            if elsewhere is not None and end is _ELSEWHERE and query.qtype != _CNAME:
                aliases = [Alias(target, self._zone.ttl) for target in targets]
                return elsewhere.resolve(query, message[:2], transport, aliases)
            answer, rcode = self._follow(query, domain, targets, end)
            self._count(query, rcode, transport)
        else:
            tally = self._count(query, Rcode.NOERROR, transport)
            answer = self._responses.about(query, domain, name)
            if name.source is not None and query.plain:
                self._keep(query, message, (answer, tally, name.source, name.source.revision))
        opt = query.opt_record()
        if isinstance(answer, bytes):
            response = with_opt(answer, opt)
        else:
            response = answer.render(TCP_MAX_OCTETS if transport & TCP else query.udp_limit, opt)
        self.counts.add(len(message), len(response) + ID_OCTETS, transport, dnssec_ok=query.dnssec_ok)
        return response

    def _count(self, query: Query, rcode: Rcode, transport: int) -> Tally:
        tally = self._tallies.get((query.qtype, rcode))
        if tally is None:
            tally = self._tally(query.qtype if query.qtype in _COUNTED else _OTHERS, rcode)
        tally[transport] += 1
        return tally

    def _keep(self, query: Query, message: bytes, kept: Kept) -> None:
        self._rendered.keep(message[2:10] + _NO_RECORD + query.question, kept)
        if query.opt_payload is not None:
            if len(self._opts) >= OPTS_MAX:
                self._opts.clear()
            start = HEADER_OCTETS + len(query.question)
            self._opts[message[start : start + OPT_FRONT_OCTETS]] = (
                query.udp_limit,
                query.opt_record(),
                query.dnssec_ok,
            )

    def _lookup(self, labels: list[str], domain: Domain) -> Name | Unready | None:
        if domain.reverse:
            if len(labels) == domain.depth:
                return _REVERSE_APEX
            return self._zone.lookup_address(labels)
        return self._zone.lookup(labels[: -domain.depth])

    def _follow(
        self, query: Query, domain: Domain, targets: list[str], end: Name | Unready | None
    ) -> tuple[Answer, Rcode]:
        """CNAMEs from the question's name as far as the zones know them, then what is asked (RFC 1034 §3.6.2).

        A target outside the zones ends the chain. One that does not exist gives its NXDOMAIN (RFC 6604 §3); a loop, and
        a chain longer than `CHAIN_MAX`, NODATA.
        """
        rcode = Rcode.NOERROR
        if isinstance(end, Unready):
            rcode, targets = Rcode.SERVFAIL, []
        elif end is None:
            rcode = Rcode.NXDOMAIN
        answers, owner = alias_records(query.question, targets, self._zone.ttl)
        authorities: list[bytes] = []
        target_domain = self._domains.find(targets[-1].split(".")) if targets else None
        found: list[bytes] = []
        if target_domain is not None and isinstance(end, Name):
            found = self._responses.at_target(end, query.qtype, owner, target_domain)
        if found:
            answers += found
        elif end is not _ELSEWHERE:
            authorities.append(self._responses.soa(query, domain))
        return Records(query.response_flags(rcode, AA), query.question, answers, authorities), rcode

    def _chain(self, query: Query, alias: str) -> tuple[list[str], Name | Unready | None]:
        """The targets of the aliases, in order, and what the last of them is."""
        if query.qtype == _CNAME:
            return [alias], _ELSEWHERE
        asked = ".".join(query.labels)
        targets = [alias]
        while True:
            target = targets[-1]
            labels = target.split(".")
            domain = self._domains.find(labels)
            if domain is None:
                return targets, _ELSEWHERE
            if target == asked or target in targets[:-1] or len(targets) > CHAIN_MAX:
                return [], _NO_DATA
            found = self._lookup(labels, domain)
            if not isinstance(found, Name) or found.alias is None:
                return targets, found
            targets.append(found.alias)


_REVERSE_APEX = Name(None, apex=True)
_ELSEWHERE = Name(None)
"""A name that this server does not answer for."""
_NO_DATA = Name(None)
