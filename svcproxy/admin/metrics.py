# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics. Names that dashboards know are kube-proxy's (`kubeproxy_*`), everything else is `svcproxy_*`.

What happens is counted as it happens; how much there is is looked up when somebody asks. What needs a walk over the
frontend table is brought up to date by `refresh`, in small steps, before a scrape is rendered. The list in
`docs/reference/metrics.md` is checked against this module.

kube-proxy's meaning and buckets: pkg/proxy/metrics/metrics.go of Kubernetes v1.34. Our data plane programs both
families at once, so one programming is observed under each family that it touched.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from svcproxy import api
from svcproxy.admin.health import Instant
from svcproxy.admin.paging import steps
from svcproxy.admin.state import AgentState, ConntrackState
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

SYNC_BUCKETS: Final = tuple(0.001 * 2**power for power in range(15))
"""Seconds: 1 ms to 16.384 s."""
NETWORK_PROGRAMMING_BUCKETS: Final = (
    0.0,
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    *map(float, range(120, 301, 30)),
)
DNS_PROGRAMMING_BUCKETS: Final = tuple(0.001 * 2**power for power in range(20))
"""Seconds, as CoreDNS has them: 1 ms to 524 s."""
LATENCY_BUCKETS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
    30.0,
)
"""Seconds, for stages inside the agent."""
PROGRAMMING: Final = {
    "batches": "Transactions that the kernel put in force.",
    "operations": "Elements and chains in them.",
    "rejections": "Transactions that the kernel refused.",
    "settled": "Frontends put right on their own after a refusal.",
    "foreign_changes": "Changes of our tables by others.",
    "drift": "Elements and chains that were not as they should be.",
}
"""Counters of a data plane in the kernel."""
CONNECTIONS: Final = "svcproxy_frontend_connections_total"


class AgentMetrics:
    """Every metric of the agent, in a registry of its own."""

    def __init__(self, state: AgentState) -> None:
        # Creation times of counters double the size of every scrape, and nobody's dashboard reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the package leaves it unannotated
        self._state = state
        self.counts = api.Counts()
        """As of the last `refresh`."""
        self.conntrack: ConntrackState | None = None
        """As of the last `render`."""
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self._make_kubeproxy_metrics()
        self._make_own_metrics()
        self.registry.register(_StateCollector(self, state))

    def _make_kubeproxy_metrics(self) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"kubeproxy_{name}", text, ["ip_family"], buckets=buckets, registry=self.registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"kubeproxy_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"kubeproxy_{name}", text, labels, registry=self.registry)

        self._sync = histogram("sync_proxy_rules_duration_seconds", "Time of one programming.", SYNC_BUCKETS)
        self._sync_full = histogram(
            "sync_full_proxy_rules_duration_seconds", "Time of one programming of everything.", SYNC_BUCKETS
        )
        self._sync_partial = histogram(
            "sync_partial_proxy_rules_duration_seconds", "Time of one programming of changes alone.", SYNC_BUCKETS
        )
        self._network_programming = histogram(
            "network_programming_duration_seconds",
            "Time from the change of a Pod or Service that led to a slice until the slice is in force.",
            NETWORK_PROGRAMMING_BUCKETS,
        )
        family = ("ip_family",)
        self._last_sync = gauge(
            "sync_proxy_rules_last_timestamp_seconds", "Unix time of the last successful programming.", family
        )
        self._last_queued = gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds", "Unix time when a change was last queued.", family
        )
        self._service_changes = counter("sync_proxy_rules_service_changes", "Changes of Services seen.")
        self._endpoint_changes = counter("sync_proxy_rules_endpoint_changes", "Changes of EndpointSlices seen.")
        self._services_pending = gauge(
            "sync_proxy_rules_service_changes_pending", "Changes of Services that are not in force yet."
        )
        self._endpoints_pending = gauge(
            "sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in force yet."
        )
        self._healthz = counter("proxy_healthz", "Answers of /healthz.", ("code",))
        self._livez = counter("proxy_livez", "Answers of /livez.", ("code",))

    def _make_own_metrics(self) -> None:
        def histogram(name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
            return Histogram(f"svcproxy_{name}", text, labels, buckets=LATENCY_BUCKETS, registry=self.registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"svcproxy_{name}", text, labels, registry=self.registry)

        self._to_frontends = histogram("event_to_frontends_seconds", "Time from an API event to frontends.")
        self._to_dataplane = histogram("event_to_dataplane_seconds", "Time from an API event to the data plane.")
        self._to_ack = histogram(
            "event_to_worker_ack_seconds", "Time from an API event to a worker's acknowledgement.", ("worker",)
        )
        self._dns_programming = Histogram(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "Time from the change of a Pod or Service that led to a slice until a DNS worker answers accordingly.",
            ["service_kind"],
            buckets=DNS_PROGRAMMING_BUCKETS,
            registry=self.registry,
        )
        self._relists = counter("relists", "Complete lists taken after the first.", ("kind",))
        self._decode_failures = counter("decode_failures", "Objects that could not be read.", ("kind",))
        self._dataplane_lost = counter("dataplane_lost", "Times that what the data plane held was unknown.")
        self._repairs = counter("dataplane_repairs", "Frontends, backends and sets that a resync repaired.")

    def observe_sync(self, families: Iterable[Family], seconds: float, now: Instant, *, full: bool) -> None:
        """The data plane has taken a delta (or, `full`, everything) in `seconds`, and nothing is pending but what the
        agent sets anew."""
        for family in families:
            self._sync.labels(family.label).observe(seconds)
            (self._sync_full if full else self._sync_partial).labels(family.label).observe(seconds)
            self._last_sync.labels(family.label).set(now.wall)

    def observe_network_programming(self, family: Family, seconds: float) -> None:
        """A slice is in force `seconds` after its trigger time. Not for deletions, nor triggers before our start."""
        self._network_programming.labels(family.label).observe(max(0.0, seconds))

    def observe_queued(self, families: Iterable[Family], now: Instant, *, services: int, slices: int) -> None:
        """So many changes of Services and EndpointSlices wait for the data plane."""
        self._service_changes.inc(services)
        self._endpoint_changes.inc(slices)
        self._services_pending.inc(services)
        self._endpoints_pending.inc(slices)
        for family in families:
            self._last_queued.labels(family.label).set(now.wall)

    def set_pending(self, services: int, slices: int) -> None:
        """So many changes are not in force; 0 and 0 after a programming with nothing new meanwhile."""
        self._services_pending.set(services)
        self._endpoints_pending.set(slices)

    def observe_health(self, endpoint: str, status: int) -> None:
        """`endpoint`: `healthz` or `livez`."""
        (self._healthz if endpoint == "healthz" else self._livez).labels(str(status)).inc()

    def observe_frontends(self, seconds: float) -> None:
        """A change became frontends `seconds` after its event was read."""
        self._to_frontends.observe(seconds)

    def observe_dataplane(self, seconds: float) -> None:
        """A change was in force `seconds` after its event was read."""
        self._to_dataplane.observe(seconds)

    def observe_ack(self, worker: str, seconds: float) -> None:
        """A worker acknowledged a change `seconds` after its event was read. `worker`: from a small fixed set."""
        self._to_ack.labels(worker).observe(seconds)

    def observe_dns_programming(self, kind: str, seconds: float) -> None:
        """A worker acknowledged a slice `seconds` after its trigger time. `kind`: of the Service, in CoreDNS' words."""
        self._dns_programming.labels(kind).observe(max(0.0, seconds))

    def observe_relist(self, kind: str) -> None:
        """A kind was listed again, in full."""
        self._relists.labels(kind).inc()

    def observe_decode_failure(self, kind: str) -> None:
        """An object could not be read."""
        self._decode_failures.labels(kind).inc()

    def observe_dataplane_lost(self) -> None:
        """What the data plane holds is unknown."""
        self._dataplane_lost.inc()

    def observe_repairs(self, repairs: int) -> None:
        """A resync repaired so much."""
        self._repairs.inc(repairs)

    async def refresh(self) -> api.Counts:
        """Count what there is, in steps."""
        table, store = self._state.table, self._state.store
        backends = 0
        async for sets in steps(table.backends.items()):
            backends += sum(len(held) for key, held in sets if key.scope is Scope.CLUSTER)
        self.counts = api.Counts(
            services=len(store.services),
            endpoint_slices=len(store.slices),
            namespaces=len(store.namespaces),
            frontends=len(table.frontends),
            backends=backends,
            health_checks=len(table.health_checks),
        )
        return self.counts

    async def render(self) -> bytes:
        """A scrape in the Prometheus text format 0.0.4."""
        await self.refresh()
        self.conntrack = await self._state.conntrack() if self._state.conntrack is not None else None
        connections = b"".join([part async for part in self._connections()])
        return generate_latest(self.registry) + connections

    async def _connections(self) -> AsyncIterator[bytes]:
        """Written here, in steps: there are as many as frontends."""
        if self._state.connections is None:
            return
        counted = await self._state.connections()
        yield f"# HELP {CONNECTIONS} New connections to a frontend.\n# TYPE {CONNECTIONS} counter\n".encode()
        async for some in steps(counted.items()):
            lines = (
                f'{CONNECTIONS}{{frontend="{key}",namespace="{name.namespace}",service="{name.service}",'
                f'port="{name.port}"}} {count}\n'
                for key, count in some
                if (frontend := self._state.table.frontends.get(key)) is not None
                for name in (frontend.service_port,)
            )
            yield "".join(lines).encode()


class _StateCollector(Collector):
    """Gauges read off the state when somebody asks."""

    def __init__(self, metrics: AgentMetrics, state: AgentState) -> None:
        self._metrics = metrics
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | SummaryMetricFamily]:
        """The gauges as of now."""
        state, now = self._state, self._state.clock()
        readiness = state.readiness(now)
        yield self._no_local_endpoints()
        yield _one("ready", "Whether this instance serves.", readiness.ready)
        yield _one("stale", "Whether what is served may be out of date.", readiness.stale)
        yield _one("dataplane_refused", "Frontends that the data plane could not put in force.", len(state.refused()))
        yield _one(
            "dataplane_compromised",
            "Frontends in force with another affinity than asked for.",
            len(state.compromised()),
        )
        yield self._features()
        yield self._others()
        yield from self._conntrack()
        for name, value in state.programming().items():
            yield CounterMetricFamily(f"svcproxy_nftables_{name}", PROGRAMMING[name], value=value)
        yield _one("conflicts", "Addresses that several Services claim.", len(state.conflicts()))
        yield _one("invalid_objects", "Objects left out because they are invalid.", len(state.invalid))
        yield _one("config_errors", "Errors of the newest configuration.", len(state.config_errors))
        yield _one("feed_revision", "Newest revision of the feed.", state.revision())
        yield from self._sources(now)
        yield self._lag()
        yield from self._roles()
        objects = GaugeMetricFamily("svcproxy_objects", "Objects held.", labels=("kind",))
        counts = self._metrics.counts
        objects.add_metric(("Service",), counts.services)
        objects.add_metric(("EndpointSlice",), counts.endpoint_slices)
        objects.add_metric(("Namespace",), counts.namespaces)
        yield objects
        yield _one("frontends", "Frontends in the desired table.", counts.frontends)
        yield _one("backends", "Backends over all sets of cluster scope.", counts.backends)
        yield _one("health_checks", "Services with a health-check node port.", counts.health_checks)
        info = GaugeMetricFamily("svcproxy_build_info", "Always 1.", labels=("version", "dataplane"))
        info.add_metric((state.version, state.dataplane_name), 1)
        yield info

    def _features(self) -> GaugeMetricFamily:
        features = GaugeMetricFamily(
            "svcproxy_kernel_feature", "Whether the kernel can do what nftables needs.", labels=("feature",)
        )
        for probe in self._state.probes:
            features.add_metric((probe.name,), probe.ok)
        return features

    def _others(self) -> GaugeMetricFamily:
        others = GaugeMetricFamily(
            "svcproxy_other_implementation",
            "Other implementations of Services seen at start: 1 if at work or unknown, 0 if left over.",
            labels=("implementation",),
        )
        for other in self._state.others:
            others.add_metric((other.implementation,), other.alive is not False)
        return others

    def _conntrack(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | SummaryMetricFamily]:
        read = self._metrics.conntrack
        if read is None:
            return
        yield _one("conntrack_entries", "Connections that are tracked.", read.entries)
        yield _one("conntrack_max", "Connections that can be tracked.", read.maximum)
        for name, text, value in (
            ("insert_failed", "Packets whose connection lost a race for its tuple.", read.insert_failed),
            ("dropped", "Packets dropped for want of room to track them.", read.dropped),
            ("early_dropped", "Connections forgotten to make room.", read.early_dropped),
            ("examination_failures", "Examinations for stale flows that failed.", read.failures),
        ):
            yield CounterMetricFamily(f"svcproxy_conntrack_{name}", text, value=value)
        deleted = CounterMetricFamily(
            "kubeproxy_conntrack_reconciler_deleted_entries", "Stale flows removed.", labels=("ip_family",)
        )
        for family, count in read.deleted.items():
            deleted.add_metric((family.label,), count)
        yield deleted
        yield SummaryMetricFamily(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Time of one examination for stale flows.",
            count_value=read.passes,
            sum_value=read.pass_seconds,
        )

    def _no_local_endpoints(self) -> GaugeMetricFamily:
        ports = GaugeMetricFamily(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local policy, endpoints elsewhere and none on this node.",
            labels=("ip_family", "traffic_policy"),
        )
        for (family, policy), count in self._state.no_local_endpoints().items():
            ports.add_metric((family.label, policy.value), count)
        return ports

    def _sources(self, now: Instant) -> Iterator[GaugeMetricFamily]:
        synced = GaugeMetricFamily("svcproxy_synced", "Whether the kind has been listed completely.", labels=("kind",))
        age = GaugeMetricFamily(
            "svcproxy_watch_age_seconds", "Time since the last octet of the kind.", labels=("kind",)
        )
        for source in self._state.sources():
            if source.optional and not source.synced:
                continue
            synced.add_metric((source.kind,), source.synced)
            if source.last_contact is not None:
                age.add_metric((source.kind,), now.monotonic - source.last_contact)
        yield synced
        yield age

    def _lag(self) -> GaugeMetricFamily:
        lag = GaugeMetricFamily("svcproxy_feed_lag", "Revisions that a worker is behind the feed.", labels=("worker",))
        newest, behind = self._state.revision(), dict[str, int]()
        for each in self._state.subscribers():
            behind[each.name] = max(behind.get(each.name, 0), newest - each.revision, 0)
        for name, revisions in behind.items():
            lag.add_metric((name,), revisions)
        return lag

    def _roles(self) -> Iterator[GaugeMetricFamily]:
        restarts = GaugeMetricFamily("svcproxy_role_restarts", "Restarts by our supervisor.", labels=("role",))
        looping = GaugeMetricFamily("svcproxy_role_crash_loop", "Whether the role keeps ending.", labels=("role",))
        for role in self._state.roles():
            restarts.add_metric((role.name,), role.restarts)
            looping.add_metric((role.name,), role.crash_loop)
        yield restarts
        yield looping


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"svcproxy_{name}", text, value=value)
