# SPDX-License-Identifier: Apache-2.0
"""Case 53 and T55: a node changes hands from a real kube-proxy to svcproxy, and back, under load."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from svcproxy.cli import main
from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.control_plane import ControlPlane, Process
from tests.e2e.differential.worlds import API_ADDRESS, attach, bridge, kube_proxy, node, svcproxy
from tests.e2e.harness import SERVICES, SLICES, eventually
from tests.netns.namespaces import Namespace
from tests.netns.places import AT
from tests.netns.probes import Served
from tests.netns.steady import steady
from tests.netns.world import World

pytestmark = pytest.mark.netns

ATTEMPTS = 16
"""In which each of two endpoints shows."""
NODE_PORT = 30080
IPV4 = AT[Family.IPV4]
TARGETS = {"p1": (IPV4.cluster_ip, 80), "x": (IPV4.n1, NODE_PORT), "h1": (IPV4.cluster_ip, 80)}


class Site:
    """n1 of a world, an API server that it reaches, and a Service there."""

    def __init__(self, world: World, plane: ControlPlane, control: Namespace, directory: Path) -> None:
        self.world = world
        self._plane = plane
        self._control = control
        self._directory = directory

    def process(self, name: str, mode: str = "") -> Process:
        """A kube-proxy or an agent, not started."""
        command = kube_proxy(self._directory, self._plane, mode) if mode else svcproxy(self._directory, self._plane)
        return Process(name, command, self._directory / f"{name}.log")

    def start(self, process: Process) -> None:
        with self.world.n1.entered():
            process.start()

    def endpoints(self, *pods: str) -> None:
        """These pods are the Service's endpoints."""
        path = f"{SLICES}/web-1"
        with self._control.entered():
            self._plane.request("PUT", path, slice_of(*pods))

    async def serves(self, *pods: str) -> None:
        """Return once new connections reach these pods and no others."""
        wanted = set(pods)
        while True:
            met = await self.world.attempts(ATTEMPTS, "p1", Protocol.TCP, TARGETS["p1"], 1.0)
            if {each.by if isinstance(each, Served) else "" for each in met} == wanted:
                return
            await asyncio.sleep(0.1)

    def readiness(self) -> dict[str, Any]:
        """Of the agent; empty while nobody answers."""
        try:
            socket = find_instance(self._directory / "run", "").admin_socket
            return dict(StatusClient(socket).get_json("/v1/status")["readiness"])
        except (ClientError, OSError):
            return {}

    def cleanup(self, *flags: str) -> int:
        directories = ("--run-dir", str(self._directory / "run"), "--state-dir", str(self._directory / "state"))
        with self.world.n1.entered():
            return main(["cleanup", *directories, *flags])

    def ruleset(self) -> str:
        return self.world.n1.run("nft", "list", "ruleset")


def slice_of(*pods: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [IPV4.of_pods[pod]], "conditions": {"ready": True}} for pod in pods],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "NodePort",
        "clusterIP": IPV4.cluster_ip,
        "ports": [{"port": 80, "nodePort": NODE_PORT, "protocol": "TCP"}],
    },
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        control, world = stack.enter_context(Namespace()), stack.enter_context(World())
        bridge(control)
        attach(world.n1, control, 0)
        with control.entered():
            flags = [f"--service-cluster-ip-range={IPV4.services},{AT[Family.IPV6].services}"]
            plane = stack.enter_context(ControlPlane(host=API_ADDRESS, flags=flags))
            plane.call("POST", "/api/v1/nodes", node("n1"))
            addresses = {"status": {"addresses": [{"type": "InternalIP", "address": at.n1} for at in AT.values()]}}
            merge = "application/merge-patch+json"
            plane.request("PATCH", "/api/v1/nodes/n1/status", addresses, content_type=merge)
            plane.call("POST", SERVICES, SERVICE)
            plane.call("POST", SLICES, slice_of("a1", "b1"))
        yield Site(world, plane, control, tmp_path)


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
async def test_case_53_from_kube_proxy_and_back(site: Site, mode: str) -> None:
    old, new = site.process("kube-proxy", mode), site.process("svcproxy")
    try:
        async with site.world.serving():
            site.start(old)
            await site.serves("a1", "b1")
            with site.world.flow("p1", Protocol.TCP, TARGETS["p1"]) as established:
                first = await established.ask()
                async with steady(site.world, TARGETS):
                    site.start(new)
                    await eventually(lambda: "kube-proxy" in str(site.readiness().get("reasons")), "it waits")
                    site.endpoints("a2")
                    await site.serves("a2")
                    assert "table ip svcproxy" not in site.ruleset()
                    old.kill()
                    await eventually(lambda: bool(site.readiness().get("ready")), "it has taken over")
                    await eventually(lambda: "KUBE-SVC" not in site.ruleset(), "kube-proxy's chains are gone")
                    assert "table ip kube-proxy" not in site.ruleset()
                    site.endpoints("a1", "b2")
                    await site.serves("a1", "b2")
                assert await established.ask() == first
            new.kill()
            assert site.cleanup() == 0
            assert "svcproxy" not in site.ruleset()
            assert site.cleanup() == 0
            site.start(old)
            await site.serves("a1", "b2")
    finally:
        old.kill()
        new.kill()
