# SPDX-License-Identifier: Apache-2.0
"""Pods and hosts reach Services on every node, in both families."""

import pytest

from tests.cluster.plan import NodePlan
from tests.e2e.cluster.test_installed import NODES
from tests.e2e.cluster.workloads import Workloads

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
EVERY_NODE = pytest.mark.parametrize("node", NODES)
ENOUGH = 20
"""Connections of which each of three backends gets one, but for one time in a thousand."""
PLANS = {f"node{number}": NodePlan(number) for number in (1, 2, 3)}


@EVERY_NODE
@FAMILIES
def test_a_pod_reaches_every_backend_of_a_cluster_ip(workloads: Workloads, node: str, family: int) -> None:
    address = workloads.service("web")["spec"]["clusterIPs"][family]
    backends = {pod["metadata"]["name"] for pod in workloads.pods("web")}
    assert workloads.served_by(node, address, 80, ENOUGH) == backends


@EVERY_NODE
@FAMILIES
def test_backends_see_the_pod_that_asks(workloads: Workloads, node: str, family: int) -> None:
    address = workloads.service("web")["spec"]["clusterIPs"][family]
    (client,) = [pod for pod in workloads.pods("client") if pod["spec"]["nodeName"] == node]
    seen = workloads.on(node, "ask", address, "80").split()[1]
    assert seen == client["status"]["podIPs"][family]["ip"]


@EVERY_NODE
@FAMILIES
def test_datagrams_reach_a_backend(workloads: Workloads, node: str, family: int) -> None:
    address = workloads.service("web")["spec"]["clusterIPs"][family]
    assert workloads.on(node, "ask-udp", address, "81").startswith("web-")


@EVERY_NODE
@FAMILIES
def test_a_host_outside_reaches_a_node_port(workloads: Workloads, node: str, family: int) -> None:
    port = workloads.service("web")["spec"]["ports"][0]["nodePort"]
    assert workloads.outside("ask", PLANS[node].addresses[family], str(port)).startswith("web-")


@EVERY_NODE
@FAMILIES
def test_local_traffic_policy_stays_on_the_node_and_keeps_the_source(
    workloads: Workloads, node: str, family: int
) -> None:
    port = workloads.service("local")["spec"]["ports"][0]["nodePort"]
    pod, source = workloads.outside("ask", PLANS[node].addresses[family], str(port)).split()
    (here,) = [each["metadata"]["name"] for each in workloads.pods("web") if each["spec"]["nodeName"] == node]
    assert (pod, source) == (here, ("10.77.0.200", "fd00:77::200")[family])


@EVERY_NODE
def test_a_pod_reaches_the_api_server_by_its_service(workloads: Workloads, node: str) -> None:
    answer = workloads.on(node, "tls", "kubernetes.default.svc", "443")
    assert "kubernetes.default.svc" in answer
