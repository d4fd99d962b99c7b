# SPDX-License-Identifier: Apache-2.0
"""What is counted about names outside the zone. Pure."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from svcproxy_dns.forwarding import Sample
from svcproxy_dns.rendered import Tally
from svcproxy_dns.wire import Rcode

BUCKETS = tuple(0.00025 * 2**power for power in range(16))
"""Seconds, as CoreDNS has them: 0.25 ms to 8.192 s."""
_RCODES = {rcode.value: rcode.name for rcode in Rcode}


class Histogram:
    """Times, by bucket."""

    def __init__(self, buckets: Sequence[float] = BUCKETS) -> None:
        self.buckets = buckets
        """Upper bounds, ascending."""
        self.counts = [0] * (len(buckets) + 1)
        """One more for what is longer than the last bucket; not cumulative."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.sum += seconds


class ReplyTimes:
    """How long upstreams took, by upstream and response code."""

    def __init__(self) -> None:
        self.histograms: dict[tuple[str, str], Histogram] = {}

    def observe(self, sample: Sample) -> None:
        """Count a reply."""
        key = sample.upstream.address, _RCODES.get(sample.rcode, "other")
        histogram = self.histograms.get(key)
        if histogram is None:
            histogram = self.histograms[key] = Histogram()
        histogram.observe(sample.seconds)

    def forget(self, known: set[str]) -> None:
        """Forget the upstreams that are not among these."""
        self.histograms = {key: each for key, each in self.histograms.items() if key[0] in known}


@dataclass(frozen=True, slots=True)
class UpstreamStatistics:
    """One upstream."""

    address: str
    suspect: bool
    """Whether it has left the last query unanswered."""
    looping: bool
    """Whether it sends what it is asked back to this server."""
    unanswered: int
    """Queries that it has left unanswered."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """One store of the cache."""

    kind: str
    entries: int
    octets: int
    hits: int
    evictions: int


@dataclass(frozen=True, slots=True)
class ForwardStatistics:
    """Counters since start, and gauges."""

    responses: dict[tuple[str, str, str], Tally]
    """By (type, rcode, `forward` or `cache`), by transport as in `DnsStatistics.responses`."""
    upstreams: tuple[UpstreamStatistics, ...]
    reply_times: dict[tuple[str, str], Histogram]
    """By (upstream, rcode)."""
    stores: tuple[StoreStatistics, ...]
    hits: int
    misses: int
    stale: int
    """Responses given although they had expired."""
    rejected: int
    """Queries refused because there were too many."""
    broken: int
    """Questions for which there was no healthy upstream."""
    ignored: int
    """Messages on an upstream's socket that did not answer what was asked."""
    flights: int
    """Questions on their way."""
    waiting: int
    """Queries that wait for them."""
    sockets: dict[tuple[str, str], int]
    """Sockets opened towards upstreams, by upstream and protocol."""
