# SPDX-License-Identifier: Apache-2.0
"""`svcproxy preflight` against a real API server, with the role of deploy/base and without parts of it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svcproxy.testing.control_plane import ControlPlane
from tests.e2e.harness import NODE
from tests.e2e.test_deploy import BASE, ROLE, without

CLUSTER_CHECKS = ("api-server", "rbac", "clock", "node", "pod-cidrs", "families", "api-servers")
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["192.0.2.1"]}],
    "ports": [{"name": "https", "port": 6443}],
}
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


@pytest.fixture
def deployed(shared_plane: ControlPlane) -> Iterator[ControlPlane]:
    """deploy/base, and the Node object of this machine."""
    shared_plane.kubectl("apply", "-k", str(BASE))
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
    node["spec"]["podCIDR"] = "10.244.1.0/24"  # type: ignore[index]
    node["status"] = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
    shared_plane.call("POST", "/api/v1/nodes", node)
    shared_plane.call("POST", SLICES, SLICE)
    yield shared_plane
    shared_plane.delete(f"{SLICES}/kubernetes")
    shared_plane.delete(f"/api/v1/nodes/{NODE}")
    shared_plane.kubectl("delete", "-k", str(BASE), "--wait=false")


def preflight(directory: Path, kubeconfig: Path, *more: str, node: str = NODE) -> dict[str, dict[str, Any]]:
    """What the checks of the cluster find."""
    flags = ["--role", "agent", "--kubeconfig", str(kubeconfig), "--node-name", node, "--dataplane", "none"]
    flags += ["--run-dir", str(directory / "run"), "--state-dir", str(directory / "state"), "-o", "json", *more]
    command = [sys.executable, "-m", "svcproxy", "preflight", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.stderr == ""
    checks = {each["name"]: each for each in json.loads(finished.stdout)["checks"]}
    failed = any(each["verdict"] == "failure" for each in checks.values())
    assert finished.returncode == (1 if failed else 0)
    return {name: checks[name] for name in CLUSTER_CHECKS}


def as_agent(plane: ControlPlane) -> Path:
    return plane.kubeconfig(plane.service_account_token("kube-system", "svcproxy"))


def verdicts(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["verdict"] for name, each in checks.items() if each["verdict"] != "ok"}


def test_with_the_role_of_the_manifests_all_is_well(deployed: ControlPlane, tmp_path: Path) -> None:
    checks = preflight(tmp_path, as_agent(deployed))
    assert verdicts(checks) == {}
    assert checks["api-server"]["found"].endswith("answers to system:serviceaccount:kube-system:svcproxy")
    assert checks["node"]["found"] == f"{NODE}: 127.0.0.1"
    assert checks["pod-cidrs"]["found"] == "10.244.1.0/24"
    assert checks["api-servers"]["found"].startswith("https://192.0.2.1:6443 besides ")


@pytest.mark.parametrize(
    ("resource", "verdict", "found"),
    [
        ("services", "failure", "not allowed: list services, watch services"),
        ("endpointslices", "failure", "list endpointslices.discovery.k8s.io, watch endpointslices.discovery.k8s.io"),
        ("namespaces", "failure", "not allowed: list namespaces, watch namespaces"),
        ("nodes", "failure", "not allowed: list nodes, watch nodes"),
        ("servicecidrs", "warning", "not allowed: list servicecidrs.networking.k8s.io, watch servicecidrs"),
        ("events", "warning", "not allowed: create events"),
    ],
)
def test_a_rule_that_is_missing_is_named(
    deployed: ControlPlane, tmp_path: Path, resource: str, verdict: str, found: str
) -> None:
    deployed.call("PUT", ROLE, without(deployed.call("GET", ROLE), resource))
    checks = preflight(tmp_path, as_agent(deployed))
    assert (checks["rbac"]["verdict"], found in checks["rbac"]["found"]) == (verdict, True), checks["rbac"]
    assert "deploy/base/rbac.yaml" in checks["rbac"]["advice"]
    if resource == "nodes":
        assert checks["node"]["advice"] == "see the check rbac"


def test_a_node_name_that_no_node_has(deployed: ControlPlane, tmp_path: Path) -> None:
    checks = preflight(tmp_path, as_agent(deployed), node="other")
    assert (checks["node"]["verdict"], checks["node"]["found"]) == ("failure", "there is no Node other")


def test_credentials_that_are_refused(deployed: ControlPlane, tmp_path: Path) -> None:
    checks = preflight(tmp_path, deployed.kubeconfig("no-such-token"))
    assert checks["api-server"]["verdict"] == "failure"
    assert checks["api-server"]["found"].startswith("the credentials are refused: ")
    assert {checks[name]["verdict"] for name in CLUSTER_CHECKS[1:]} == {"warning"}


def test_one_of_two_api_servers_is_enough(deployed: ControlPlane, tmp_path: Path) -> None:
    gone = "https://127.0.0.1:1"
    checks = preflight(tmp_path, as_agent(deployed), "--api-server", gone, "--api-server", deployed.url)
    assert verdicts(checks) == {"api-server": "warning"}
    assert gone in checks["api-server"]["found"]
    assert checks["rbac"]["found"] == "every rule is there"


def test_an_api_server_that_is_not_there(plane: ControlPlane, tmp_path: Path) -> None:
    kubeconfig = plane.kubeconfig()
    plane.apiservers[0].kill()
    checks = preflight(tmp_path, kubeconfig)
    assert checks["api-server"]["verdict"] == "failure"
    assert plane.url in checks["api-server"]["found"]
    assert {checks[name]["found"] for name in CLUSTER_CHECKS[1:]} == {"not looked at: the API server cannot be asked"}
