# SPDX-License-Identifier: Apache-2.0
"""Names as pods look them up: by the C library, with the resolv.conf that the kubelet wrote."""

import json

import pytest

from tests.e2e.cluster.test_installed import NODES
from tests.e2e.cluster.workloads import Workloads

EVERY_NODE = pytest.mark.parametrize("node", NODES)


def test_pods_complete_names_as_the_kubelet_says(workloads: Workloads) -> None:
    conf = workloads.on("node1", "file", "/etc/resolv.conf")
    assert "search default.svc.cluster.local svc.cluster.local cluster.local" in conf
    assert "options ndots:5" in conf


@EVERY_NODE
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("web", id="in the own namespace"),
        pytest.param("web.default", id="with the namespace"),
        pytest.param("web.default.svc", id="with the namespace and svc"),
        pytest.param("web.default.svc.cluster.local", id="whole, completed three times before"),
        pytest.param("web.default.svc.cluster.local.", id="absolute"),
    ],
)
def test_a_service_has_its_cluster_ips(workloads: Workloads, node: str, name: str) -> None:
    assert json.loads(workloads.on(node, "resolve", name)) == sorted(workloads.service("web")["spec"]["clusterIPs"])


@EVERY_NODE
def test_a_headless_service_has_the_addresses_of_its_pods(workloads: Workloads, node: str) -> None:
    addresses = [address["ip"] for pod in workloads.pods("web") for address in pod["status"]["podIPs"]]
    assert json.loads(workloads.on(node, "resolve", "headless")) == sorted(addresses)


@EVERY_NODE
def test_what_does_not_exist_has_no_address(workloads: Workloads, node: str) -> None:
    assert json.loads(workloads.on(node, "resolve", "nobody.default.svc.cluster.local.")) == []
