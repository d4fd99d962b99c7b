# SPDX-License-Identifier: Apache-2.0
"""The cluster itself: svcproxy is installed as users do it, and nothing else implements Services or DNS."""

import json

import pytest

from tests.cluster.cluster import Cluster

NODES = ("node1", "node2", "node3")


def test_every_node_is_ready(cluster: Cluster) -> None:
    nodes = cluster.call("GET", "/api/v1/nodes")["items"]
    ready = {
        node["metadata"]["name"]: {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"]
        for node in nodes
    }
    assert ready == dict.fromkeys(NODES, "True")


def test_svcproxy_is_alone(cluster: Cluster) -> None:
    pods = cluster.call("GET", "/api/v1/namespaces/kube-system/pods")["items"]
    assert {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods} == {"svcproxy"}
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == sorted(NODES)


@pytest.mark.parametrize("node", NODES)
def test_the_agent_has_what_it_needs(cluster: Cluster, node: str) -> None:
    status = json.loads(in_agent(cluster, node, "status", "--output=json"))
    assert [source["error"] for source in status["sources"] if source["error"]] == []
    assert [sysctl["error"] for sysctl in status["settings"] if sysctl["error"]] == []


def in_agent(cluster: Cluster, node: str, *words: str) -> str:
    """What svcproxy prints in the agent's container of a node."""
    pods = cluster.call("GET", f"/api/v1/namespaces/kube-system/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
    (name,) = [pod["metadata"]["name"] for pod in pods]
    return cluster.kubectl("--namespace=kube-system", "exec", name, "--container=agent", "--", "svcproxy", *words)
