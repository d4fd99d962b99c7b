# SPDX-License-Identifier: Apache-2.0
"""What `deploy/` says is accepted by a real API server, and its ClusterRole is exactly what the agent needs."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from svcproxy.options import load
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane
from tests.e2e.harness import SERVICES, SLICES, AgentProcess, endpoint_slice, eventually, lines, service

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "base"
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/svcproxy"


@pytest.fixture
def deployed(shared_plane: ControlPlane) -> Iterator[ControlPlane]:
    shared_plane.kubectl("apply", "-k", str(BASE))
    yield shared_plane
    shared_plane.kubectl("delete", "-k", str(BASE), "--wait=false")


def test_the_daemonset_is_as_small_as_it_can_be(deployed: ControlPlane) -> None:
    daemonset = deployed.call("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/svcproxy")
    pod = daemonset["spec"]["template"]["spec"]
    containers = {container["name"]: container for container in pod["containers"]}
    assert set(containers) == {"agent", "dns"}
    assert pod["hostNetwork"] is True
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["automountServiceAccountToken"] is False
    for container in containers.values():
        assert "ports" not in container, "declared host ports would keep two instances off one node"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert "exec" in container["livenessProbe"]
        assert "exec" in container["readinessProbe"]
    with_token = [name for name, each in containers.items() if any(m["name"] == "token" for m in each["volumeMounts"])]
    assert with_token == ["agent"]


def test_preflight_runs_with_the_privileges_of_both_roles(shared_plane: ControlPlane, tmp_path: Path) -> None:
    shutil.copytree(BASE.parent, tmp_path / "deploy")
    overlay = tmp_path / "deploy" / "overlay"
    overlay.mkdir()
    kustomization = {"namespace": "kube-system", "resources": ["../base"], "components": ["../components/preflight"]}
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization))
    shared_plane.kubectl("apply", "-k", str(overlay))
    try:
        daemonset = shared_plane.call("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/svcproxy")
    finally:
        shared_plane.kubectl("delete", "-k", str(overlay), "--wait=false")
    pod = daemonset["spec"]["template"]["spec"]
    [preflight] = pod["initContainers"]
    assert preflight["image"] == pod["containers"][0]["image"]
    both = {each for container in pod["containers"] for each in container["securityContext"]["capabilities"]["add"]}
    assert set(preflight["securityContext"]["capabilities"]["add"]) == both
    mounts = {each["mountPath"] for container in pod["containers"] for each in container["volumeMounts"]}
    assert {each["mountPath"] for each in preflight["volumeMounts"]} == mounts


def test_what_interception_takes_is_one_capability_of_one_container(tmp_path: Path) -> None:
    def built(**overlay: list[str]) -> dict[str, dict[str, Any]]:
        where = {
            key: [os.path.relpath(DEPLOY / each, tmp_path) for each in each_of] for key, each_of in overlay.items()
        }
        (tmp_path / "kustomization.yaml").write_text(json.dumps(where))
        text = subprocess.run([binaries.find("kubectl"), "kustomize", tmp_path], check=True, capture_output=True).stdout
        (daemonset,) = (each for each in yaml.safe_load_all(text) if each["kind"] == "DaemonSet")
        return {each["name"]: each for each in daemonset["spec"]["template"]["spec"]["containers"]}

    plain = built(resources=["base"])
    with_it = built(resources=["base"], components=["components/dns-intercept"])
    capabilities = with_it["dns"]["securityContext"].pop("capabilities")
    assert (capabilities["drop"], set(capabilities["add"])) == (["ALL"], {"NET_ADMIN", "NET_BIND_SERVICE"})
    assert plain["dns"]["securityContext"].pop("capabilities") == {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
    assert with_it == plain


@pytest.mark.parametrize(
    ("overlay", "capabilities"),
    [
        pytest.param("both", {"agent": ["NET_ADMIN"], "dns": ["NET_BIND_SERVICE"]}, id="both"),
        pytest.param("services-only", {"agent": ["NET_ADMIN"]}, id="services-only"),
        pytest.param("dns-only", {"agent": [], "dns": ["NET_BIND_SERVICE"]}, id="dns-only: the agent needs none"),
    ],
)
def test_an_overlay_asks_for_no_more_than_it_needs(
    shared_plane: ControlPlane, overlay: str, capabilities: dict[str, list[str]]
) -> None:
    rendered = shared_plane.kubectl("kustomize", str(BASE.parent / "overlays" / overlay)).encode()
    said = shared_plane.kubectl("apply", "--dry-run=server", "--output=json", "--filename=-", stdin=rendered)
    (daemonset,) = [each for each in json.loads(said)["items"] if each["kind"] == "DaemonSet"]
    containers = daemonset["spec"]["template"]["spec"]["containers"]
    added = {each["name"]: each["securityContext"]["capabilities"].get("add", []) for each in containers}
    assert added == capabilities


def test_the_configuration_is_valid(deployed: ControlPlane, tmp_path: Path) -> None:
    held = deployed.call("GET", "/api/v1/namespaces/kube-system/configmaps/svcproxy")
    path = tmp_path / "config.yaml"
    path.write_text(held["data"]["config.yaml"])
    assert load(str(path), {}, {"NODE_NAME": "node-1"}).node_name == "node-1"


async def test_the_agent_runs_with_the_role_of_the_manifests(deployed: ControlPlane, tmp_path: Path) -> None:
    token = deployed.service_account_token("kube-system", "svcproxy")
    with AgentProcess(tmp_path, "--kubeconfig", str(deployed.kubeconfig(token))) as agent:
        await agent.ready()
        synced = {source["kind"]: source["synced"] for source in agent.get("/v1/status")["sources"]}
        assert synced == dict.fromkeys(("Service", "EndpointSlice", "Namespace", "Node", "ServiceCIDR"), True)


def without(role: dict[str, Any], resource: str) -> dict[str, Any]:
    rules = [rule for rule in role["rules"] if resource not in rule["resources"]]
    assert len(rules) == len(role["rules"]) - 1, f"{resource} has a rule of its own"
    return role | {"rules": rules}


@pytest.mark.parametrize(
    ("resource", "kind"),
    [
        pytest.param("services", "Service", id="services: nothing is balanced, the agent is not ready"),
        pytest.param("endpointslices", "EndpointSlice", id="endpointslices: no backends, the agent is not ready"),
        pytest.param("namespaces", "Namespace", id="namespaces: DNS cannot tell an empty namespace from none"),
        pytest.param("nodes", "Node", id="nodes: zone and addresses of the own node are unknown"),
        pytest.param(
            "servicecidrs", "ServiceCIDR", id="servicecidrs: addresses of no Service are not met with silence"
        ),
    ],
)
async def test_without_a_rule_its_kind_is_not_followed_and_the_reason_is_named(
    deployed: ControlPlane, tmp_path: Path, resource: str, kind: str
) -> None:
    role = deployed.call("GET", ROLE)
    deployed.call("PUT", ROLE, without(role, resource))
    token = deployed.service_account_token("kube-system", "svcproxy")
    with AgentProcess(tmp_path, "--kubeconfig", str(deployed.kubeconfig(token))) as agent:

        def refused() -> bool:
            status = agent.get("/v1/status")
            sources = {each["kind"]: each for each in status["sources"]} if status else {}
            source = sources.get(kind)
            others = all(each["synced"] for name, each in sources.items() if name != kind)
            return bool(source and not source["synced"] and resource in source["error"] and others)

        await eventually(refused, f"{kind} is not synced, the error names {resource}, all others are followed")
        if kind in {"Service", "EndpointSlice"}:
            assert agent.readiness()["ready"] is False
        elif kind == "ServiceCIDR":
            await agent.ready()


async def conflict_is_reported(plane: ControlPlane, tmp_path: Path) -> AgentProcess:
    token = plane.service_account_token("kube-system", "svcproxy")
    agent = AgentProcess(tmp_path, "--kubeconfig", str(plane.kubeconfig(token)))
    agent.start()
    await agent.ready()
    for name in ("first", "second"):
        plane.request("POST", SERVICES, service(name, externalIPs=["198.51.100.9"]))
        plane.request("POST", SLICES, endpoint_slice(f"{name}-1", name, ["10.1.0.1"]))
    await eventually(lambda: bool(agent.get("/v1/status")["conflicts"]), "the conflict is in status")
    return agent


@pytest.mark.parametrize(
    "allowed", [True, False], ids=["events: the loser is told", "events: without the rule it is not"]
)
async def test_address_conflicts_become_events(deployed: ControlPlane, tmp_path: Path, allowed: bool) -> None:
    if not allowed:
        deployed.call("PUT", ROLE, without(deployed.call("GET", ROLE), "events"))
    events = "/api/v1/namespaces/default/events"
    deployed.request("DELETE", events)

    def reasons() -> set[str]:
        return {event["reason"] for event in deployed.call("GET", events)["items"]}

    agent = await conflict_is_reported(deployed, tmp_path)
    try:
        if allowed:
            await eventually(lambda: "AddressConflict" in reasons(), "the Event is there")
        else:
            await eventually(lambda: any(lines(agent.log, "was not created")), "the refusal is logged")
            assert "AddressConflict" not in reasons()
            assert agent.readiness()["ready"] is True
    finally:
        agent.kill()
        for name in ("first", "second"):
            deployed.delete(f"{SERVICES}/{name}")
            deployed.delete(f"{SLICES}/{name}-1")
