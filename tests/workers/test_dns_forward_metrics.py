# SPDX-License-Identifier: Apache-2.0
"""The DNS worker's metrics: names and labels that CoreDNS' dashboards rely on, and the reference that lists all."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from svcproxy.config import DnsConfig
from svcproxy.workers.dns_metrics import DnsMetrics, RoleStatistics
from svcproxy.workers.interception import InterceptionCollector
from tests.dns.test_forwarder import Node, node

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "dns-metrics.md"
ZONE = {"server": "dns://127.0.0.1:53", "view": ""}


async def scrape(world: Node) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, read by somebody else's parser."""
    text = (await DnsMetrics(world.worker.statistics, lambda: False, DnsConfig()).render()).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_forwarding_is_counted_under_coredns_names() -> None:
    async with node() as world:
        (upstream,) = world.upstreams
        for name in ("www.example.com", "www.example.com", "nx.example.com", "tc.example.com"):
            await world.ask(name)
        await world.ask("web.shop.svc.cluster.local")
        found = await scrape(world)

        def value(name: str, **labels: str) -> float:
            return found[name, frozenset(labels.items())]

        zones = ZONE | {"zones": "."}
        assert value("coredns_cache_entries", **zones, type="success") == 2
        assert value("coredns_cache_entries", **zones, type="denial") == 1
        assert value("coredns_cache_hits_total", **zones, type="success") == 1
        assert value("coredns_cache_requests_total", **zones) == 4
        assert value("coredns_cache_misses_total", **zones) == 3
        assert value("coredns_cache_served_stale_total", **zones) == 0
        assert value("coredns_forward_max_concurrent_rejects_total") == 0
        proxy = {"proxy_name": "forward", "to": upstream.address}
        times = "coredns_proxy_request_duration_seconds"
        assert value(f"{times}_count", **proxy, rcode="NXDOMAIN") >= 1
        assert value(f"{times}_bucket", **proxy, rcode="NOERROR", le="8.192") == 3
        assert value("coredns_proxy_conn_cache_misses_total", **proxy, proto="tcp") == 1
        assert value("coredns_proxy_healthcheck_failures_total", **proxy) == 0
        responses = "coredns_dns_responses_total"
        assert value(responses, **ZONE, zone=".", rcode="NOERROR", plugin="forward") == 2
        assert value(responses, **ZONE, zone=".", rcode="NOERROR", plugin="cache") == 1
        assert value(responses, **ZONE, zone="cluster.local.", rcode="NOERROR", plugin="kubernetes") == 1
        assert value("coredns_dns_requests_total", **ZONE, zone=".", proto="udp", family="1", type="A") == 4


async def test_the_reference_lists_every_metric_of_the_worker_and_no_other() -> None:
    async with node() as world:
        await world.ask("www.example.com")
        await world.ask("web.shop.svc.cluster.local")
        role = RoleStatistics(plugins=((".", "forward"),))
        others = [InterceptionCollector(("10.96.0.10",), frozenset)]
        metrics = DnsMetrics(world.worker.statistics, lambda: False, DnsConfig(), others, role=lambda: role)
        text = (await metrics.render()).decode()
    shown = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("process_"):
            continue
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown[name] = (family.type, labels)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", REFERENCE.read_text(), re.MULTILINE)
    listed = {name: (kind, sorted(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == shown
