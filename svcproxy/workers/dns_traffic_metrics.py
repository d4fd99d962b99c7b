# SPDX-License-Identifier: Apache-2.0
"""The metrics of all queries, under CoreDNS' names: octets of queries and responses, DO bits, durations."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from svcproxy_dns.forward_statistics import BUCKETS, Histogram
from svcproxy_dns.rendered import TCP
from svcproxy_dns.traffic import Counts

SIZES = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000)
"""Octets, as CoreDNS has them."""
_PROTOCOLS = (("udp", 0), ("tcp", TCP))
"""Name, and a transport that it is counted under."""


def traffic_metrics(zones: Mapping[str, Counts], server: str) -> Iterator[Metric]:
    """All families, of the counts of each zone."""
    labels = ["server", "zone", "view"]
    durations = HistogramMetricFamily(
        "coredns_dns_request_duration_seconds", "Time from a query to its response.", labels=labels
    )
    requests = HistogramMetricFamily("coredns_dns_request_size_bytes", "Octets of queries.", labels=[*labels, "proto"])
    responses = HistogramMetricFamily(
        "coredns_dns_response_size_bytes", "Octets of responses.", labels=[*labels, "proto"]
    )
    dnssec_ok = CounterMetricFamily("coredns_dns_do_requests", "Queries with the DO bit.", labels=labels)
    for zone, counts in zones.items():
        place = [server, zone, ""]
        durations.add_metric(place, *_times(counts.durations))
        dnssec_ok.add_metric(place, counts.dnssec_ok)
        for proto, transport in _PROTOCOLS:
            requests.add_metric([*place, proto], *_sizes(counts.requests[transport]))
            responses.add_metric([*place, proto], *_sizes(counts.responses[transport]))
    yield from (durations, requests, responses, dnssec_ok)


def _times(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    return _cumulative(BUCKETS, histogram.counts), histogram.sum


def _sizes(sizes: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    counts = [0] * (len(SIZES) + 1)
    for octets, times in sizes.items():
        counts[bisect_left(SIZES, octets)] += times
    return _cumulative(SIZES, counts), sum(octets * times for octets, times in sizes.items())


def _cumulative(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """As Prometheus has buckets: each with all that is in smaller ones."""
    return list(zip([*(str(float(edge)) for edge in edges), "+Inf"], accumulate(counts), strict=True))
