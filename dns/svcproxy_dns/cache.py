# SPDX-License-Identifier: Apache-2.0
"""Responses of upstreams, kept for as long as they hold, and as a last resort somewhat longer. Pure.

Three stores, each bounded in entries and octets, so that a flood of names that do not exist leaves the answers alone:
answers, denials (RFC 2308) and failures (RFC 9520). The entry that was used longest ago makes room. An answer or denial
that has expired is *stale*: it is used when upstreams fail (RFC 8767), for a bounded time. Times are monotonic seconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from svcproxy_dns.body import Body
from svcproxy_dns.wire import Rcode

STALE_TTL = 30
"""Of what is served stale (RFC 8767 §4)."""
STALE_RECHECK = 30.0
"""Seconds after a failed refresh before the next (RFC 8767 §5)."""
FAILURES_MAX = 1024
"""Failures remembered."""
ENTRY_OCTETS = 260
"""What an entry takes besides its key and its body; measured on 64-bit CPython 3.11."""


class Kind(StrEnum):
    """What a response is, as CoreDNS calls it."""

    SUCCESS = "success"
    DENIAL = "denial"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How long, and how much. Seconds; entries and octets are those of answers, and again of denials."""

    ttl_min: int = 5
    ttl_max: int = 30
    denial_ttl_max: int = 30
    failure_ttl: int = 5
    stale_max: float = 3600.0
    """Time that an answer or denial is kept beyond its own; 0 for none."""
    entries: int = 10_000
    octets: int = 16 << 20


class Entry:
    """A response. `retry_at`: when a stale one may be refreshed again."""

    __slots__ = ("body", "expires", "kind", "retry_at", "stale_until", "weight")

    def __init__(self, kind: Kind, body: Body, expires: float, stale_until: float, weight: int) -> None:
        self.kind = kind
        self.body = body
        self.expires = expires
        self.stale_until = stale_until
        self.retry_at = 0.0
        self.weight = weight


class Store:
    """Entries of one kind."""

    def __init__(self, entries: int, octets: int) -> None:
        self._entries_max = entries
        self._octets_max = octets
        self._entries: dict[bytes, Entry] = {}
        """The one used longest ago first."""
        self.octets = 0
        """Estimate of the memory taken."""
        self.evictions = 0
        self.hits = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes, now: float) -> Entry | None:
        """The entry of a key, now the one last used, unless it is beyond use."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        if entry.stale_until <= now:
            self.octets -= entry.weight
            return None
        self._entries[key] = entry
        return entry

    def keep(self, key: bytes, entry: Entry) -> None:
        """Put an entry in place of an earlier one, and others out as the bounds need."""
        self.drop(key)
        self._entries[key] = entry
        self.octets += entry.weight
        while len(self._entries) > self._entries_max or self.octets > self._octets_max:
            oldest = next(iter(self._entries))
            self.octets -= self._entries.pop(oldest).weight
            self.evictions += 1

    def drop(self, key: bytes) -> None:
        """Forget a key."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.octets -= entry.weight


class Cache:
    """Keyed by what tells responses apart: name in lower case, type, class, DO and CD."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self.stores = {
            Kind.SUCCESS: Store(limits.entries, limits.octets),
            Kind.DENIAL: Store(limits.entries, limits.octets),
            Kind.FAILURE: Store(FAILURES_MAX, limits.octets),
        }

    def find(self, key: bytes, now: float) -> Entry | None:
        """What there is to answer with: fresh (`now < expires`) or stale."""
        stores = self.stores
        found = stores[Kind.SUCCESS].find(key, now) or stores[Kind.DENIAL].find(key, now)
        if found is not None and now < found.expires:
            return found
        failure = stores[Kind.FAILURE].find(key, now)
        if found is None:
            return failure
        if failure is not None:  # no need to try: it has just failed
            found.retry_at = max(found.retry_at, failure.expires)
        return found

    def keep(self, key: bytes, body: Body, ttl: int | None, *, denies: bool, now: float) -> int:
        """Keep a response as long as it holds and the limits allow; returns the TTL that it is sent with.

        `ttl`: seconds that it holds; None if it must not be kept, and then an earlier one goes too.
        """
        for store in self.stores.values():
            store.drop(key)
        if ttl is None:
            return self._limits.ttl_min
        limits = self._limits
        ttl = max(min(ttl, limits.denial_ttl_max if denies else limits.ttl_max), limits.ttl_min)
        kind = Kind.DENIAL if denies else Kind.SUCCESS
        weight = ENTRY_OCTETS + len(key) + body.weight
        self.stores[kind].keep(key, Entry(kind, body, now + ttl, now + ttl + limits.stale_max, weight))
        return ttl

    def fail(self, key: bytes, rcode: Rcode, seconds: float, now: float) -> None:
        """Remember that nobody answered, for `seconds` or what the limits allow."""
        until = now + min(seconds, self._limits.failure_ttl)
        for kind in (Kind.SUCCESS, Kind.DENIAL):
            stale = self.stores[kind].find(key, now)
            if stale is not None:
                stale.retry_at = now + STALE_RECHECK
        if until > now:
            body = Body(b"\0", rcode)
            weight = ENTRY_OCTETS + len(key) + body.weight
            self.stores[Kind.FAILURE].keep(key, Entry(Kind.FAILURE, body, until, until, weight))
