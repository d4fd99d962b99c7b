# SPDX-License-Identifier: Apache-2.0
"""What packets meet on node n1, as users of kube-proxy know it. The setting is that of `tests.frontends.world`."""

from dataclasses import dataclass

import pytest

from svcproxy.frontends.builder import PolicyKind
from svcproxy.frontends.keys import HealthCheck, Refusal
from svcproxy.frontends.node import NodeView
from svcproxy.model import EndpointSlice, NamespacedName, Service
from svcproxy.model.meta import Family, Protocol
from tests.frontends.world import (
    A1,
    A2,
    B1,
    CLUSTER_IP,
    DROP,
    FILTERED,
    H1,
    N1,
    NODE_PORT,
    P1,
    REJECT,
    VIP,
    World,
    X,
    Y,
    draining,
    endpoint,
    load_balancer,
    ready,
    service,
    slice_of,
)

a1, a2, b1 = ready("10.244.1.1"), ready("10.244.1.2"), ready("10.244.2.1")


@dataclass(frozen=True)
class Packet:
    source: str
    ip: str
    port: int = 80
    protocol: Protocol = Protocol.TCP


Expected = set[str] | Refusal | str | None
Row = tuple[Packet, Expected]

TO_CLUSTER_IP = Packet(P1, CLUSTER_IP)
FROM_X_TO_NODE_PORT, FROM_X_TO_VIP = Packet(X, H1, NODE_PORT), Packet(X, VIP)


def named_port(number: int) -> list[dict[str, object]]:
    return [{"name": "http", "port": number}]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        pytest.param(
            [service(), slice_of(a1, b1)],
            [(TO_CLUSTER_IP, {A1, B1}), (Packet(H1, CLUSTER_IP), {A1, B1})],
            id="case-1,2 pod and host reach every ready endpoint",
        ),
        pytest.param(
            [service(), slice_of(a1, b1)],
            [(Packet(X, CLUSTER_IP), {A1, B1})],
            id="case-4 a client that is routed to the ClusterIP",
        ),
        pytest.param(
            [load_balancer()],
            [
                (TO_CLUSTER_IP, REJECT),
                (Packet(H1, CLUSTER_IP), REJECT),
                (FROM_X_TO_NODE_PORT, REJECT),
                (FROM_X_TO_VIP, REJECT),
            ],
            id="case-5 no endpoints",
        ),
        pytest.param(
            [service(internalTrafficPolicy="Local"), slice_of(b1)],
            [(TO_CLUSTER_IP, DROP), (Packet(H1, CLUSTER_IP), DROP), (Packet(X, CLUSTER_IP), DROP)],
            id="case-6 iTP Local, endpoints elsewhere only",
        ),
        pytest.param(
            [load_balancer(), slice_of(b1)],
            [(FROM_X_TO_NODE_PORT, {B1}), (FROM_X_TO_VIP, {B1})],
            id="case-8 eTP Cluster, endpoint elsewhere",
        ),
        pytest.param(
            [load_balancer(externalTrafficPolicy="Local"), slice_of(a1, b1)],
            [(FROM_X_TO_NODE_PORT, {A1}), (FROM_X_TO_VIP, {A1})],
            id="case-9 eTP Local, endpoint here",
        ),
        pytest.param(
            [load_balancer(externalTrafficPolicy="Local"), slice_of(b1)],
            [(FROM_X_TO_NODE_PORT, DROP), (FROM_X_TO_VIP, DROP)],
            id="case-10 eTP Local, endpoints elsewhere only",
        ),
        pytest.param(
            [load_balancer(externalTrafficPolicy="Local"), slice_of(b1)],
            [(Packet(P1, VIP), {B1}), (Packet(P1, H1, NODE_PORT), {B1})],
            id="case-11 eTP Local does not bind pods",
        ),
        pytest.param(
            [load_balancer(externalTrafficPolicy="Local"), slice_of(b1)],
            [(Packet(H1, VIP), {B1}), (Packet(H1, H1, NODE_PORT), {B1})],
            id="case-12 eTP Local does not bind the node itself",
        ),
        pytest.param(
            [load_balancer(), slice_of(a1, b1)],
            [(Packet(P1, VIP), {A1, B1})],
            id="case-13 a pod to the VIP, eTP Cluster",
        ),
        pytest.param(
            [
                load_balancer(externalTrafficPolicy="Local", healthCheckNodePort=32000),
                slice_of(draining("10.244.1.1"), b1),
            ],
            [(FROM_X_TO_VIP, {A1}), (TO_CLUSTER_IP, {B1})],
            id="case-14 eTP Local, the only endpoint here terminates",
        ),
        pytest.param(
            [service(), slice_of(draining("10.244.1.1"), draining("10.244.2.1"))],
            [(TO_CLUSTER_IP, {A1, B1})],
            id="case-15 every endpoint terminates",
        ),
        pytest.param(
            [service(), slice_of(endpoint("10.244.1.1", ready=False, serving=False, terminating=True))],
            [(TO_CLUSTER_IP, REJECT)],
            id="case-16 terminating and not serving",
        ),
        pytest.param(
            [service(), slice_of(endpoint("10.244.1.1"))],
            [(TO_CLUSTER_IP, {A1})],
            id="case-17 all conditions nil",
        ),
        pytest.param(
            [service(), slice_of(endpoint("10.244.1.1", ready=True, serving=False, terminating=True))],
            [(TO_CLUSTER_IP, {A1})],
            id="case-18 publishNotReadyAddresses: failing and terminating, still ready",
        ),
        pytest.param(
            [service(), slice_of(ready("10.244.1.1", zones=["z1"]), ready("10.244.2.1", zones=["z2"]))],
            [(TO_CLUSTER_IP, {A1})],
            id="case-19 zone hints",
        ),
        pytest.param(
            [
                service(),
                slice_of(
                    ready("10.244.1.1", zones=["z1"], nodes=["n1"]), ready("10.244.2.1", zones=["z2"], nodes=["n2"])
                ),
            ],
            [(TO_CLUSTER_IP, {A1})],
            id="case-20 node hints",
        ),
        pytest.param(
            [service(), slice_of(a1, a2), slice_of(a2, b1, name="s-2")],
            [(TO_CLUSTER_IP, {A1, A2, B1})],
            id="case-22 one endpoint in two slices",
        ),
        pytest.param(
            [service(), slice_of(draining("10.244.1.1")), slice_of(a1, name="s-2")],
            [(TO_CLUSTER_IP, {A1})],
            id="case-23 a dying and a living pod with one address",
        ),
        pytest.param(
            [service(), slice_of(a1), slice_of(draining("10.244.1.1"), name="s-2")],
            [(TO_CLUSTER_IP, {A1})],
            id="case-23 a living and a dying pod with one address",
        ),
        pytest.param(
            [service(), slice_of(a1), slice_of(b1, name="s-2", ports=named_port(9090))],
            [(TO_CLUSTER_IP, {A1, "10.244.2.1:9090"})],
            id="case-24 named targetPort, a number per slice",
        ),
        pytest.param(
            [
                service(),
                slice_of(ready("fd00:244::1:1"), name="s-6", family="IPv6"),
                slice_of(ready("a.example.com"), name="s-f", family="FQDN"),
            ],
            [(TO_CLUSTER_IP, REJECT)],
            id="case-25 slices of another family and FQDN are ignored",
        ),
        pytest.param(
            [service(clusterIPs=[CLUSTER_IP, "fd00:96::50"]), slice_of(a1)],
            [(TO_CLUSTER_IP, {A1}), (Packet("fd00:244::1:9", "fd00:96::50"), REJECT)],
            id="case-26 dual stack, IPv4 endpoints only",
        ),
        pytest.param(
            [load_balancer(labels={"service.kubernetes.io/service-proxy-name": "x"}), slice_of(a1)],
            [(TO_CLUSTER_IP, None), (FROM_X_TO_VIP, None), (FROM_X_TO_NODE_PORT, None)],
            id="case-27 service-proxy-name",
        ),
        pytest.param(
            [service(labels={"service.kubernetes.io/service-proxy-name": ""}), slice_of(a1)],
            [(TO_CLUSTER_IP, None)],
            id="case-27 service-proxy-name, empty",
        ),
        pytest.param([service(clusterIP="None"), slice_of(a1)], [(TO_CLUSTER_IP, None)], id="case-28 headless"),
        pytest.param(
            [service(type="ExternalName", externalName="example.com"), slice_of(a1)],
            [(TO_CLUSTER_IP, None)],
            id="case-28 ExternalName, even with a clusterIP",
        ),
        pytest.param(
            [service(), slice_of(ready(P1))], [(TO_CLUSTER_IP, {f"{P1}:8080"})], id="case-29 a pod may reach itself"
        ),
        pytest.param(
            [service(), slice_of(a1)], [(Packet(P1, CLUSTER_IP, 81), None)], id="case-30 another port of a ClusterIP"
        ),
        pytest.param([service()], [(Packet(P1, "10.96.9.9"), None)], id="case-31 an address of no Service"),
        pytest.param(
            [load_balancer(loadBalancerSourceRanges=[" 203.0.113.0/24 "]), slice_of(a1)],
            [
                (FROM_X_TO_VIP, {A1}),
                (Packet(Y, VIP), FILTERED),
                (Packet(P1, VIP), FILTERED),
                (Packet(Y, H1, NODE_PORT), {A1}),
                (TO_CLUSTER_IP, {A1}),
            ],
            id="case-32 source ranges guard the VIP alone",
        ),
        pytest.param(
            [load_balancer(loadBalancerSourceRanges=["203.0.113.0/24", "192.0.2.0/24"]), slice_of(a1)],
            [(Packet(H1, VIP), {A1}), (Packet(VIP, VIP), {A1}), (Packet(Y, VIP), FILTERED)],
            id="case-33 a range with the node's address admits the Service's own VIP",
        ),
        pytest.param(
            [
                load_balancer(ingress=[{"ip": VIP, "ipMode": "Proxy"}, {"ip": "198.51.100.8", "ipMode": "VIP"}]),
                slice_of(a1),
            ],
            [(Packet(P1, VIP), None), (Packet(P1, "198.51.100.8"), {A1})],
            id="case-34 ipMode Proxy",
        ),
        pytest.param(
            [
                service(ports=[{"name": "dns", "port": 53, "protocol": p} for p in ("TCP", "UDP")]),
                slice_of(a1, ports=[{"name": "dns", "port": 5353, "protocol": "TCP"}]),
            ],
            [(Packet(P1, CLUSTER_IP, 53), {"10.244.1.1:5353"}), (Packet(P1, CLUSTER_IP, 53, Protocol.UDP), REJECT)],
            id="case-36 one port number, two protocols",
        ),
    ],
)
def test_packets(given: list[Service | EndpointSlice], rows: list[Row]) -> None:
    at_once, one_by_one, slices_first = World(*given), World(), World()
    for thing in given:
        one_by_one.apply(thing)
    for thing in reversed(given):
        slices_first.apply(thing)
    for packet, expected in rows:
        for world in (at_once, one_by_one, slices_first):
            assert world.meets(packet.source, packet.ip, packet.port, packet.protocol) == expected


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        pytest.param("internalTrafficPolicy", PolicyKind.INTERNAL, id="case-6,7 internal"),
        pytest.param("externalTrafficPolicy", PolicyKind.EXTERNAL, id="case-10 external"),
    ],
)
def test_gauge_of_ports_without_local_endpoints(policy: str, kind: PolicyKind) -> None:
    world = World(load_balancer(**{policy: "Local"}), slice_of(b1))
    other = next(k for k in PolicyKind if k is not kind)
    gauge = world.builder.no_local_endpoints
    assert (gauge[Family.IPV4, kind], gauge[Family.IPV4, other], gauge[Family.IPV6, kind]) == (1, 0, 0)
    world.apply(slice_of(a1, b1))
    assert gauge[Family.IPV4, kind] == 0
    world.apply(slice_of(b1))
    assert gauge[Family.IPV4, kind] == 1
    world.apply(slice_of())
    assert gauge[Family.IPV4, kind] == 0


def test_case_7_the_last_endpoint_goes() -> None:
    world = World(service(internalTrafficPolicy="Local"), slice_of(b1))
    assert world.meets(P1, CLUSTER_IP) is DROP
    world.apply(slice_of())
    assert world.meets(P1, CLUSTER_IP) is REJECT


def test_case_14_the_health_port_does_not_count_terminating_endpoints() -> None:
    world = World(load_balancer(externalTrafficPolicy="Local", healthCheckNodePort=32000), slice_of(a1, b1))
    s = NamespacedName("ns", "s")
    assert world.table.health_checks == {s: HealthCheck(s, 32000, 1)}
    world.apply(slice_of(draining("10.244.1.1"), b1))
    assert world.table.health_checks == {s: HealthCheck(s, 32000, 0)}


def test_case_19_a_cleared_hint_disables_the_level() -> None:
    world = World(service(), slice_of(ready("10.244.1.1", zones=["z1"]), ready("10.244.2.1", zones=["z2"])))
    world.apply(slice_of(a1, ready("10.244.2.1", zones=["z2"])))
    assert world.meets(P1, CLUSTER_IP) == {A1, B1}


def test_case_20_the_hinted_endpoint_stops_being_ready() -> None:
    there = ready("10.244.2.1", zones=["z2"], nodes=["n2"])
    world = World(service(), slice_of(ready("10.244.1.1", zones=["z1"], nodes=["n1"]), there))
    world.apply(slice_of(endpoint("10.244.1.1", ready=False, serving=False, zones=["z1"], nodes=["n1"]), there))
    assert world.meets(P1, CLUSTER_IP) == {B1}


def test_case_21_hints_on_a_node_without_zone() -> None:
    node = NodeView("n1", None, N1.addresses, N1.primary_addresses)
    hinted = slice_of(ready("10.244.1.1", zones=["z2"]), ready("10.244.2.1", zones=["z2"]))
    assert World(service(), hinted, node=node).meets(P1, CLUSTER_IP) == {A1, B1}


def test_case_22_a_slice_goes_and_takes_only_what_no_other_has() -> None:
    world = World(service(), slice_of(a1, a2), slice_of(a2, b1, name="s-2"))
    world.remove(EndpointSlice, "s-1")
    assert world.meets(P1, CLUSTER_IP) == {A2, B1}


def test_case_35_node_ports_are_on_the_primary_address_only() -> None:
    node = NodeView("n1", "z1", N1.addresses | {"10.9.9.9"}, N1.primary_addresses)
    world = World(load_balancer(), slice_of(a1), node=node)
    assert world.meets(X, H1, NODE_PORT) == {A1}
    assert world.meets(X, "10.9.9.9", NODE_PORT) is None
    assert world.meets(H1, "127.0.0.1", NODE_PORT) is None


def test_case_43_an_endpoint_that_is_not_ready_gets_no_new_connection() -> None:
    world = World(service(), slice_of(a1, b1))
    update = world.apply(slice_of(endpoint("10.244.1.1", ready=False, serving=False), b1))
    assert world.meets(P1, CLUSTER_IP) == {B1}
    assert [(c.added, list(map(str, c.removed))) for c in update.delta.backends] == [((), [A1])]


def test_case_48_the_health_port_counts_addresses() -> None:
    ports = [{"name": name, "port": number, "nodePort": 30000 + number} for name, number in (("x", 80), ("y", 81))]
    lb = load_balancer(externalTrafficPolicy="Local", healthCheckNodePort=32000, ports=ports)
    both = [{"name": "x", "port": 8080}, {"name": "y", "port": 8081}]
    world = World(lb, slice_of(a1, b1, ports=both), slice_of(a2, name="s-2", ports=both[:1]))
    assert [check.local_endpoints for check in world.table.health_checks.values()] == [2]


def test_case_51_the_winner_of_an_external_ip_never_changes() -> None:
    old = service("old", clusterIP="10.96.0.1", externalIPs=[VIP], created="2026-01-01T00:00:00Z")
    new = service("new", clusterIP="10.96.0.2", externalIPs=[VIP], created="2026-01-02T00:00:00Z")
    world = World(new, old)
    frontend = next(f for f in world.table.frontends.values() if f.kind.external)
    for n in range(100):
        world.apply(*([new, slice_of(ready(f"10.244.1.{n}"), of="new")] if n % 2 else [slice_of(a1, of="old")]))
        assert world.table.frontends[frontend.key] == frontend
    assert frontend.service_port.service == "old"
    assert [c.losers[0].service for c in world.builder.conflicts.values()] == ["new"]
