# SPDX-License-Identifier: Apache-2.0
"""What a Service asks for: its frontends, field by field."""

from typing import Any

import pytest

from svcproxy.frontends.demand import AFFINITY_TIMEOUT, demand_of
from svcproxy.frontends.keys import Frontend, TrafficPolicy
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Service
from tests.frontends.world import N1, VIP, World, endpoint, load_balancer, ready, service, slice_of

IP4, IP6 = "10.96.0.50", "fd00:96::50"
NODE_PORT = {"name": "http", "port": 80, "nodePort": 30080}


def frontends(asking: Service, options: FrontendOptions | None = None) -> list[Frontend]:
    demand = demand_of(asking, options or FrontendOptions(), N1)
    return [frontend for port in demand.ports for frontend in port.frontends]


def keys(asking: Service, options: FrontendOptions | None = None) -> set[str]:
    return {str(frontend.key) for frontend in frontends(asking, options)}


@pytest.mark.parametrize(
    ("asking", "expected"),
    [
        pytest.param(service(), {"10.96.0.50:80/TCP"}, id="ClusterIP"),
        pytest.param(
            service(type="NodePort", ports=[NODE_PORT]),
            {"10.96.0.50:80/TCP", "IPv4 node-port:30080/TCP"},
            id="NodePort",
        ),
        pytest.param(
            service(clusterIPs=[IP4, IP6], ports=[NODE_PORT]),
            {
                "10.96.0.50:80/TCP",
                "[fd00:96::50]:80/TCP",
                "IPv4 node-port:30080/TCP",
                "IPv6 node-port:30080/TCP",
            },
            id="dual stack",
        ),
        pytest.param(
            service(clusterIPs=["FD00:96:0::50"], clusterIP="FD00:96:0::50"), {"[fd00:96::50]:80/TCP"}, id="spelling"
        ),
        pytest.param(
            service(clusterIPs=[IP4, IP6], ipFamilies=["IPv4"], externalIPs=[VIP, "2001:db8::7"]),
            {"10.96.0.50:80/TCP", f"{VIP}:80/TCP"},
            id="a family that is not in ipFamilies does not exist",
        ),
        pytest.param(
            service(clusterIPs=[IP4, IP6], ipFamilies=[]), {"10.96.0.50:80/TCP"}, id="no ipFamilies: clusterIP alone"
        ),
        pytest.param(service(clusterIP=""), set(), id="no clusterIP yet"),
        pytest.param(service(clusterIPs=[IP6], ipFamilies=["IPv4"]), set(), id="an address of the wrong family"),
        pytest.param(load_balancer(ingress=[]), {"10.96.0.50:80/TCP", "IPv4 node-port:30080/TCP"}, id="no status"),
        pytest.param(
            load_balancer(ports=[{"name": "http", "port": 80}], ingress=[{"hostname": "lb.example"}, {"ip": VIP}]),
            {"10.96.0.50:80/TCP", f"{VIP}:80/TCP"},
            id="no NodePort allocated, an ingress without ip",
        ),
        pytest.param(
            service(ports=[{"name": p.lower(), "port": 53, "protocol": p} for p in ("TCP", "UDP", "SCTP")]),
            {"10.96.0.50:53/TCP", "10.96.0.50:53/UDP", "10.96.0.50:53/SCTP"},
            id="protocols",
        ),
        pytest.param(service(ports=[]), set(), id="no ports"),
    ],
)
def test_keys(asking: Service, expected: set[str]) -> None:
    assert keys(asking) == expected


LOCAL = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}


@pytest.mark.parametrize(
    ("spec", "internal", "external"),
    [
        pytest.param({"type": "NodePort", **LOCAL}, "Local", "Local", id="NodePort"),
        pytest.param({"externalIPs": [VIP], **LOCAL}, "Local", "Local", id="ClusterIP with externalIPs"),
        pytest.param({**LOCAL}, "Local", "Cluster", id="plain ClusterIP: eTP without effect"),
        pytest.param({"type": "NodePort"}, "Cluster", "Cluster", id="nil"),
    ],
)
def test_policies(spec: dict[str, Any], internal: str, external: str) -> None:
    by_kind = {f.kind.external: f.policy for f in frontends(service(ports=[NODE_PORT], **spec))}
    assert by_kind == {False: TrafficPolicy(internal), True: TrafficPolicy(external)}


@pytest.mark.parametrize(
    ("spec", "timeout"),
    [
        pytest.param({}, None, id="nil"),
        pytest.param({"sessionAffinity": "None"}, None, id="None"),
        pytest.param({"sessionAffinity": "ClientIP"}, AFFINITY_TIMEOUT, id="default"),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, 60, id="60"
        ),
    ],
)
def test_affinity(spec: dict[str, Any], timeout: int | None) -> None:
    assert {f.affinity_timeout for f in frontends(load_balancer(**spec))} == {timeout}


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        pytest.param(None, None, id="none"),
        pytest.param(["203.0.113.9/24", "203.0.113.0/24"], ("203.0.113.0/24",), id="canonical, once"),
        pytest.param(["2001:db8::/32"], None, id="another family only: unfiltered"),
        pytest.param(["203.0.113.0/33"], (), id="one that cannot be read closes the door"),
        pytest.param(["203.0.113.1"], (), id="a bare address is not a range"),
        pytest.param(
            ["0.0.0.0/0"], ("0.0.0.0/0", f"{VIP}/32"), id="holds the node's address: the VIP is admitted as well"
        ),
    ],
)
def test_source_ranges(ranges: list[str] | None, expected: tuple[str, ...] | None) -> None:
    asking = load_balancer(loadBalancerSourceRanges=ranges, externalIPs=["198.51.100.8"])
    by_kind = {str(f.kind): f.source_ranges for f in frontends(asking)}
    assert by_kind == {"ClusterIP": None, "NodePort": None, "ExternalIP": None, "LoadBalancer": expected}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(FrontendOptions(), {"198.51.100.7", "192.0.2.99"}, id="as kube-proxy"),
        pytest.param(FrontendOptions(external_ips=False), set(), id="off"),
        pytest.param(FrontendOptions(external_ip_cidrs=("198.51.100.0/24",)), {"198.51.100.7"}, id="allowed CIDRs"),
    ],
)
def test_external_ips(options: FrontendOptions, expected: set[str]) -> None:
    asking = service(externalIPs=["198.51.100.7", "192.0.2.99"])
    assert {f"{ip}:80/TCP" for ip in expected} == keys(asking, options) - {"10.96.0.50:80/TCP"}
    left_out = demand_of(asking, options, N1).problems
    assert len(left_out) == 2 - len(expected)


@pytest.mark.parametrize(
    ("spec", "port"),
    [
        pytest.param({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, 32000, id="LoadBalancer, Local"),
        pytest.param({"type": "LoadBalancer"}, 0, id="Cluster"),
        pytest.param({"type": "NodePort", "externalTrafficPolicy": "Local"}, 0, id="NodePort"),
    ],
)
def test_health_port(spec: dict[str, Any], port: int) -> None:
    asking = service(healthCheckNodePort=32000, ports=[NODE_PORT], **spec)
    assert demand_of(asking, FrontendOptions(), N1).health_port == port


def test_the_health_check_counts_both_families() -> None:
    asking = load_balancer(externalTrafficPolicy="Local", healthCheckNodePort=32000, clusterIPs=[IP4, IP6])
    world = World(
        asking,
        slice_of(ready("10.244.1.1"), ready("10.244.2.1")),
        slice_of(ready("fd00:244::1:1"), name="s-6", family="IPv6"),
    )
    (check,) = world.table.health_checks.values()
    assert check.local_endpoints == 2
    update = world.apply(slice_of(endpoint("10.244.1.1", ready=False), ready("10.244.2.1")))
    assert [check.local_endpoints for check in update.delta.health_checks] == [1]
    update = world.apply(load_balancer(externalTrafficPolicy="Cluster", healthCheckNodePort=32000))
    assert [service.name for service in update.delta.health_checks_removed] == ["s"]


@pytest.mark.parametrize(
    ("asking", "slices", "messages"),
    [
        pytest.param(
            service(clusterIPs=["10.96.0.999"]),
            [],
            ["spec.clusterIPs: not an IPv4 address: '10.96.0.999'"],
            id="clusterIP",
        ),
        pytest.param(
            service(ipFamilies=["IPv4", "IPv6"]),
            [],
            ["spec.clusterIPs: no IPv6 address, though spec.ipFamilies names it"],
            id="clusterIPs too short",
        ),
        pytest.param(
            service(externalIPs=["nonsense", VIP]),
            [],
            ["spec.externalIPs: not an IP address: 'nonsense'"],
            id="externalIP",
        ),
        pytest.param(service(ports=[{"name": "x", "port": 0}]), [], ["spec.ports: 'x' has no number"], id="port"),
        pytest.param(
            load_balancer(ingress=[{"ip": "fe80::1%eth0"}]),
            [],
            ["status.loadBalancer.ingress: not an IP address: 'fe80::1%eth0'"],
            id="ingress",
        ),
        pytest.param(
            load_balancer(loadBalancerSourceRanges=["2001:db8::/32"]),
            [],
            ["spec.loadBalancerSourceRanges: no IPv4 range: IPv4 sources are not filtered"],
            id="source ranges of the other family",
        ),
        pytest.param(
            service(),
            [slice_of(ready("bad"), ready("10.244.1.1"), ready("fd00::1"), name="s-9"), slice_of(port=None)],
            [
                "EndpointSlice s-1: ports[0] has no number",
                "EndpointSlice s-9: endpoints[0]: not an IPv4 address: 'bad'",
                "EndpointSlice s-9: endpoints[2]: not an IPv4 address: 'fd00::1'",
            ],
            id="slices",
        ),
    ],
)
def test_what_cannot_be_used_is_reported(asking: Service, slices: list[Any], messages: list[str]) -> None:
    world = World(asking, *slices)
    assert list(world.builder.problems[asking.key]) == messages


def test_the_rest_of_a_bad_slice_is_used() -> None:
    world = World(service(), slice_of(ready("bad"), ready("10.244.1.1")))
    assert {str(b) for backends in world.table.backends.values() for b in backends} == {"10.244.1.1:8080"}
    world.apply(slice_of(ready("10.244.1.2"), ready("10.244.1.1")))
    assert not world.builder.problems


@pytest.mark.parametrize(
    "worse",
    [
        pytest.param(slice_of(ready("10.244.1.1"), ready("bad")), id="an endpoint"),
        pytest.param(slice_of(ready("10.244.1.1"), port=None), id="the ports"),
    ],
)
def test_a_slice_turns_bad_and_goes(worse: Any) -> None:
    world = World(service(), slice_of(ready("10.244.1.1")))
    world.apply(worse)
    assert len(world.builder.problems) == 1
    world.remove(type(worse), "s-1")
    assert not world.builder.problems


def test_problems_are_bounded() -> None:
    slices = [slice_of(*(ready(f"bad-{n}") for n in range(1000)), name=f"s-{i}") for i in range(9)]
    world = World(service(), *slices)
    (messages,) = world.builder.problems.values()
    assert len(messages) == 17
    assert messages[8] == "EndpointSlice s-0: 992 more problems"
