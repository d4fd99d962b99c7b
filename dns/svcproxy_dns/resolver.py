# SPDX-License-Identifier: Apache-2.0
"""Names outside the zone: from the cache, or from upstreams, once for all who ask the same. Pure.

A *flight* is a question that upstreams are asked, with the clients that wait for it. Flights and clients are bounded,
and so is what one client may wait for, so that no client takes it all; whoever comes in excess is refused at once, and
the zone's own answers never come this way.

Where a stale response is at hand, it is what clients get when upstreams fail, or do not answer within `STALE_AFTER`.

An upstream that hands our questions back to us is found out by a name that only we know: it is asked for it, and if
the question comes back, the upstream loops and is left alone until it no longer does. Times are monotonic seconds.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from svcproxy_dns.body import Body
from svcproxy_dns.cache import STALE_TTL, Cache, Entry, Kind
from svcproxy_dns.elsewhere import Alias, Deliver
from svcproxy_dns.forwarding import Answered, Ask, Drop, Exchange, Failed, Failure, Question, Sample, Timing, key_of
from svcproxy_dns.rendered import TCP, Tally
from svcproxy_dns.replies import Record
from svcproxy_dns.traffic import Counts
from svcproxy_dns.upstreams import Plan, Upstream, Upstreams
from svcproxy_dns.wire import (
    AA,
    CD,
    CLASS_IN,
    ID_OCTETS,
    TCP_MAX_OCTETS,
    TYPE_CLASS_OCTETS,
    Query,
    Rcode,
    RRType,
    encode_name,
)

STALE_AFTER = 1.8
"""Seconds that a client waits for upstreams where a stale response is at hand (RFC 8767 §5)."""
TIMEOUT_TTL = 1.0
"""Seconds for which it is remembered that no upstream has answered (RFC 9520 §3.2)."""
WAITING_MAX = 10_000
"""Clients' queries that wait, over all flights."""
LOOP_CHECK_INTERVAL = 5.0
"""Seconds between two looks whether upstreams that loop, or are suspected to, do."""

_HINFO = 13
_META_TYPES = frozenset({0, int(RRType.OPT), *range(128, 255)})
"""Types that are no data (RFC 6895 §3.1); ANY, 255, may be asked."""
_TRANSPORTS = 4
_KEPT_FAILURES = frozenset({Rcode.SERVFAIL, Rcode.NOTIMP})
_COUNTED = {int(rrtype): rrtype.name for rrtype in RRType if rrtype != RRType.OPT}
_RCODES = {int(rcode): rcode.name for rcode in Rcode}
_NOERROR, _NXDOMAIN = int(Rcode.NOERROR), int(Rcode.NXDOMAIN)

Steps = list[Ask | Drop]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of what is in flight."""

    concurrent: int = 1000
    """Flights."""
    per_client: int = 100
    """Queries that one client waits for."""


@dataclass(slots=True)
class Waiting:
    """A query whose response has to be found out."""

    query: Query
    ident: bytes
    transport: int
    aliases: Sequence[Alias]
    question: Question
    client: str = ""
    deliver: Deliver = lambda response: None  # noqa: ARG005  # until `admit`


@dataclass(eq=False, slots=True)
class Flight:
    """A question on its way. `stale`: what there is to answer with if it gets lost."""

    key: bytes
    exchange: Exchange
    stale: Entry | None
    stale_at: float
    waiting: list[Waiting] = field(default_factory=list)
    stale_given: bool = False
    """Whether that has been given to those who waited."""
    joined: bool = False
    """Whether another client has asked the same meanwhile; perhaps it was an upstream."""
    checks: Upstream | None = None
    """The upstream that it finds out about."""
    returned: bool = False
    """Whether it has come back."""

    @property
    def wake_at(self) -> float:
        """When to call `Resolver.woken`."""
        return min(self.exchange.wake_at, self.stale_at)

    @property
    def over(self) -> bool:
        """Whether it has an outcome."""
        return self.exchange.outcome is not None


class Resolver:
    """See the module. `observe` is told every reply of an upstream."""

    def __init__(
        self,
        upstreams: Upstreams,
        cache: Cache,
        rng: random.Random,
        *,
        bounds: Bounds,
        timing: Timing,
        mixed_case: bool = False,
        observe: Callable[[Sample], None] = lambda sample: None,  # noqa: ARG005
    ) -> None:
        self.upstreams = upstreams
        self.cache = cache
        self._rng = rng
        self._bounds = bounds
        self._timing = timing
        self._mixed_case = mixed_case
        self._observe = observe
        self._flights: dict[bytes, Flight] = {}
        self._checks: dict[bytes, Flight] = {}
        """Those that find out about loops, by name: it may come back with other flags."""
        self._by_client: dict[str, int] = {}
        """How many queries each client waits for."""
        self._waiting = 0
        self._suspects: set[Upstream] = set()
        """Upstreams that may loop."""
        self.responses: dict[tuple[str, str, str], Tally] = {}
        """By (type, rcode, `forward` or `cache`), by transport."""
        self.counts = Counts()
        """Of the same responses."""
        self.hits = self.misses = self.stale = self.rejected = self.broken = self.ignored = 0

    @property
    def flights(self) -> int:
        """Questions of clients on their way."""
        return len(self._flights) - len(self._checks)

    @property
    def waiting(self) -> int:
        """Queries that wait for them."""
        return self._waiting

    # --- clients

    def lookup(
        self, query: Query, ident: bytes, transport: int, aliases: Sequence[Alias], now: float
    ) -> bytes | Waiting:
        """The response after the ID if it is at hand, else what to `admit`."""
        name = encode_name(aliases[-1].target) if aliases else query.question[:-TYPE_CLASS_OCTETS].lower()
        if query.qclass != CLASS_IN or query.qtype in _META_TYPES:
            return self._refusal(query, transport)
        key = key_of(name, query.qtype, query.qclass, query.dnssec_ok, bool(query.flags & CD))
        entry = self.cache.find(key, now)
        if entry is not None and now < entry.expires:
            self.hits += 1
            if entry.kind is not Kind.FAILURE:
                self.cache.stores[entry.kind].hits += 1
            return self._response(query, transport, aliases, name, entry.body, int(entry.expires - now), "cache")
        question = Question(name, query.qtype, query.qclass, query.dnssec_ok, bool(query.flags & CD))
        waiting = Waiting(query, ident, transport, aliases, question)
        if entry is not None and now < entry.retry_at:
            return self._stale_response(waiting, entry)
        check = self._checks.get(name)
        if check is not None and check.checks is not None:
            check.returned = check.checks.looping = True
            return self._refusal(query, transport)
        if self.upstreams.group(name).refuses:
            return self._refusal(query, transport)
        self.misses += 1
        return waiting

    def admit(self, waiting: Waiting, client: str, deliver: Deliver, now: float) -> tuple[Flight, Steps] | None:
        """Have a client wait for a response; what is to be done for it, None if nothing."""
        waiting.client, waiting.deliver = client, deliver
        key = waiting.question.key
        entry = self.cache.find(key, now)
        flight = self._flights.get(key)
        if (
            self._by_client.get(client, 0) >= self._bounds.per_client
            or self._waiting >= WAITING_MAX
            or (flight is None and self.flights >= self._bounds.concurrent)
        ):
            self.rejected += 1
            self._fail(waiting, entry, Rcode.REFUSED)
            return None
        if flight is not None:
            if flight.stale is not None and (flight.stale_given or now >= flight.stale_at):
                self._fail(waiting, flight.stale, Rcode.SERVFAIL)
            else:
                flight.joined = flight.joined or any(other.client != client for other in flight.waiting)
                self._enlist(flight, waiting)
            return None
        group = self.upstreams.group(waiting.question.name)
        plan = group.plan(now)
        self.broken += group.broken
        if not plan.order:
            self._fail(waiting, entry, Rcode.SERVFAIL)
            return None
        flight = self._flight(waiting.question, plan, entry, now)
        self._enlist(flight, waiting)
        return flight, self._after(flight, flight.exchange.begin(now), now)

    def _enlist(self, flight: Flight, waiting: Waiting) -> None:
        flight.waiting.append(waiting)
        self._waiting += 1
        self._by_client[waiting.client] = self._by_client.get(waiting.client, 0) + 1

    def _dismiss(self, flight: Flight) -> list[Waiting]:
        """The clients of a flight, which wait for it no longer."""
        dismissed, flight.waiting = flight.waiting, []
        self._waiting -= len(dismissed)
        for waiting in dismissed:
            left = self._by_client.pop(waiting.client) - 1
            if left:
                self._by_client[waiting.client] = left
        return dismissed

    # --- flights

    def _flight(self, question: Question, plan: Plan, entry: Entry | None, now: float) -> Flight:
        exchange = Exchange(question, plan, now, self._timing, self._rng, mixed_case=self._mixed_case)
        stale = entry if entry is not None and entry.kind is not Kind.FAILURE else None
        stale_at = now + STALE_AFTER if stale is not None else float("inf")
        flight = self._flights[question.key] = Flight(question.key, exchange, stale, stale_at)
        return flight

    def received(self, flight: Flight, attempt: int, message: bytes, now: float) -> Steps:
        """See `Exchange.received`."""
        return self._after(flight, flight.exchange.received(attempt, message, now), now)

    def failed(self, flight: Flight, attempt: int, now: float, *, ours: bool) -> Steps:
        """See `Exchange.failed`."""
        return self._after(flight, flight.exchange.failed(attempt, now, ours=ours), now)

    def woken(self, flight: Flight, now: float) -> Steps:
        """`flight.wake_at` has come."""
        if flight.stale is not None and now >= flight.stale_at:
            for waiting in self._dismiss(flight):
                self._fail(waiting, flight.stale, Rcode.SERVFAIL)
            flight.stale_at, flight.stale_given = float("inf"), True
        return self._after(flight, flight.exchange.woken(now), now)

    def _after(self, flight: Flight, steps: Steps, now: float) -> Steps:
        outcome = flight.exchange.outcome
        if outcome is None or self._flights.get(flight.key) is not flight:
            return steps
        del self._flights[flight.key]
        self.ignored += flight.exchange.ignored
        for sample in flight.exchange.samples:
            self._observe(sample)
        if flight.checks is not None:
            del self._checks[flight.exchange.question.name]
            self._checked(flight, flight.checks, outcome)
        elif isinstance(outcome, Answered):
            self._answered(flight, outcome, now)
        else:
            self._lost(flight, outcome, now)
        return steps

    def _answered(self, flight: Flight, outcome: Answered, now: float) -> None:
        ttl = self.cache.keep(flight.key, outcome.body, outcome.ttl, denies=outcome.denies, now=now)
        flags = AA if outcome.authoritative else 0
        for waiting in self._dismiss(flight):
            self._deliver(waiting, self._late_response(waiting, outcome.body, ttl, "forward", flags))

    def _lost(self, flight: Flight, outcome: Failed, now: float) -> None:
        seconds = 0.0
        if outcome.failure is Failure.TIMEOUT:
            seconds = TIMEOUT_TTL
            if flight.joined:
                self._suspects.update(flight.exchange.upstreams)
        elif outcome.rcode in _KEPT_FAILURES:
            seconds = float("inf")
        self.cache.fail(flight.key, outcome.rcode, seconds, now)
        stale = flight.stale if flight.stale is not None and now < flight.stale.stale_until else None
        for waiting in self._dismiss(flight):
            self._fail(waiting, stale, outcome.rcode)

    # --- loops

    def check_loops(self, now: float, *, everybody: bool = False) -> list[tuple[Flight, Steps]]:
        """Ask upstreams that loop, or are suspected to, for a name that nobody else knows. `everybody`: ask all."""
        found = []
        for upstream in self.upstreams:
            if everybody or upstream.looping or upstream in self._suspects:
                name = encode_name(f"{self._rng.getrandbits(64):016x}.{self._rng.getrandbits(64):016x}")
                flight = self._flight(Question(name, _HINFO, CLASS_IN), Plan((upstream,)), None, now)
                flight.checks, self._checks[name] = upstream, flight
                found.append((flight, self._after(flight, flight.exchange.begin(now), now)))
        self._suspects.clear()
        return found

    def _checked(self, flight: Flight, upstream: Upstream, outcome: Answered | Failed) -> None:
        replied = isinstance(outcome, Answered) or outcome.failure is Failure.REFUSAL
        if replied and not flight.returned:
            upstream.looping = False

    # --- responses

    def _deliver(self, waiting: Waiting, response: bytes) -> None:
        waiting.deliver(waiting.ident + response)

    def _fail(self, waiting: Waiting, entry: Entry | None, rcode: Rcode) -> None:
        """Deliver what is stale, if there is any, else that code."""
        if entry is not None and entry.kind is not Kind.FAILURE:
            self._deliver(waiting, self._stale_response(waiting, entry))
        else:
            self._deliver(waiting, self._refusal(waiting.query, waiting.transport, rcode))

    def _refusal(self, query: Query, transport: int, rcode: Rcode = Rcode.REFUSED) -> bytes:
        return self._response(query, transport, (), b"", Body(b"\0", rcode), 0, "forward")

    def _stale_response(self, waiting: Waiting, entry: Entry) -> bytes:
        self.stale += 1
        return self._late_response(waiting, entry.body, STALE_TTL, "cache")

    def _late_response(self, waiting: Waiting, body: Body, ttl: int, source: str, flags: int = 0) -> bytes:
        return self._response(
            waiting.query, waiting.transport, waiting.aliases, waiting.question.name, body, ttl, source, flags
        )

    def _response(
        self,
        query: Query,
        transport: int,
        aliases: Sequence[Alias],
        name: bytes,
        body: Body,
        ttl: int,
        source: str,
        flags: int = 0,
    ) -> bytes:
        """The response to a query; `body` is about `name`, where the aliases lead."""
        if aliases and (body.rcode == _NOERROR or body.rcode == _NXDOMAIN):
            try:
                body = _behind(aliases, query, name, body)
            except ValueError:  # with the aliases before it, it is longer than a message can be
                body = Body(b"\0", Rcode.SERVFAIL)
            ttl, flags = min(ttl, *(alias.ttl for alias in aliases)), AA
        key = _COUNTED.get(query.qtype, "other"), _RCODES[body.rcode], source
        tally = self.responses.get(key)
        if tally is None:
            tally = self.responses[key] = [0] * _TRANSPORTS
        tally[transport] += 1
        limit = TCP_MAX_OCTETS if transport & TCP else query.udp_limit
        response = body.render(query, limit, ttl, flags)
        self.counts.add(query.octets, len(response) + ID_OCTETS, transport, dnssec_ok=query.dnssec_ok)
        return response


def _behind(aliases: Sequence[Alias], query: Query, name: bytes, body: Body) -> Body:
    """The aliases from the question's name on, then what `body` says about `name`."""
    owner, records = query.question[:-4], []
    for alias in aliases:
        target = encode_name(alias.target)
        records.append(Record(owner, RRType.CNAME, 0, target))
        owner = target
    found = body.records(name)
    return Body(query.question[:-4], body.rcode, [*records, *found.answers], found.authorities, found.additionals)
