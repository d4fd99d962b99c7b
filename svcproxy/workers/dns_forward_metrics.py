# SPDX-License-Identifier: Apache-2.0
"""The metrics of names outside the zone: CoreDNS' where it has them, of its plugins cache, forward and proxy."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from svcproxy_dns.forward_statistics import BUCKETS, ForwardStatistics

_ZONES = ["server", "zones", "view"]
_PROXY = "forward"
"""The value of `proxy_name`."""


def forward_metrics(now: ForwardStatistics, place: Sequence[str]) -> Iterator[Metric]:
    """All families. `place`: the values of `server`, `zones` and `view`."""
    yield from _cache(now, place)
    yield from _proxy(now)
    for name, text, value in (
        ("coredns_forward_max_concurrent_rejects", "Queries refused because too many waited.", now.rejected),
        ("coredns_forward_healthcheck_broken", "Questions for which no upstream was healthy.", now.broken),
        ("svcproxy_dns_forward_ignored", "Messages of upstreams that answered nothing that was asked.", now.ignored),
    ):
        counter = CounterMetricFamily(name, text)
        counter.add_metric([], float(value))
        yield counter
    for name, text, value in (
        ("questions", "Questions that upstreams are being asked.", now.flights),
        ("waiting", "Queries that wait for upstreams.", now.waiting),
    ):
        gauge = GaugeMetricFamily(f"svcproxy_dns_forward_{name}", text)
        gauge.add_metric([], float(value))
        yield gauge


def _cache(now: ForwardStatistics, place: Sequence[str]) -> Iterator[Metric]:
    server, zones, view = place
    entries = GaugeMetricFamily("coredns_cache_entries", "Responses kept.", labels=["server", "type", "zones", "view"])
    octets = GaugeMetricFamily("svcproxy_dns_cache_octets", "Estimate of the memory that they take.", labels=["type"])
    hits = CounterMetricFamily("coredns_cache_hits", "Responses found.", labels=["server", "type", "zones", "view"])
    evictions = CounterMetricFamily(
        "coredns_cache_evictions", "Responses that made room.", labels=["server", "type", "zones", "view"]
    )
    for store in now.stores:
        values = [server, store.kind, zones, view]
        entries.add_metric(values, store.entries)
        octets.add_metric([store.kind], store.octets)
        hits.add_metric(values, store.hits)
        evictions.add_metric(values, store.evictions)
    yield from (entries, octets, hits, evictions)
    for name, text, value in (
        ("requests", "Queries for names outside the zone.", now.hits + now.misses + now.stale),
        ("misses", "Queries whose response was not at hand.", now.misses),
        ("served_stale", "Responses given although they had expired.", now.stale),
    ):
        counter = CounterMetricFamily(f"coredns_cache_{name}", text, labels=_ZONES)
        counter.add_metric(place, float(value))
        yield counter


def _proxy(now: ForwardStatistics) -> Iterator[Metric]:
    times = HistogramMetricFamily(
        "coredns_proxy_request_duration_seconds",
        "Time until an upstream replied.",
        labels=["proxy_name", "to", "rcode"],
    )
    for (address, rcode), histogram in now.reply_times.items():
        counts = list(accumulate(histogram.counts))
        edges = [*map(str, BUCKETS), "+Inf"]
        times.add_metric([_PROXY, address, rcode], list(zip(edges, counts, strict=True)), histogram.sum)
    yield times
    failures = CounterMetricFamily(
        "coredns_proxy_healthcheck_failures", "Queries left unanswered.", labels=["proxy_name", "to"]
    )
    suspect = GaugeMetricFamily(
        "svcproxy_dns_upstream_suspect", "Whether an upstream has left the last query unanswered.", labels=["to"]
    )
    looping = GaugeMetricFamily(
        "svcproxy_dns_upstream_looping", "Whether an upstream sends what it is asked back here.", labels=["to"]
    )
    for upstream in now.upstreams:
        failures.add_metric([_PROXY, upstream.address], upstream.unanswered)
        suspect.add_metric([upstream.address], float(upstream.suspect))
        looping.add_metric([upstream.address], float(upstream.looping))
    yield from (failures, suspect, looping)
    misses = CounterMetricFamily(
        "coredns_proxy_conn_cache_misses", "Sockets opened towards upstreams.", labels=["proxy_name", "to", "proto"]
    )
    for (address, proto), count in now.sockets.items():
        misses.add_metric([_PROXY, address, proto], count)
    yield misses
