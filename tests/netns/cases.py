# SPDX-License-Identifier: Apache-2.0
"""Acceptance cases whose expectation is what single packets meet. Numbers are those of the acceptance tests.

S is a Service with NodePort and VIP where needed. What is given are all endpoints there are; all is observed on n1.
"""

from collections.abc import Iterator
from typing import Any

from svcproxy.model import EndpointSlice, Service
from svcproxy.model.meta import Family, Protocol
from tests.netns.objects import (
    NODE_PORT,
    OTHER_NODE_PORT,
    PORT,
    draining,
    endpoint,
    failing,
    host,
    load_balancer,
    ready,
    service,
    slice_of,
)
from tests.netns.places import AT, Addresses
from tests.netns.stage import (
    Book,
    Gone,
    Owns,
    Runs,
    Settings,
    Step,
    Target,
    dropped,
    given,
    meets,
    refused,
    served,
)

BOOK = Book()
case = BOOK.case
Steps = Iterator[Step]

TCP, UDP = (Protocol.TCP,), (Protocol.UDP,)
LOCAL = "Local"


def cluster_ip(at: Addresses) -> Target:
    return at.cluster_ip, PORT


def vip(at: Addresses) -> Target:
    return at.vip, PORT


def node_port(at: Addresses) -> Target:
    return at.n1, NODE_PORT


# From where to where, and who is seen


@case()
def case_01_t58_a_pod_is_seen_as_itself(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))


@case()
def case_02_a_process_of_the_node_reaches_a_cluster_ip(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", "b1"))
    yield meets("h1", cluster_ip(at), served(at.n1, "a1", "b1"))


@case(Settings(masquerade_all=True))
def case_03_masquerade_all(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", "b1"))
    yield meets("p1", cluster_ip(at), served(at.n1, "a1", "b1"))


@case()
def case_04_a_cluster_ip_from_outside(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", "b1"))
    yield meets("x", cluster_ip(at), served(at.n1, "a1", "b1"))


@case()
def case_05_t06_no_endpoints(at: Addresses) -> Steps:
    yield given(load_balancer(at, externalIPs=[at.external_ip]), slice_of(at))
    yield refused("p1", cluster_ip(at))
    yield refused("h1", cluster_ip(at))
    yield refused("x", cluster_ip(at))
    yield refused("x", node_port(at))
    yield refused("x", vip(at))
    yield refused("x", (at.external_ip, PORT))


# Traffic policies


@case()
def case_06_07_internal_policy_local_without_a_local_endpoint(at: Addresses) -> Steps:
    yield given(service(at, internalTrafficPolicy=LOCAL), slice_of(at, "b1"))
    yield dropped("p1", cluster_ip(at))
    yield dropped("h1", cluster_ip(at))
    yield given(slice_of(at))
    yield refused("p1", cluster_ip(at))
    yield refused("h1", cluster_ip(at))


@case()
def t18_internal_policy_local(at: Addresses) -> Steps:
    yield given(service(at, internalTrafficPolicy=LOCAL), slice_of(at, "a1", "a2", "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "a2"))
    yield meets("h1", cluster_ip(at), served(at.n1, "a1", "a2"))
    yield meets("x", cluster_ip(at), served(at.n1, "a1", "a2"))


@case()
def example_6_each_policy_governs_its_own(at: Addresses) -> Steps:
    yield given(load_balancer(at, internalTrafficPolicy=LOCAL), slice_of(at, "a1", "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))
    yield meets("x", node_port(at), served(at.n1, "a1", "b1"))


@case()
def case_08_t09_node_port_of_policy_cluster(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, "b1"))
    yield meets("x", node_port(at), served(at.n1, "b1"))
    yield meets("h1", node_port(at), served(at.n1, "b1"))


@case()
def case_09_t10_external_policy_local_keeps_the_source(at: Addresses) -> Steps:
    yield given(load_balancer(at, externalTrafficPolicy=LOCAL), slice_of(at, "a1", "b1"))
    yield meets("x", node_port(at), served(at.x, "a1"))
    yield meets("x", vip(at), served(at.x, "a1"))


@case()
def case_10_11_12_t11_t13_external_policy_local_without_a_local_endpoint(at: Addresses) -> Steps:
    yield given(load_balancer(at, externalTrafficPolicy=LOCAL), slice_of(at, "b1"))
    yield dropped("x", node_port(at))
    yield dropped("x", vip(at))
    yield meets("p1", vip(at), served(at.p1, "b1"))
    yield meets("p1", node_port(at), served(at.p1, "b1"))
    yield meets("h1", vip(at), served(at.n1, "b1"))
    yield meets("h1", node_port(at), served(at.n1, "b1"))
    yield given(slice_of(at))
    for place in ("x", "p1", "h1"):
        yield refused(place, vip(at))
        yield refused(place, node_port(at))


@case()
def case_13_t58_policy_cluster_hides_the_source_of_pods_too(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, "a1", "b1"))
    yield meets("p1", vip(at), served(at.n1, "a1", "b1"))
    yield meets("p1", node_port(at), served(at.n1, "a1", "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))


@case()
def t14_external_ip(at: Addresses) -> Steps:
    target = (at.external_ip, PORT)
    yield given(service(at, externalIPs=[at.external_ip]), slice_of(at, "a1", "b1"))
    yield meets("x", target, served(at.n1, "a1", "b1"))
    yield meets("p1", target, served(at.n1, "a1", "b1"))
    yield meets("h1", target, served(at.n1, "a1", "b1"))
    yield given(service(at, externalIPs=[at.external_ip], externalTrafficPolicy=LOCAL))
    yield meets("x", target, served(at.x, "a1"))
    yield given(service(at))
    yield Owns("x", at.external_ip)
    yield Runs("x", target, "elsewhere")
    yield meets("p1", target, served(at.p1, "elsewhere"))


# Conditions


@case()
def case_14_only_terminating_here(at: Addresses) -> Steps:
    yield given(load_balancer(at, externalTrafficPolicy=LOCAL), slice_of(at, draining(at, "a1"), "b1"))
    yield meets("x", vip(at), served(at.x, "a1"))
    yield meets("p1", vip(at), served(at.p1, "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "b1"))


@case()
def case_15_t20_all_terminating(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, draining(at, "a1"), draining(at, "b1")))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))
    yield given(slice_of(at, draining(at, "b1")))
    yield meets("p1", cluster_ip(at), served(at.p1, "b1"))
    yield given(slice_of(at))
    yield refused("p1", cluster_ip(at))


@case()
def case_16_terminating_and_not_serving(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, failing(at, "a1", terminating=True)))
    yield refused("p1", cluster_ip(at))


@case()
def example_7_not_ready_is_never_used(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, endpoint(at, "a1", ready=False, serving=True, terminating=False)))
    yield refused("p1", cluster_ip(at))


@case()
def case_17_null_conditions_are_ready(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, endpoint(at, "a1")))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))


@case()
def case_18_published_although_not_ready(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, endpoint(at, "a1", ready=True, serving=False, terminating=True)))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))


# Topology


@case()
def case_19_t19_hints_for_zones(at: Addresses) -> Steps:
    hinted = ready(at, "a1", zones=["z1"]), ready(at, "b1", zones=["z2"])
    yield given(service(at), slice_of(at, *hinted))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))
    yield given(slice_of(at, "a1", hinted[1]))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))


@case()
def case_20_hints_for_nodes(at: Addresses) -> Steps:
    here = ready(at, "a1", zones=["z1"], nodes=["n1"])
    there = ready(at, "b1", zones=["z2"], nodes=["n2"])
    yield given(service(at), slice_of(at, here, there))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))
    yield given(slice_of(at, failing(at, "a1"), there))
    yield meets("p1", cluster_ip(at), served(at.p1, "b1"))


@case(Settings(zone=None))
def case_21_a_node_without_zone(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, ready(at, "a1", zones=["z2"]), ready(at, "b1", zones=["z2"])))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))


@case()
def hints_bind_external_traffic_too(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, ready(at, "a1", zones=["z1"]), ready(at, "b1", zones=["z2"])))
    yield meets("x", vip(at), served(at.n1, "a1"))
    yield meets("x", node_port(at), served(at.n1, "a1"))


# Slices


@case()
def case_22_slices_that_overlap(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", "a2"), slice_of(at, "a2", "b1", name="s-2"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "a2", "b1"))
    yield Gone(EndpointSlice, "s-1")
    yield meets("p1", cluster_ip(at), served(at.p1, "a2", "b1"))


@case()
def case_23_the_live_one_of_two_with_one_address(at: Addresses) -> Steps:
    for live, dying in (("s-1", "s-2"), ("s-2", "s-1")):
        yield given(service(at), slice_of(at, "a1", "b1", name=live), slice_of(at, draining(at, "a1"), name=dying))
        yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))
        yield Gone(EndpointSlice, dying)
        yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))
        yield Gone(EndpointSlice, live)
        yield refused("p1", cluster_ip(at))


@case()
def case_24_named_target_ports(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", port=8080), slice_of(at, "b1", name="s-2", port=9090))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1:9090"))


@case()
def case_25_slices_of_another_type(at: Addresses) -> Steps:
    other = AT[Family.IPV6 if at.family is Family.IPV4 else Family.IPV4]
    yield given(service(at), slice_of(other, "a1"), slice_of(at, name="s-2", address_type="FQDN"))
    yield refused("p1", cluster_ip(at))
    yield given(slice_of(at, "b1", name="s-3"))
    yield meets("p1", cluster_ip(at), served(at.p1, "b1"))


@case()
def case_26_t51_two_families_and_endpoints_in_one(at: Addresses) -> Steps:
    other = AT[Family.IPV6 if at.family is Family.IPV4 else Family.IPV4]
    yield given(service(at, clusterIPs=[at.cluster_ip, other.cluster_ip]), slice_of(at, "a1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))
    yield refused("p1", cluster_ip(other))


# What is served, and what is not


@case()
def case_27_another_proxy_s_service(at: Addresses) -> Steps:
    yield Owns("x", at.cluster_ip)
    yield Runs("x", cluster_ip(at), "elsewhere")
    yield given(service(at, labels={"service.kubernetes.io/service-proxy-name": "x"}), slice_of(at, "a1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "elsewhere"))


@case()
def case_29_t17_a_pod_reaches_itself(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, "p1"))
    yield meets("p1", cluster_ip(at), served(at.n1, "p1"))
    yield meets("p1", vip(at), served(at.n1, "p1"))
    yield meets("a1", cluster_ip(at), served(at.a1, "p1"))


@case()
def hairpin_with_external_policy_local(at: Addresses) -> Steps:
    yield given(load_balancer(at, externalTrafficPolicy=LOCAL), slice_of(at, "p1"))
    yield meets("p1", vip(at), served(at.n1, "p1"))
    yield meets("p1", node_port(at), served(at.n1, "p1"))


@case()
def case_30_t07_another_port_of_a_cluster_ip(at: Addresses) -> Steps:
    yield Owns("x", at.cluster_ip)
    yield Runs("x", (at.cluster_ip, PORT + 1), "leak")
    yield given(service(at), slice_of(at, "a1"))
    yield refused("p1", (at.cluster_ip, PORT + 1))
    yield refused("h1", (at.cluster_ip, PORT + 1))


@case()
def case_31_t08_a_cluster_ip_of_no_service(at: Addresses) -> Steps:
    yield Owns("x", at.unused_cluster_ip)
    yield Runs("x", (at.unused_cluster_ip, PORT), "leak")
    yield given(service(at), slice_of(at, "a1"))
    yield dropped("p1", (at.unused_cluster_ip, PORT))
    yield dropped("h1", (at.unused_cluster_ip, PORT))


@case()
def a_cluster_ip_that_goes(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))
    yield Gone(Service, "s")
    yield dropped("p1", cluster_ip(at))
    yield given(service(at))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"))


@case()
def case_32_t12_source_ranges(at: Addresses) -> Steps:
    yield given(load_balancer(at, loadBalancerSourceRanges=[at.outside]), slice_of(at, "a1", "b1"))
    yield meets("x", vip(at), served(at.n1, "a1", "b1"))
    yield dropped("y", vip(at))
    yield dropped("p1", vip(at))
    yield meets("y", node_port(at), served(at.n1, "a1", "b1"))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1", "b1"))


@case()
def source_ranges_change(at: Addresses) -> Steps:
    yield given(load_balancer(at, loadBalancerSourceRanges=[at.outside]), slice_of(at, "a1"))
    yield dropped("y", vip(at))
    yield given(load_balancer(at, loadBalancerSourceRanges=[f"{at.y}/{at.prefix_length}"]))
    yield meets("y", vip(at), served(at.n1, "a1"))
    yield dropped("x", vip(at))
    yield given(load_balancer(at))
    yield meets("x", vip(at), served(at.n1, "a1"))


@case()
def source_ranges_and_external_policy_local(at: Addresses) -> Steps:
    ranges = [at.outside, at.pods]
    spec: dict[str, Any] = {"externalTrafficPolicy": LOCAL, "loadBalancerSourceRanges": ranges}
    yield given(load_balancer(at, **spec), slice_of(at, "a1", "b1"))
    yield meets("x", vip(at), served(at.x, "a1"))
    yield meets("p1", vip(at), served(at.p1, "a1", "b1"))
    yield dropped("y", vip(at))
    yield meets("y", node_port(at), served(at.y, "a1"))


@case()
def case_33_a_range_with_the_node_and_the_vip_bound_there(at: Addresses) -> Steps:
    yield Owns("h1", at.vip)
    yield given(load_balancer(at, loadBalancerSourceRanges=[at.outside, at.nodes]), slice_of(at, "a1", "b1"))
    yield meets("h1", vip(at), served(at.n1, "a1", "b1"))
    yield dropped("y", vip(at))


@case()
def case_34_ingress_of_mode_proxy(at: Addresses) -> Steps:
    yield Owns("x", at.vip)
    yield Runs("x", vip(at), "balancer")
    yield given(load_balancer(at, ingress=[{"ip": at.vip, "ipMode": "Proxy"}]), slice_of(at, "a1"))
    yield meets("p1", vip(at), served(at.p1, "balancer"))
    yield meets("h1", vip(at), served(at.n1, "balancer"))
    yield meets("p1", node_port(at), served(at.n1, "a1"))


@case()
def case_35_t15_t16_a_node_port_elsewhere(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, "a1"))
    yield refused("x", (at.second, NODE_PORT))
    yield refused("h1", (at.loopback, NODE_PORT))
    yield Runs("h1", (at.second, NODE_PORT), "host")
    yield meets("x", (at.second, NODE_PORT), served(at.x, "host"))
    yield meets("x", node_port(at), served(at.n1, "a1"))


@case(Settings(node_port_addresses=("10.9.9.0/24", "fd00:9::/64")))
def node_ports_on_a_network_of_choice(at: Addresses) -> Steps:
    yield given(load_balancer(at), slice_of(at, "a1"))
    yield refused("x", node_port(at))
    yield meets("x", (at.second, NODE_PORT), served(at.n1, "a1"))


@case()
def case_36_one_protocol_without_endpoints(at: Addresses) -> Steps:
    yield given(service(at), slice_of(at, "a1", protocols=TCP))
    yield meets("p1", cluster_ip(at), served(at.p1, "a1"), TCP)
    yield refused("p1", cluster_ip(at), UDP)


@case()
def t05_one_address_and_two_services(at: Addresses) -> Steps:
    one = [{"name": "tcp", "port": PORT, "protocol": "TCP", "nodePort": NODE_PORT}]
    two = [
        {"name": "udp", "port": PORT, "protocol": "UDP", "nodePort": NODE_PORT},
        {"name": "tcp", "port": PORT + 1, "protocol": "TCP", "nodePort": OTHER_NODE_PORT},
    ]
    yield given(
        load_balancer(at, ports=one),
        load_balancer(at, "t", ports=two, clusterIP=at.other_cluster_ip),
        slice_of(at, "a1"),
        slice_of(at, "b1", name="t-1", of="t"),
    )
    yield meets("x", vip(at), served(at.n1, "a1"), TCP)
    yield meets("x", vip(at), served(at.n1, "b1"), UDP)
    yield meets("x", (at.vip, PORT + 1), served(at.n1, "b1"), TCP)
    yield meets("x", node_port(at), served(at.n1, "a1"), TCP)
    yield meets("x", node_port(at), served(at.n1, "b1"), UDP)


@case()
def case_51_the_older_of_two_services(at: Addresses) -> Steps:
    spec: dict[str, Any] = {"externalIPs": [at.external_ip]}
    younger: dict[str, Any] = {**spec, "clusterIP": at.other_cluster_ip, "created": "2026-02-01T00:00:00Z"}
    yield given(service(at, "a", **younger), slice_of(at, "b1", name="a-1", of="a"))
    yield meets("x", (at.external_ip, PORT), served(at.n1, "b1"))
    yield given(service(at, **spec), slice_of(at, "a1"))
    for pod in ("b1", "b2", "a2"):
        yield given(service(at, "a", **younger), slice_of(at, pod, name="a-1", of="a"))
        yield meets("x", (at.external_ip, PORT), served(at.n1, "a1"))
        yield meets("p1", (at.other_cluster_ip, PORT), served(at.p1, pod))
    yield given(service(at))
    yield meets("x", (at.external_ip, PORT), served(at.n1, "a2"))


@case()
def an_endpoint_on_the_node_s_own_network(at: Addresses) -> Steps:
    yield Runs("h1", (at.n1, 8080), "host")
    yield given(load_balancer(at), slice_of(at, host(at)))
    yield meets("p1", cluster_ip(at), served(at.p1, "host"))
    yield meets("h1", cluster_ip(at), served(at.n1, "host"))
    yield meets("x", vip(at), served(at.x, "host"))
