# SPDX-License-Identifier: Apache-2.0
"""Metrics: names, buckets and labels that dashboards rely on, and the reference that lists them all."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from svcproxy.admin.metrics import AgentMetrics
from svcproxy.admin.state import AgentState
from svcproxy.model.meta import Family
from svcproxy.testing.admin import NOW, FakeSource, example_state

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
BOTH = (Family.IPV4, Family.IPV6)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def state() -> AgentState:
    return example_state()


@pytest.fixture
def metrics(state: AgentState) -> AgentMetrics:
    return AgentMetrics(state)


def use_all(metrics: AgentMetrics) -> None:
    """Observe everything once, so that every label shows."""
    metrics.observe_queued(BOTH, NOW, services=2, slices=3)
    metrics.observe_sync(BOTH, 0.003, NOW, full=True)
    metrics.observe_sync([Family.IPV4], 0.001, NOW, full=False)
    metrics.observe_network_programming(Family.IPV4, 0.3)
    metrics.observe_health("healthz", 200)
    metrics.observe_health("livez", 503)
    metrics.observe_frontends(0.0004)
    metrics.observe_dataplane(0.0007)
    metrics.observe_ack("dns-0", 0.0009)
    metrics.observe_dns_programming("cluster_ip", 0.2)
    metrics.observe_relist("Service")
    metrics.observe_decode_failure("Service")
    metrics.observe_dataplane_lost()
    metrics.observe_repairs(4)


async def scrape(metrics: AgentMetrics) -> Series:
    """Every sample of a scrape, read by somebody else's parser."""
    text = (await metrics.render()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


def bounds(series: Series, name: str, **labels: str) -> list[float]:
    wanted = set(labels.items())
    found = (dict(own)["le"] for each, own in series if each == f"{name}_bucket" and wanted <= set(own))
    return sorted(map(float, found))


async def test_network_programming_has_the_buckets_of_kube_proxy(metrics: AgentMetrics) -> None:
    use_all(metrics)
    shown = bounds(await scrape(metrics), "kubeproxy_network_programming_duration_seconds", ip_family="IPv4")
    assert shown[:5] == [0, 0.25, 0.5, 1, 2]
    assert shown[3:62] == list(range(1, 60))
    assert shown[62:74] == list(range(60, 120, 5))
    assert shown[74:] == [120, 150, 180, 210, 240, 270, 300, float("inf")]


async def test_sync_has_the_buckets_of_kube_proxy(metrics: AgentMetrics) -> None:
    use_all(metrics)
    series = await scrape(metrics)
    for name in ("sync_proxy_rules", "sync_full_proxy_rules", "sync_partial_proxy_rules"):
        shown = bounds(series, f"kubeproxy_{name}_duration_seconds", ip_family="IPv4")
        assert shown == [0.001 * 2**power for power in range(15)] + [float("inf")]


async def test_one_programming_is_seen_under_each_family_it_touched(metrics: AgentMetrics) -> None:
    use_all(metrics)
    series = await scrape(metrics)
    count = "kubeproxy_sync_proxy_rules_duration_seconds_count"
    assert (value(series, count, ip_family="IPv4"), value(series, count, ip_family="IPv6")) == (2, 1)
    assert value(series, "kubeproxy_sync_full_proxy_rules_duration_seconds_count", ip_family="IPv4") == 1
    assert value(series, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv6") == NOW.wall


async def test_pending_changes_add_up_and_are_settled(metrics: AgentMetrics) -> None:
    metrics.observe_queued(BOTH, NOW, services=2, slices=3)
    metrics.observe_queued(BOTH, NOW, services=0, slices=1)
    series = await scrape(metrics)
    assert value(series, "kubeproxy_sync_proxy_rules_service_changes_pending") == 2
    assert value(series, "kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 4
    metrics.set_pending(0, 0)
    series = await scrape(metrics)
    assert value(series, "kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 0
    assert value(series, "kubeproxy_sync_proxy_rules_endpoint_changes_total") == 4


async def test_how_much_there_is_is_looked_up_at_the_scrape(metrics: AgentMetrics, state: AgentState) -> None:
    series = await scrape(metrics)
    assert value(series, "svcproxy_objects", kind="Service") == 4
    assert value(series, "svcproxy_frontends") == 5
    assert value(series, "svcproxy_backends") == 3
    assert value(series, "svcproxy_dataplane_refused") == 1
    assert value(series, "svcproxy_dataplane_compromised") == 1
    assert value(series, "svcproxy_nftables_drift_total") == 3
    web = {"frontend": "10.96.0.10:80/TCP", "namespace": "shop", "service": "web", "port": "http"}
    assert value(series, "svcproxy_frontend_connections_total", **web) == 7
    assert value(series, "svcproxy_feed_lag", worker="dns-0") == 2
    assert value(series, "svcproxy_watch_age_seconds", kind="EndpointSlice") == 3
    assert value(series, "svcproxy_role_crash_loop", role="dns") == 1
    assert (value(series, "svcproxy_ready"), value(series, "svcproxy_stale")) == (1, 0)
    state.table.frontends.clear()
    state.holds_node = False
    series = await scrape(metrics)
    assert (value(series, "svcproxy_frontends"), value(series, "svcproxy_ready")) == (0, 0)


async def test_an_optional_kind_has_series_once_it_is_synced(metrics: AgentMetrics, state: AgentState) -> None:
    optional = FakeSource("ServiceCIDR", synced=False, last_contact=None, optional=True)
    state.sources = lambda: [optional]
    name = ("svcproxy_synced", (("kind", "ServiceCIDR"),))
    assert name not in await scrape(metrics), "nobody should be woken for it"
    optional.synced = True
    assert (await scrape(metrics))[name] == 1


async def test_cases_6_and_10_service_ports_without_a_local_endpoint(metrics: AgentMetrics) -> None:
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    series = await scrape(metrics)
    assert value(series, name, ip_family="IPv4", traffic_policy="external") == 1
    assert value(series, name, ip_family="IPv4", traffic_policy="internal") == 0
    assert value(series, name, ip_family="IPv6", traffic_policy="external") == 0


async def test_probes_are_counted_by_code(metrics: AgentMetrics) -> None:
    use_all(metrics)
    series = await scrape(metrics)
    assert value(series, "kubeproxy_proxy_healthz_total", code="200") == 1
    assert value(series, "kubeproxy_proxy_livez_total", code="503") == 1


async def test_creation_times_are_left_out(metrics: AgentMetrics) -> None:
    use_all(metrics)
    assert not [name for name, _ in await scrape(metrics) if name.endswith("_created")]


async def test_reference_lists_every_metric_and_no_other(metrics: AgentMetrics) -> None:
    use_all(metrics)
    text = (await metrics.render()).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    actual = set()
    for name, kind in kinds.items():
        samples = re.findall(rf"^{name}(?:_bucket|_sum|_count)?(?:\{{(.*)\}})? ", text, re.MULTILINE)
        labels = {label for sample in samples for label in re.findall(r'(\w+)="', sample)} - {"le"}
        actual.add((name, kind, ", ".join(sorted(labels))))
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| (.*?) \| .+ \|$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {(name, kind, labels.replace("`", "")) for name, kind, labels in rows} == actual
