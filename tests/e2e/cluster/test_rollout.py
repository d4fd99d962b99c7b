# SPDX-License-Identifier: Apache-2.0
"""Under load from every node, by name, everything may be replaced and no connection fails."""

from tests.cluster.cluster import Cluster, eventually
from tests.cluster.install import rolled_out
from tests.e2e.cluster.workloads import Workloads

SERVED_AT_LEAST = 200
"""Connections; a load that hardly ran has shown nothing."""


def test_a_rolling_restart_of_the_backends_fails_no_connection(cluster: Cluster, workloads: Workloads) -> None:
    before = {pod["metadata"]["name"] for pod in workloads.pods("web")}
    with workloads.load("web", 80) as met:
        cluster.kubectl("rollout", "restart", "deployment/web")
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=180s")
        eventually(lambda: not gone(cluster, before), "the old pods are gone")
    assert not before & {pod["metadata"]["name"] for pod in workloads.pods("web")}
    assert set(met) == {"served"}, met
    assert met["served"] > SERVED_AT_LEAST


def test_a_rolling_update_of_svcproxy_fails_no_connection(cluster: Cluster, workloads: Workloads) -> None:
    with workloads.load("web", 80) as met:
        cluster.kubectl("--namespace=kube-system", "rollout", "restart", "daemonset/svcproxy")
        eventually(lambda: rolled_out(cluster), "svcproxy has been replaced on every node")
    assert set(met) == {"served"}, met
    assert met["served"] > SERVED_AT_LEAST


def gone(cluster: Cluster, names: set[str]) -> set[str]:
    """Those of the pods that are still there."""
    items = cluster.call("GET", "/api/v1/namespaces/default/pods")["items"]
    return names & {item["metadata"]["name"] for item in items}
