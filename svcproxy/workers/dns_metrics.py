# SPDX-License-Identifier: Apache-2.0
"""The DNS worker's metrics. Names that CoreDNS has too are CoreDNS' (`coredns_*`), everything else is `svcproxy_dns_*`.

The worker counts in plain integers; this collector reads them when somebody asks, so a query pays for nothing here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svcproxy import __version__
from svcproxy.config import DnsConfig
from svcproxy.workers.dns_forward_metrics import forward_metrics
from svcproxy.workers.dns_traffic_metrics import traffic_metrics
from svcproxy_dns.forward_statistics import Histogram
from svcproxy_dns.self_check import BUCKETS
from svcproxy_dns.worker import DnsStatistics

_TRANSPORTS = (("udp", "1"), ("udp", "2"), ("tcp", "1"), ("tcp", "2"))
"""(proto, family) in the order of a tally; families as CoreDNS numbers them."""


@dataclass(frozen=True, slots=True)
class QueryLogStatistics:
    """Entries since start."""

    lines: int = 0
    """Chosen to be logged."""
    over: int = 0
    """Left out because there were too many in a second."""
    dropped: int = 0
    """Of `lines`, those left out because too many waited to be written."""
    failed: int = 0
    """Of `lines`, those that could not be written."""


@dataclass(frozen=True, slots=True)
class RoleStatistics:
    """What is counted around the worker."""

    plugins: tuple[tuple[str, str], ...] = ()
    """(zone, name) of what is at work, in CoreDNS' words."""
    checks: Histogram = field(default_factory=lambda: Histogram(BUCKETS))
    """How long the worker's queries to itself took."""
    check_failures: int = 0
    config_hash: str = ""
    """SHA-512 of the configuration in force."""
    config_refused: int = 0
    """Changed configurations that were refused."""
    query_log: QueryLogStatistics = QueryLogStatistics()


class DnsMetrics:
    """Everything the worker counts, in the Prometheus text format."""

    def __init__(
        self,
        statistics: Callable[[], DnsStatistics],
        stale: Callable[[], bool],
        config: DnsConfig,
        others: Iterable[Collector] = (),
        role: Callable[[], RoleStatistics] = RoleStatistics,
    ) -> None:
        """`stale`: whether what is served may be out of date. `others`: what else is rendered."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        for each in others:
            self._registry.register(each)
        self._registry.register(_Collector(statistics, stale, config))
        self._registry.register(_RoleCollector(role, server_label(config)))

    async def render(self) -> bytes:
        """A scrape."""
        return generate_latest(self._registry)


class _Collector(Collector):
    def __init__(self, statistics: Callable[[], DnsStatistics], stale: Callable[[], bool], config: DnsConfig) -> None:
        self._statistics = statistics
        self._stale = stale
        self._server = server_label(config)
        self._zone = f"{config.cluster_domain}."

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        now = self._statistics()
        yield from self._traffic(now)
        zones = {self._zone: now.traffic.zones}
        if now.forward is not None:
            zones["."] = now.traffic.elsewhere
        yield from traffic_metrics(zones, self._server)
        if now.forward is not None:
            yield from forward_metrics(now.forward, [self._server, ".", ""])
        panics = CounterMetricFamily(
            "coredns_panics", "Queries answered with SERVFAIL for a fault of the worker's own."
        )
        panics.add_metric([], float(now.panics))
        yield panics
        info = GaugeMetricFamily("coredns_build_info", "Always 1.", labels=["version", "revision", "goversion"])
        info.add_metric([f"svcproxy-{__version__}", "", ""], 1)
        yield info
        for name, text, value in (
            ("synced", "Whether a complete set of names has been taken in.", now.synced),
            ("stale", "Whether what is served may be out of date: no agent, or none with a source.", self._stale()),
            ("serial", "SOA serial: Unix time of the last change.", now.serial),
            ("namespaces", "Namespaces known.", now.namespaces),
            ("services", "Services known.", now.services),
            ("endpoints", "Endpoint addresses known.", now.endpoints),
            ("pods", "Addresses of Pods known; none unless dns.pods is verified.", now.pods),
            ("answers_kept", "Rendered answers kept.", now.kept),
            ("answers_kept_octets", "Estimate of the memory that they take.", now.kept_octets),
            ("tcp_connections", "TCP connections open.", now.connections),
        ):
            gauge = GaugeMetricFamily(f"svcproxy_dns_{name}", text)
            gauge.add_metric([], float(value))
            yield gauge
        for name, text, value in (
            ("answers_rendered", "Queries that no kept answer served.", now.rendered),
            ("dropped", "Messages without a reply: not a query, or too short.", now.dropped),
            ("unsent", "Responses that the kernel refused.", now.unsent),
            ("receive_drops", "Queries over UDP that found the socket full.", now.receive_drops),
            ("tcp_connections_displaced", "TCP connections ended while idle for others.", now.connections_displaced),
            ("tcp_connections_expired", "TCP connections ended for idling.", now.connections_expired),
        ):
            counter = CounterMetricFamily(f"svcproxy_dns_{name}", text)
            counter.add_metric([], float(value))
            yield counter
        refused = CounterMetricFamily(
            "svcproxy_dns_tcp_connections_refused", "TCP connections over a limit.", labels=["limit"]
        )
        for limit, count in now.connections_refused.items():
            refused.add_metric([limit], count)
        yield refused

    def _traffic(self, now: DnsStatistics) -> Iterator[Metric]:
        labels = ["server", "zone", "view"]
        requests = CounterMetricFamily(
            "coredns_dns_requests", "Queries answered.", labels=[*labels, "proto", "family", "type"]
        )
        responses = CounterMetricFamily("coredns_dns_responses", "Responses.", labels=[*labels, "rcode", "plugin"])
        by_type: dict[tuple[str, str, int], int] = defaultdict(int)
        by_rcode: dict[tuple[str, str, str], int] = defaultdict(int)
        found = [(self._zone, "kubernetes", *key, tally) for key, tally in now.responses.items()]
        if now.forward is not None:
            found += [
                (".", plugin, qtype, rcode, tally) for (qtype, rcode, plugin), tally in now.forward.responses.items()
            ]
        for zone, plugin, qtype, rcode, tally in found:
            by_rcode[zone, rcode, plugin] += sum(tally)
            for transport, count in enumerate(tally):
                by_type[zone, qtype or "other", transport] += count
        for (zone, qtype, transport), count in by_type.items():
            if count:
                requests.add_metric([self._server, zone, "", *_TRANSPORTS[transport], qtype], count)
        for (zone, rcode, plugin), count in by_rcode.items():
            responses.add_metric([self._server, zone, "", rcode, plugin], count)
        yield requests
        yield responses


class _RoleCollector(Collector):
    def __init__(self, role: Callable[[], RoleStatistics], server: str) -> None:
        self._role = role
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        now = self._role()
        plugins = GaugeMetricFamily(
            "coredns_plugin_enabled", "What is at work; always 1.", labels=["server", "zone", "view", "name"]
        )
        for zone, name in now.plugins:
            plugins.add_metric([self._server, zone, "", name], 1)
        yield plugins
        edges = [*map(str, now.checks.buckets), "+Inf"]
        yield HistogramMetricFamily(
            "coredns_health_request_duration_seconds",
            "Time of the worker's queries to itself, one a second.",
            buckets=list(zip(edges, accumulate(now.checks.counts), strict=True)),
            sum_value=now.checks.sum,
        )
        version = GaugeMetricFamily(
            "coredns_reload_version_info", "The configuration in force; always 1.", labels=["hash", "value"]
        )
        version.add_metric(["sha512", now.config_hash], 1)
        yield version
        for name, text, value in (
            ("coredns_health_request_failures", "Queries of the worker to itself left unanswered.", now.check_failures),
            ("coredns_reload_failed", "Changed configurations that were refused.", now.config_refused),
            ("svcproxy_dns_query_log_lines", "Responses chosen for the query log.", now.query_log.lines),
        ):
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], float(value))
            yield counter
        lost = CounterMetricFamily(
            "svcproxy_dns_query_log_dropped", "Lines that the query log has not got.", labels=["reason"]
        )
        for reason, count in (
            ("rate", now.query_log.over),
            ("queue", now.query_log.dropped),
            ("write", now.query_log.failed),
        ):
            lost.add_metric([reason], count)
        yield lost


def server_label(config: DnsConfig) -> str:
    """The value of `server`, as CoreDNS writes it."""
    return f"dns://{config.listen[0]}" if config.listen else ""
