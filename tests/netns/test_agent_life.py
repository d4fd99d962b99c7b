# SPDX-License-Identifier: Apache-2.0
"""The agent's process comes, goes, is killed and replaced on a node under load: new connections never notice."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.model.meta import Family, Protocol
from tests.e2e.harness import AgentProcess, eventually
from tests.netns.places import AT
from tests.netns.probes import Served
from tests.netns.steady import more, steady
from tests.netns.world import World

pytestmark = pytest.mark.netns

ATTEMPTS = 20
"""In which each of a few endpoints shows."""
IPV4 = AT[Family.IPV4]
TARGET = (IPV4.cluster_ip, 80)
CLIENTS = {"p1": TARGET, "x": TARGET}


def manifests(directory: Path, *pods: str) -> None:
    """One Service with these endpoints, as files of a kind that a program may write: replaced by rename."""
    meta = {"name": "web", "namespace": "shop"}
    documents = [
        {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": meta,
            "spec": {"clusterIP": IPV4.cluster_ip, "clusterIPs": [IPV4.cluster_ip], "ports": [{"port": 80}]},
        },
        {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {**meta, "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [IPV4.of_pods[pod]]} for pod in pods],
            "ports": [{"name": "", "port": 8080}],
        },
    ]
    (directory / ".new").write_text("\n---\n".join(map(json.dumps, documents)))
    (directory / ".new").rename(directory / "web.yaml")


class Node:
    """n1 with a manifest directory and agents on it."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.objects = directory / "objects"
        self.objects.mkdir()
        self._directory = directory
        self._agents: list[AgentProcess] = []
        # Who is no pod is masqueraded, so that replies from the other node come back this way.
        dataplane = {"mode": "nftables", "cluster_cidrs": [IPV4.pods]}
        config = {"dataplane": dataplane, "admin": {"health_listen": None, "metrics_listen": None}}
        (directory / "config.yaml").write_text(json.dumps(config))

    async def agent(self, instance: str = "", *, ready: bool = True) -> AgentProcess:
        """One more agent process, started and by default ready."""
        agent = AgentProcess(self._directory, "--manifests", str(self.objects), instance=instance)
        self._agents.append(agent)
        with self.world.n1.entered():
            agent.start()
        if ready:
            await agent.ready()
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.kill()

    async def serves(self, *pods: str) -> None:
        """Return once new connections reach these pods and no others."""
        while True:
            met = await self.world.attempts(ATTEMPTS, "p1", Protocol.TCP, TARGET)
            if set(met) == {Served(pod, IPV4.p1) for pod in pods}:
                return


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def node(world: World, tmp_path: Path) -> Iterator[Node]:
    made = Node(world, tmp_path)
    manifests(made.objects, "a1", "b1")
    try:
        yield made
    finally:
        made.close()


def programming(agent: AgentProcess) -> dict[str, int]:
    """The counters of what programming took, by name."""
    lines = agent.api().ask("/metrics").body.decode().splitlines()
    prefix = "svcproxy_nftables_"
    rows = (line.removeprefix(prefix).split() for line in lines if line.startswith(prefix))
    return {name.removesuffix("_total"): int(float(value)) for name, value in rows}


async def test_case_45_t39_killed_and_started_again(node: Node) -> None:
    async with node.world.serving():
        agent = await node.agent()
        async with steady(node.world, CLIENTS) as met:
            await more(met)
            agent.kill()
            await more(met, 20)
            again = await node.agent()
            assert programming(again)["operations"] == 0
            manifests(node.objects, "a2")
            await node.serves("a2")
        assert programming(again)["rejections"] == 0


async def test_t40_endpoints_changed_while_it_was_down(node: Node) -> None:
    async with node.world.serving():
        agent = await node.agent()
        async with steady(node.world, CLIENTS):
            agent.kill()
            manifests(node.objects, "a2", "b2", "b1")
            await node.serves("a1", "b1")
            await node.agent()
            await node.serves("a2", "b2", "b1")


async def test_a_new_version_takes_over_under_load(node: Node) -> None:
    async with node.world.serving():
        old = await node.agent("old")
        async with steady(node.world, CLIENTS):
            new = await node.agent("new")
            await eventually(lambda: bool(old.readiness().get("waiting")), "the old one stands by")
            assert programming(new)["operations"] == 0
            manifests(node.objects, "a2")
            await node.serves("a2")
            new.kill()
            await old.ready()
            manifests(node.objects, "a1", "b2")
            await node.serves("a1", "b2")
            assert old.stop() == 0
            await node.serves("a1", "b2")
