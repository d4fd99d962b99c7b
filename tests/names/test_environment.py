# SPDX-License-Identifier: Apache-2.0
from svcproxy.model.meta import Protocol
from svcproxy.names.environment import service_environment
from tests.names.world import external, port, service

KUBERNETES = service("kubernetes", "10.96.0.1", ports=[port(443, "https")], namespace="default")


def test_the_documented_example() -> None:
    """The variables of https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables."""
    redis = service("redis-primary", "10.0.0.11", ports=[port(6379)])
    assert service_environment([redis], "shop") == [
        ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
        ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
        ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
        ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
        ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
        ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
        ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
    ]


def test_several_ports_and_an_ipv6_address() -> None:
    dns = service("dns", "fd00::a", ports=[port(53, "dns", Protocol.UDP), port(53, "dns-tcp")])
    assert service_environment([dns], "shop") == [
        ("DNS_SERVICE_HOST", "fd00::a"),
        ("DNS_SERVICE_PORT", "53"),
        ("DNS_SERVICE_PORT_DNS", "53"),
        ("DNS_SERVICE_PORT_DNS_TCP", "53"),
        ("DNS_PORT", "udp://[fd00::a]:53"),
        ("DNS_PORT_53_UDP", "udp://[fd00::a]:53"),
        ("DNS_PORT_53_UDP_PROTO", "udp"),
        ("DNS_PORT_53_UDP_PORT", "53"),
        ("DNS_PORT_53_UDP_ADDR", "fd00::a"),
        ("DNS_PORT_53_TCP", "tcp://[fd00::a]:53"),
        ("DNS_PORT_53_TCP_PROTO", "tcp"),
        ("DNS_PORT_53_TCP_PORT", "53"),
        ("DNS_PORT_53_TCP_ADDR", "fd00::a"),
    ]


SHOP = (
    service("web", "10.96.0.2", ports=[port(80)]),
    service("headless", "None", ports=[port(80)]),
    service("pending", ports=[port(80)]),
    external("ext", "www.example.com"),
    service("other", "10.96.0.3", ports=[port(80)], namespace="default"),
)


def hosts(namespace: str) -> dict[str, str]:
    found = service_environment((KUBERNETES, *SHOP), namespace)
    return {name: value for name, value in found if name.endswith("_SERVICE_HOST")}


def test_a_pod_gets_its_namespace_and_the_api_server() -> None:
    assert hosts("shop") == {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "WEB_SERVICE_HOST": "10.96.0.2"}


def test_a_pod_of_default_gets_nothing_twice() -> None:
    assert hosts("default") == {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "OTHER_SERVICE_HOST": "10.96.0.3"}


def test_an_own_service_named_kubernetes_comes_first() -> None:
    own = service("kubernetes", "10.96.0.9", ports=[port(80)])
    for order in ([own, KUBERNETES], [KUBERNETES, own]):
        assert ("KUBERNETES_SERVICE_HOST", "10.96.0.9") in service_environment(order, "shop")
        assert ("KUBERNETES_SERVICE_HOST", "10.96.0.1") not in service_environment(order, "shop")


def test_a_service_without_ports_has_a_host_alone() -> None:
    assert service_environment([service("bare", "10.96.0.4")], "shop") == [("BARE_SERVICE_HOST", "10.96.0.4")]
