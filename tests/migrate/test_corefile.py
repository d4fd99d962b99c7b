# SPDX-License-Identifier: Apache-2.0
"""What becomes of CoreDNS' settings."""

from typing import Any

import pytest

from svcproxy.migrate.corefile_plugins import OPTIONS, PLUGINS
from svcproxy.migrate.draft import Treatment
from tests.migrate.world import Made, made

ZONES = {"dns.zones": ["cluster.local"], "dns.ttl": 5, "dns.pods": "disabled"}
"""Of `kubernetes cluster.local` without options."""
REFUSED = {"dns.resolv_conf": None}
"""Without a `forward`, other names are refused."""
FORWARD = "forward . 192.0.2.1"
SEVERAL = "192.0.2.1 [2001:db8::1]:5353 dns://192.0.2.2 192.0.2.1"
FORWARDED = {"dns.upstreams": ["192.0.2.1:53"]}


def corefile(*lines: str, more: str = "", **variables: str) -> Made:
    """What becomes of a block for `.` with these lines, and more blocks."""
    text = ".:53 {\n" + "\n".join(lines) + "\n}\n" + more
    return made(corefile=text, **{f"env_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(
    ("lines", "config"),
    [
        pytest.param([], REFUSED, id="nothing"),
        pytest.param([FORWARD], FORWARDED, id="forward"),
        pytest.param(["kubernetes cluster.local", FORWARD], {**ZONES, **FORWARDED}, id="the plugin's own defaults"),
        pytest.param(
            ["kubernetes Cluster.Local. 10.0.0.0/8 {\n ttl 7\n pods verified\n endpoint_pod_names\n}", FORWARD],
            {
                **FORWARDED,
                "dns.zones": ["cluster.local", "10.0.0.0/8"],
                "dns.ttl": 7,
                "dns.pods": "verified",
                "dns.endpoint_pod_names": True,
            },
            id="options",
        ),
        pytest.param(
            ["kubernetes cluster.local {\n namespaces a b\n namespaces c\n ignore empty_service\n}", FORWARD],
            {**ZONES, **FORWARDED, "dns.namespaces": ["c"], "dns.ignore_empty_service": True},
            id="namespaces",
        ),
        pytest.param(["forward . /etc/resolv.conf"], {"dns.resolv_conf": "/etc/resolv.conf"}, id="resolv.conf"),
        pytest.param(
            [f"forward . {SEVERAL} {{\n policy sequential\n max_concurrent 7\n}}"],
            {
                "dns.upstreams": ["192.0.2.1:53", "[2001:db8::1]:5353", "192.0.2.2:53"],
                "dns.forward.policy": "sequential",
                "dns.forward.concurrent_max": 7,
            },
            id="upstreams",
        ),
        pytest.param(["forward . tls://192.0.2.1"], REFUSED, id="DNS over TLS is not given up in silence"),
        pytest.param(["forward . 192.0.2.1 tls://192.0.2.2"], FORWARDED, id="what can be asked is asked"),
        pytest.param(["forward . dns.example"], REFUSED, id="names of upstreams"),
        pytest.param(
            ["forward corp.example 10.1.0.53", FORWARD],
            {**FORWARDED, "dns.stub_domains": {"corp.example": ["10.1.0.53:53"]}},
            id="a stub domain in the block",
        ),
        pytest.param(["forward corp.example /etc/resolv.conf", FORWARD], FORWARDED, id="a file for a stub domain"),
        pytest.param(
            [FORWARD, "cache"],
            {**FORWARDED, "dns.cache.ttl_max": 3600, "dns.cache.denial_ttl_max": 1800},
            id="cache by default",
        ),
        pytest.param(
            [FORWARD, "cache 60 {\n success 5000 90 2\n denial 5000 10\n servfail 0\n serve_stale 30m\n}"],
            {
                **FORWARDED,
                "dns.cache.ttl_max": 90,
                "dns.cache.denial_ttl_max": 10,
                "dns.cache.ttl_min": 2,
                "dns.cache.entries_max": 5000,
                "dns.cache.failure_ttl": 0,
                "dns.cache.stale_max": 1800,
            },
            id="cache",
        ),
        pytest.param(
            [FORWARD, "cache 60 {\n disable denial\n}"],
            {**FORWARDED, "dns.cache.ttl_max": 60, "dns.cache.denial_ttl_max": 0, "dns.cache.ttl_min": 0},
            id="cache switched off",
        ),
        pytest.param([FORWARD, "multisocket 4"], {**FORWARDED, "dns.workers": 4}, id="workers"),
    ],
)
def test_what_is_set(lines: list[str], config: dict[str, Any]) -> None:
    assert corefile(*lines).config == config


@pytest.mark.parametrize(
    ("block", "stub_domains"),
    [
        pytest.param(
            "corp.example:53 {\n forward . 10.1.0.53 10.2.0.53\n}",
            {"corp.example": ["10.1.0.53:53", "10.2.0.53:53"]},
            id="name",
        ),
        pytest.param(
            "a.example b.example {\n forward . 10.1.0.53\n}",
            {"a.example": ["10.1.0.53:53"], "b.example": ["10.1.0.53:53"]},
            id="two names",
        ),
        pytest.param("10.1.0.0/16 {\n forward . 10.1.0.53\n}", {"1.10.in-addr.arpa": ["10.1.0.53:53"]}, id="IPv4"),
        pytest.param("fd00::/8 {\n forward . 10.1.0.53\n}", {"d.f.ip6.arpa": ["10.1.0.53:53"]}, id="IPv6"),
        pytest.param("10.1.0.0/20 {\n forward . 10.1.0.53\n}", None, id="a CIDR within an octet"),
        pytest.param("x.cluster.local {\n forward . 10.1.0.53\n}", None, id="within the cluster domain"),
        pytest.param("corp.example {\n forward . tls://10.1.0.53\n}", None, id="over TLS"),
        pytest.param("tls://corp.example {\n forward . 10.1.0.53\n}", None, id="for clients over TLS"),
        pytest.param("corp.example {\n hosts\n}", None, id="without upstreams"),
    ],
)
def test_stub_domains(block: str, stub_domains: dict[str, list[str]] | None) -> None:
    """The block comes before the one whose zones it is held against."""
    found = made(corefile=block + "\n. {\n kubernetes cluster.local\n forward . 192.0.2.1\n}\n")
    assert found.config.get("dns.stub_domains") == stub_domains
    if stub_domains is None:
        assert any(each.treatment is Treatment.NONE for each in found.draft.remarks)


SETTING = {"on": "on startup true", "forward": FORWARD, "kubernetes": "kubernetes cluster.local"}


@pytest.mark.parametrize("plugin", [each.name for each in PLUGINS])
def test_no_plugin_is_passed_over_in_silence(plugin: str) -> None:
    assert corefile(SETTING.get(plugin, f"{plugin} 1")).said(plugin)


@pytest.mark.parametrize(("plugin", "option"), [(plugin, each.name) for plugin in OPTIONS for each in OPTIONS[plugin]])
def test_no_option_is_passed_over_in_silence(plugin: str, option: str) -> None:
    head = SETTING.get(plugin, plugin)
    found = corefile(f"{head} {{\n {option} 1\n}}").said(f"{plugin}.{option}")
    assert found or (plugin, option) == ("forward", "prefer_udp"), "which is what svcproxy does anyway"


@pytest.mark.parametrize(
    ("lines", "setting", "treatment", "text"),
    [
        pytest.param(["nonsense x"], "nonsense", "none", "no plugin of CoreDNS", id="unknown plugin"),
        pytest.param(["cache {\n nonsense\n}"], "cache.nonsense", "none", "no such option", id="unknown option"),
        pytest.param(
            [f"{FORWARD} {{\n policy best\n}}"], "forward.policy", "none", "'best' is not one of", id="policy"
        ),
        pytest.param(
            [f"{FORWARD} {{\n policy\n}}"], "forward.policy", "none", "an argument is missing", id="no argument"
        ),
        pytest.param(
            [f"{FORWARD} {{\n max_concurrent 0\n}}"], "forward.max_concurrent", "differs", "a bound", id="no bound"
        ),
        pytest.param(["forward ."], "forward", "none", "names no upstreams", id="no upstreams"),
        pytest.param(["kubernetes -x-"], "kubernetes", "none", "is not a DNS name", id="not a zone"),
        pytest.param(["kubernetes a.example {\n ttl 9999\n}"], "kubernetes.ttl", "none", "out of range", id="range"),
        pytest.param(["kubernetes in-addr.arpa"], "kubernetes", "none", "a cluster domain is needed", id="no domain"),
        pytest.param(["loadbalance weighted w"], "loadbalance", "none", "no weights", id="weights"),
        pytest.param(["loadbalance"], "loadbalance", "needless", "rotated", id="round robin"),
        pytest.param(["import x"], "import", "none", "not read", id="import of a file"),
        pytest.param(["forward . {$RESOLVER}"], "forward", "none", "--env", id="a variable without a value"),
        pytest.param(["bind eth0"], "bind", "differs", "dns.listen", id="bind"),
    ],
)
def test_what_is_said(lines: list[str], setting: str, treatment: str, text: str) -> None:
    found = corefile(*lines).said(setting)
    assert any(each.treatment.value == treatment and text in each.text for each in found), found


def test_variables_have_the_values_that_are_given() -> None:
    assert corefile("forward . {$RESOLVER}", RESOLVER="192.0.2.1").config == FORWARDED


def test_the_first_list_of_upstreams_counts() -> None:
    found = corefile(FORWARD, "forward . 192.0.2.9")
    assert found.config == FORWARDED
    assert any("the first one counts" in each.text for each in found.said("forward"))


def test_what_is_different_for_a_stub_domain_is_said() -> None:
    more = "corp.example {\n forward . 10.1.0.53 {\n  policy sequential\n }\n cache 5\n}\n"
    found = corefile(FORWARD, "cache 30", more=more)
    assert found.of("forward.policy").treatment is Treatment.DIFFERS
    assert any("the block of . has counts" in each.text for each in found.said("cache"))


@pytest.mark.parametrize(
    ("lines", "key", "value", "setting"),
    [
        pytest.param("health {\n lameduck 7s\n}", "dns.lameduck", 7.0, "health.lameduck", id="lame duck"),
        pytest.param("log", "dns.query_log.classes", ["all"], "log", id="query log"),
        pytest.param(
            "log . {\n class denial error\n}", "dns.query_log.classes", ["denial", "error"], "log", id="some of it"
        ),
        pytest.param("prometheus :9153", "dns.metrics_listen", "0.0.0.0:9153", "prometheus", id="metrics"),
        pytest.param("prometheus", "dns.metrics_listen", "127.0.0.1:9153", "prometheus", id="metrics on loopback"),
    ],
)
def test_what_is_set_where_there_is_a_key_for_it(lines: str, key: str, value: object, setting: str) -> None:
    found = corefile(FORWARD, lines)
    assert found.config.get(key) == value
    assert found.said(setting)
