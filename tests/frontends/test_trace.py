# SPDX-License-Identifier: Apache-2.0
"""What `trace` tells an operator, and that it says what a data plane would do."""

from typing import Any

import msgspec
import pytest

from svcproxy.frontends.node import NodeView
from svcproxy.frontends.trace import ENDPOINTS_MAX, InvalidAddress, Stage, Trace, Verdict, trace
from svcproxy.model import EndpointSlice, Service
from svcproxy.model.meta import Protocol
from tests.frontends.world import (
    CLUSTER_IP,
    H1,
    N1,
    NODE_PORT,
    P1,
    POD_CIDRS,
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

a1, b1 = ready("10.244.1.1"), ready("10.244.2.1")


def traced(world: World, ip: str, port: int = 80, source: str | None = None, **refused: str) -> Trace:
    return trace(
        world.table,
        world.store,
        world.node,
        ip,
        Protocol.TCP,
        port,
        source=source,
        pod_cidrs=POD_CIDRS,
        conflicts=world.builder.conflicts,
        refused=dict.fromkeys(world.table.frontends, refused["refused"]) if refused else {},
    )


def test_where_interfaces_tell_pods_an_address_is_not_the_last_word() -> None:
    world = World(service(), slice_of(a1))
    by_interface = trace(
        world.table, world.store, world.node, CLUSTER_IP, Protocol.TCP, 80, source=X, pod_interfaces=("veth*", "cni0")
    )
    (said,) = (step.text for step in by_interface.steps if step.stage is Stage.SOURCE)
    assert "nor this node, by its address; what comes through veth*, cni0 is a pod's; every source" in said


LOCAL = {"externalTrafficPolicy": "Local"}
RANGES: dict[str, Any] = {"loadBalancerSourceRanges": ["203.0.113.0/24"]}


@pytest.mark.parametrize(
    ("given", "destination", "source", "verdict", "says"),
    [
        pytest.param([service(), slice_of(a1)], (CLUSTER_IP, 80), P1, "forward", "at random", id="forward"),
        pytest.param(
            [service(sessionAffinity="ClientIP"), slice_of(a1)],
            (CLUSTER_IP, 80),
            P1,
            "forward",
            "of the last 10800 s",
            id="affinity",
        ),
        pytest.param([service()], (CLUSTER_IP, 80), P1, "reject", "has no EndpointSlices", id="no slices"),
        pytest.param(
            [service(), slice_of(a1, ports=[{"name": "web", "port": 1}])],
            (CLUSTER_IP, 80),
            P1,
            "reject",
            "none of the Service's 1 EndpointSlices has IPv4 endpoints for a port named 'http'",
            id="port names differ",
        ),
        pytest.param([load_balancer(**LOCAL), slice_of(b1)], (VIP, 80), X, "drop", "none on this node", id="Local"),
        pytest.param(
            [load_balancer(**LOCAL), slice_of(b1)], (VIP, 80), P1, "forward", "does not bind pods", id="short circuit"
        ),
        pytest.param([load_balancer(**RANGES), slice_of(a1)], (VIP, 80), Y, "filtered", "none of", id="filtered"),
        pytest.param([load_balancer(**RANGES), slice_of(a1)], (VIP, 80), X, "forward", "it is in load", id="admitted"),
        pytest.param(
            [load_balancer(**RANGES), slice_of(a1)], (VIP, 80), None, "forward", "only sources in", id="no source"
        ),
        pytest.param([load_balancer(), slice_of(a1)], (H1, NODE_PORT), X, "forward", "takes NodePorts", id="NodePort"),
        pytest.param([service()], ("10.96.9.9", 80), P1, "not-ours", "not an address of any Service", id="unknown"),
        pytest.param([service()], (CLUSTER_IP, 81), P1, "not-ours", "on other ports: 80/TCP", id="wrong port"),
        pytest.param(
            [load_balancer()], ("127.0.0.1", NODE_PORT), H1, "not-ours", "that takes no NodePorts", id="not selected"
        ),
        pytest.param(
            [load_balancer()], ("192.0.2.12", NODE_PORT), X, "not-ours", "no address of this node", id="another node's"
        ),
        pytest.param(
            [load_balancer()], (H1, 31000), X, "not-ours", "no Service has the NodePort", id="no such NodePort"
        ),
        pytest.param(
            [service(labels={"service.kubernetes.io/service-proxy-name": "x"})],
            (CLUSTER_IP, 80),
            P1,
            "not-ours",
            "left to the proxy 'x'",
            id="another proxy",
        ),
        pytest.param(
            [load_balancer(ingress=[{"ip": VIP, "ipMode": "Proxy"}])],
            (VIP, 80),
            P1,
            "not-ours",
            "ipMode Proxy",
            id="ipMode Proxy",
        ),
        pytest.param(
            [
                service("new", clusterIP="10.96.0.2", externalIPs=[VIP], created="2026-03-01T00:00:00Z"),
                service(externalIPs=[VIP]),
            ],
            (VIP, 80),
            X,
            "reject",
            "also asked for by ns/new:http/TCP",
            id="conflict",
        ),
    ],
)
def test_traces(
    given: list[Service | EndpointSlice], destination: tuple[str, int], source: str | None, verdict: str, says: str
) -> None:
    world = World(*given)
    answer = traced(world, *destination, source=source)
    assert answer.verdict == verdict
    assert any(says in step.text for step in answer.steps), answer.steps
    assert msgspec.json.decode(msgspec.json.encode(answer), type=Trace) == answer
    if source is not None:
        met = world.meets(source, *destination)
        expected = set(answer.backends) if answer.verdict is Verdict.FORWARD else str(answer.verdict)
        assert (met if met is not None else "not-ours") == expected


def test_a_frontend_that_the_data_plane_refused() -> None:
    answer = traced(World(service(), slice_of(a1)), CLUSTER_IP, refused="address in use")
    assert any("address in use" in step.text for step in answer.steps)


@pytest.mark.parametrize(
    ("node", "spec", "source", "reasons"),
    [
        pytest.param(
            N1,
            {},
            X,
            {
                "10.244.1.1:8080": (True, "ready, hinted for here"),
                "10.244.2.1:8080": (False, "hinted for other nodes or zones"),
                "10.244.1.3:8080": (False, "terminating, while others are ready"),
                "10.244.1.4:8080": (False, "not ready"),
                "10.244.1.5:8080": (False, "terminating and not serving"),
            },
            id="cluster",
        ),
        pytest.param(
            NodeView("n3", "z3", N1.addresses, N1.primary_addresses),
            {},
            X,
            {"10.244.1.1:8080": (True, "ready"), "10.244.2.1:8080": (True, "ready")},
            id="hints not in force",
        ),
        pytest.param(
            N1,
            LOCAL,
            X,
            {"10.244.1.1:8080": (True, "ready"), "10.244.2.1:8080": (False, "on another node")},
            id="local",
        ),
        pytest.param(
            NodeView("n2", "z2", N1.addresses, N1.primary_addresses),
            LOCAL,
            X,
            {"10.244.2.1:8080": (True, "ready"), "10.244.1.3:8080": (False, "on another node")},
            id="local to another",
        ),
    ],
)
def test_why_an_endpoint_is_in_or_not(
    node: NodeView, spec: dict[str, str], source: str, reasons: dict[str, tuple[bool, str]]
) -> None:
    pieces = slice_of(
        ready("10.244.1.1", zones=["z1"]),
        ready("10.244.2.1", zones=["z2"]),
        draining("10.244.1.3"),
        endpoint("10.244.1.4", ready=False, serving=False),
        endpoint("10.244.1.5", ready=False, serving=False, terminating=True),
    )
    world = World(load_balancer(**spec), pieces, node=node)
    answer = traced(world, VIP, source=source)
    found = {e.backend: (e.selected, e.reason) for e in answer.endpoints}
    assert answer.endpoints_total == len(found) == 5
    assert {backend: found[backend] for backend in reasons} == reasons
    assert {e.backend for e in answer.endpoints if e.selected} == set(answer.backends)


def test_a_terminating_endpoint_in_use() -> None:
    answer = traced(World(service(), slice_of(draining("10.244.1.1"))), CLUSTER_IP, source=P1)
    assert [e.reason for e in answer.endpoints] == ["terminating, used because none is ready"]


def test_a_trace_is_bounded() -> None:
    world = World(service(), slice_of(*(ready(f"10.244.1.{n}") for n in range(1, 200))))
    answer = traced(world, CLUSTER_IP)
    assert (len(answer.backends), len(answer.endpoints)) == (ENDPOINTS_MAX, ENDPOINTS_MAX)
    assert (answer.backends_total, answer.endpoints_total) == (199, 199)


@pytest.mark.parametrize("text", ["", "10.0.0", "example.com"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidAddress):
        traced(World(), text)
