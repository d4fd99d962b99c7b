# SPDX-License-Identifier: Apache-2.0
"""What the options of the schema and the list of zones do to answers."""

import pytest

from svcproxy.config import PodNames
from svcproxy.model.meta import Protocol
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, PodRecord, Record, ServiceRecord
from svcproxy_dns.contents import Schema
from tests.dns.world import (
    NODATA,
    NXDOMAIN,
    REFUSED,
    SOA,
    Answer,
    Client,
    empty_zone,
    noerror,
    records,
    synced_zone,
    take,
)

WEB = "web.shop.svc.cluster.local."
REVERSE_NXDOMAIN = Answer("NXDOMAIN", authority=(SOA.replace("cluster.local.", "in-addr.arpa.", 1),))


def test_endpoints_named_after_pods() -> None:
    held: list[Record] = [
        ServiceRecord("shop", "hl"),
        EndpointRecord("shop", "hl", "10.0.0.1", pod="web-1"),
        EndpointRecord("shop", "hl", "10.0.0.2", "host", "web-2"),
        EndpointRecord("shop", "hl", "10.0.0.3", pod="dotted.name"),
    ]
    client = Client(synced_zone(held, Schema(endpoint_pod_names=True)))
    found = {
        label: client.ask(f"{label}.hl.shop.svc.cluster.local.", "A").rcode
        for label in ("web-1", "10-0-0-1", "host", "web-2", "10-0-0-3")
    }
    assert [label for label, rcode in found.items() if rcode == "NOERROR"] == ["web-1", "host", "10-0-0-3"]


def test_pod_names_can_be_disabled() -> None:
    zone = synced_zone(records(), Schema(pods=PodNames.DISABLED))
    assert Client(zone).ask("10-1-2-3.shop.pod.cluster.local.", "A") == NXDOMAIN
    assert Client(zone).ask("shop.pod.cluster.local.", "A") == NXDOMAIN


# Verified Pods

PODS: list[Record] = [
    NamespaceRecord("shop"),
    NamespaceRecord("default"),
    PodRecord("shop", "10.244.1.5"),
    PodRecord("shop", "fd00:244::5"),
]


@pytest.mark.parametrize(
    ("left", "qtype", "expected"),
    [
        pytest.param("10-244-1-5.shop", "A", "10.244.1.5", id="M29: a Pod of the namespace"),
        pytest.param("10-244-1-5.shop", "AAAA", NODATA, id="M29: the other family"),
        pytest.param("10-9-9-9.shop", "A", NXDOMAIN, id="M29: no Pod"),
        pytest.param("10-244-1-5.default", "A", NXDOMAIN, id="M29: a Pod of another namespace"),
        pytest.param("fd00-244--5.shop", "AAAA", "fd00:244::5", id="B14: the Pod's second family"),
        pytest.param("shop", "A", NODATA, id="a namespace of Pods"),
    ],
)
def test_verified_pods(left: str, qtype: str, expected: str | Answer) -> None:
    client = Client(synced_zone(PODS, Schema(pods=PodNames.VERIFIED)))
    name = f"{left}.pod.cluster.local."
    found = client.ask(name, qtype)
    assert found == (expected if isinstance(expected, Answer) else noerror(f"{name} {qtype} {expected}"))


def test_a_pod_that_may_still_be_listed_is_no_nxdomain() -> None:
    zone = empty_zone(Schema(pods=PodNames.VERIFIED))
    zone.change(PODS, ())
    client = Client(zone)
    assert client.ask("10-244-1-5.shop.pod.cluster.local.", "A").rcode == "NOERROR"
    assert client.ask("10-9-9-9.shop.pod.cluster.local.", "A").rcode == "SERVFAIL"
    assert client.ask("10-9-9-999.shop.pod.cluster.local.", "A") == NXDOMAIN, "no address at all"


def test_a_pod_is_there_with_the_next_query_and_gone_with_the_next() -> None:
    client = Client(synced_zone(PODS, Schema(pods=PodNames.VERIFIED)))
    name = "10-9-9-9.shop.pod.cluster.local."
    for added, removed, rcode in ((PODS[2:], [], "NXDOMAIN"), ([PodRecord("shop", "10.9.9.9")], [], "NOERROR")):
        client.zone.change(added, removed)
        assert client.ask(name, "A").rcode == rcode
    client.zone.change((), [PodRecord("shop", "10.9.9.9")])
    assert client.ask(name, "A") == NXDOMAIN


def test_pods_are_not_kept_unless_they_are_verified() -> None:
    assert synced_zone(PODS).count(PodRecord) == 0


# Empty Services, excluded namespaces


def test_services_without_endpoints_can_be_ignored() -> None:
    http = (NamedPort("http", Protocol.TCP, 80),)
    service, ready = ServiceRecord("shop", "web", ("10.96.0.1",), http), EndpointRecord("shop", "web", "10.0.0.1", "a")
    outside = ServiceRecord("shop", "out", external_name="www.example.com")
    client = Client(synced_zone([service, outside], Schema(ignore_empty_service=True)))
    questions = [(WEB, "A"), (WEB, "AAAA"), (f"_http._tcp.{WEB}", "SRV"), ("1.0.96.10.in-addr.arpa.", "PTR")]
    for _ in range(2):
        assert {client.ask(*question).rcode for question in questions} == {"NXDOMAIN"}
        client.zone.change([ready], ())
        assert {client.ask(*question).rcode for question in questions} == {"NOERROR"}
        client.zone.change((), [ready])
    assert client.ask("out.shop.svc.cluster.local.", "A").rcode == "NOERROR", "an ExternalName never has endpoints"


def test_other_namespaces_do_not_exist() -> None:
    client = Client(synced_zone(records(), Schema(namespaces=frozenset({"default", "kube-system"}))))
    assert client.ask("kube-dns.kube-system.svc.cluster.local.", "A").rcode == "NOERROR"
    for name in (WEB, "shop.svc.cluster.local.", "shop.pod.cluster.local.", "1-2-3-4.shop.pod.cluster.local."):
        assert client.ask(name, "A") == NXDOMAIN
    for ip in ("1.10.96.10", "5.1.244.10"):
        assert client.ask(f"{ip}.in-addr.arpa.", "PTR") == REVERSE_NXDOMAIN
    assert client.ask("default.svc.cluster.local.", "A") == NODATA


# Zones


def test_every_cluster_domain_holds_the_same_names() -> None:
    client = Client(synced_zone(records()), ("cluster.local", "sub.cluster.local", "Example.Internal."))
    for domain in ("cluster.local.", "sub.cluster.local.", "example.internal."):
        name = f"web.shop.svc.{domain}"
        assert client.ask(name, "A") == noerror(f"{name} A 10.96.10.1")
        srv = client.ask(f"_https._tcp.{name}", "SRV")
        assert srv == noerror(f"_https._tcp.{name} SRV 0 100 443 {name}", add=[f"{name} A 10.96.10.1"])
        assert (
            client.ask(f"nope.shop.svc.{domain}", "A").authority[0].startswith(f"{domain} 30 IN SOA ns.dns.{domain} ")
        )
    assert client.ask("web.shop.svc.internal.", "A") == REFUSED


def test_aliases_lead_from_one_cluster_domain_to_another() -> None:
    held = [
        ServiceRecord("shop", "here", external_name="web.shop.svc.b.local"),
        ServiceRecord("shop", "web", ("10.96.0.1",)),
    ]
    client = Client(synced_zone(held), ("a.local", "b.local"))
    name, target = "here.shop.svc.a.local.", "web.shop.svc.b.local."
    assert client.ask(name, "A") == noerror(f"{name} CNAME {target}", f"{target} A 10.96.0.1")


def test_addresses_point_to_the_first_cluster_domain_and_are_answered_in_their_zones_alone() -> None:
    client = Client(synced_zone(records()), ("10.96.0.0/12", "first.local", "second.local"))
    name = "1.10.96.10.in-addr.arpa."
    assert client.ask(name, "PTR") == noerror(f"{name} PTR web.shop.svc.first.local.")
    assert client.ask(name, "A") == Answer(
        "NOERROR", authority=(f"96.10.in-addr.arpa. {SOA.partition(' ')[2].replace('cluster.local', 'first.local')}",)
    )
    assert client.ask("5.1.244.10.in-addr.arpa.", "PTR") == REFUSED


@pytest.mark.parametrize("name", ["in-addr.arpa.", "ip6.arpa."])
def test_the_apex_of_addresses(name: str) -> None:
    client = Client(synced_zone(records()))
    soa = f"{name} {SOA.partition(' ')[2]}"
    assert client.ask(name, "SOA") == noerror(soa.replace("30 IN ", "", 1))
    assert client.ask(name, "PTR") == Answer("NOERROR", authority=(soa,))
    server = "kube-dns.kube-system.svc.cluster.local."
    assert client.ask(name, "NS") == noerror(f"{name} NS {server}", add=[f"{server} A 10.96.0.10"])


# Who serves

DNS = ServiceRecord("kube-system", "dns", ("10.96.0.10", "fd00:96::a"))
BACKEND = EndpointRecord("kube-system", "dns", "10.244.0.20")
HEADLESS = ServiceRecord("kube-system", "nodes")
MEMBER = EndpointRecord("kube-system", "nodes", "10.244.0.20", "node-1")
DNS_NAME, MEMBER_NAME = "dns.kube-system.svc.cluster.local.", "node-1.nodes.kube-system.svc.cluster.local."


@pytest.mark.parametrize(
    ("held", "addresses", "expected"),
    [
        pytest.param([DNS], ["10.96.0.10"], {DNS_NAME: ["10.96.0.10", "fd00:96::a"]}, id="the cluster IP of a Service"),
        pytest.param([DNS, BACKEND], ["10.244.0.20"], {DNS_NAME: ["10.96.0.10", "fd00:96::a"]}, id="an endpoint"),
        pytest.param([HEADLESS, MEMBER], ["10.244.0.20"], {MEMBER_NAME: ["10.244.0.20"]}, id="of a headless Service"),
        pytest.param(
            [DNS, BACKEND, HEADLESS, MEMBER],
            ["10.96.0.10", "10.244.0.20"],
            {DNS_NAME: ["10.96.0.10", "fd00:96::a"], MEMBER_NAME: ["10.244.0.20"]},
            id="both, each once",
        ),
        pytest.param([BACKEND], ["10.244.0.20"], {"ns.dns.cluster.local.": ["10.244.0.20"]}, id="no Service"),
        pytest.param([], ["169.254.20.10"], {"ns.dns.cluster.local.": ["169.254.20.10"]}, id="an address of its own"),
        pytest.param([], [], {"ns.dns.cluster.local.": []}, id="loopback or the wildcard"),
    ],
)
def test_name_servers(held: list[Record], addresses: list[str], expected: dict[str, list[str]]) -> None:
    zone = empty_zone(server_addresses=addresses)
    take(zone, held)
    client = Client(zone)
    apex = "cluster.local."
    glue = {(name, "AAAA" if ":" in ip else "A", ip) for name, ips in expected.items() for ip in ips}
    assert client.ask(apex, "NS") == noerror(
        *(f"{apex} NS {name}" for name in expected), add=[" ".join(record) for record in glue]
    )
    for qtype in ("A", "AAAA"):
        found = client.ask("ns.dns.cluster.local.", qtype)
        assert found.rcode == "NOERROR"
        assert {line.rpartition(" ")[2] for line in found.records} == {ip for _, kind, ip in glue if kind == qtype}


# PTR of shared addresses


def test_an_address_points_to_every_service_that_has_it_ready() -> None:
    held: list[Record] = []
    for service in ("a", "b"):
        held += [ServiceRecord("shop", service), EndpointRecord("shop", service, "10.0.0.1")]
    held += [EndpointRecord("shop", "a", "10.0.0.1", ports=(NamedPort("x", Protocol.TCP, 1),))]
    held += [EndpointRecord("shop", "without-service", "10.0.0.1")]
    held += [ServiceRecord("shop", "c", external_name="x.example"), EndpointRecord("shop", "c", "10.0.0.1")]
    client = Client(synced_zone(held))
    name = "1.0.0.10.in-addr.arpa."
    expected = [f"{name} PTR 10-0-0-1.{service}.shop.svc.cluster.local." for service in ("a", "b")]
    assert client.ask(name, "PTR") == noerror(*expected)
    client.zone.change([ServiceRecord("shop", "ip", ("10.0.0.1",))], ())
    assert client.ask(name, "PTR") == noerror(f"{name} PTR ip.shop.svc.cluster.local."), "a ClusterIP comes first"


def test_a_pod_of_no_service_has_no_ptr() -> None:
    client = Client(synced_zone(PODS, Schema(pods=PodNames.VERIFIED)))
    assert client.ask("5.1.244.10.in-addr.arpa.", "PTR") == REVERSE_NXDOMAIN
