# SPDX-License-Identifier: Apache-2.0
"""What is counted of every query, in integers as they come: buckets are for whoever reads them. Pure.

Names of the zones and all other names are counted apart, as CoreDNS counts by zone.
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from svcproxy_dns.forward_statistics import BUCKETS, Histogram

Sizes = defaultdict[int, int]
"""How many messages had so many octets: no more entries than there are lengths, in practice some dozens."""


def _sizes() -> tuple[Sizes, Sizes, Sizes, Sizes]:
    udp, tcp = Sizes(int), Sizes(int)
    return udp, udp, tcp, tcp


@dataclass(slots=True)
class Counts:
    """Queries that were answered. Transports are numbers, see `svcproxy_dns.rendered.TCP`."""

    requests: tuple[Sizes, ...] = field(default_factory=_sizes)
    """Octets of the queries, by transport."""
    responses: tuple[Sizes, ...] = field(default_factory=_sizes)
    """Octets of the responses, by transport."""
    dnssec_ok: int = 0
    """Queries with the DO bit (RFC 3225)."""
    at_hand: int = 0
    """Responses that nobody had to wait for; counted for other names than the zones' alone."""
    durations: Histogram = field(default_factory=Histogram)
    """Seconds from when a query had been read until its response was sent."""

    def add(self, request: int, response: int, transport: int, *, dnssec_ok: bool) -> None:
        """Count a response by the octets of both messages."""
        self.requests[transport][request] += 1
        self.responses[transport][response] += 1
        if dnssec_ok:
            self.dnssec_ok += 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """All queries."""

    zones: Counts = field(default_factory=Counts)
    elsewhere: Counts = field(default_factory=Counts)

    def took(self, seconds: float, answered: int, elsewhere: int) -> None:
        """Count how long queries took that were answered in one go: none was sent before all were.

        `elsewhere`: how many of the `answered` were about other names.
        """
        _observe(self.zones.durations, seconds, answered - elsewhere)
        if elsewhere:
            _observe(self.elsewhere.durations, seconds, elsewhere)


def _observe(histogram: Histogram, seconds: float, times: int) -> None:
    histogram.counts[bisect_left(BUCKETS, seconds)] += times
    histogram.sum += seconds * times
