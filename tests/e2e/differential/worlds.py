# SPDX-License-Identifier: Apache-2.0
"""Two worlds that are alike, one's n1 programmed by kube-proxy, the other's by svcproxy, both from one API server.

The API server is in a network namespace of its own that both nodes reach. What n1 lets out although it is for an
address of a Service is caught outside and answered by `leak`, except for clients outside, which see silence.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from svcproxy.model.meta import Family, Protocol
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane, Process
from tests.e2e.differential.cluster import ENDPOINTS, SERVICES, SLICES, RandomCluster, address
from tests.e2e.differential.tries import CROWD, LEAK, Try
from tests.e2e.objects import Object, Objects
from tests.netns.namespaces import Namespace
from tests.netns.places import AT
from tests.netns.probes import TIMEOUT, Outcome, Served, Server
from tests.netns.world import PORTS, TRANSPORTS, World, server_name

API_ADDRESS: Final = "172.31.0.1"
CONVERGENCE: Final = 60.0
"""Seconds that either side may take for a batch of changes; both take far less."""
AT_ONCE: Final = 400
"""Flows at a time in each world."""
CROWD_SIZE: Final = 250
UDP_TIMEOUT: Final = 15
"""Seconds until the kernel forgets a flow: longer than any client waits, shorter than until source ports come again."""
LEAK_PORT: Final = 7
LEAKING: Final = {Family.IPV4: ("10.96.0.0/16", "198.51.100.0/24"), Family.IPV6: ("fd00:96::/112", "fd00:51::/64")}
LEAKS: Final = f"""
table {{ip}} leaks {{{{
  chain filter {{{{
    type filter hook prerouting priority -110
    iif br0 {{ip}} saddr {{{{ {{clients}} }}}} {{ip}} daddr {{{{ {{networks}} }}}} drop
  }}}}
  chain nat {{{{
    type nat hook prerouting priority -100
    iif br0 {{ip}} daddr {{{{ {{networks}} }}}} meta l4proto {{{{ tcp, udp }}}} redirect to :{LEAK_PORT}
  }}}}
}}}}
"""
_MARKER_IPS: Final = {Family.IPV4: "10.96.0.40", Family.IPV6: "fd00:96::40"}
_MARKER_TRIES: Final = 12
_NODE: Final = "/api/v1/nodes/n1"
_ALL_ZONES: Final = ("z1", "z2", "z3")


@dataclass(slots=True)
class Side:
    """A world and who programs it."""

    name: str
    world: World
    process: Process
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def check(self) -> None:
        """Fails with its log if the process has ended."""
        assert self.process.popen is not None
        assert self.process.popen.poll() is None, f"{self.name} ended: {self.process.tail()}"

    async def meet(self, attempt: Try, rng: Random, times: int, patience: float) -> frozenset[Outcome]:
        """What so many flows meet, all at once, but the first one of a client with affinity."""
        first = [await self._one(attempt, rng, patience)] if attempt.sticky else []
        async with asyncio.TaskGroup() as group:
            rest = [
                group.create_task(self._one(attempt, rng, patience), name=str(attempt))
                for _ in range(times - len(first))
            ]
        return frozenset([*first, *(task.result() for task in rest)])

    async def _one(self, attempt: Try, rng: Random, patience: float) -> Outcome:
        async with self.slots:
            place, source = attempt.place, ""
            if place == CROWD:
                at = AT[Family.IPV6 if ":" in attempt.target[0] else Family.IPV4]
                place, source = "x", at.client(rng.randint(1, CROWD_SIZE))
            outcome = await self.world.attempt(place, attempt.protocol, attempt.target, patience, source)
            if source and isinstance(outcome, Served) and outcome.source == source:
                return replace(outcome, source=CROWD)
            return outcome


class Worlds:
    """Both sides, and the API that they follow."""

    def __init__(self, plane: ControlPlane, control: Namespace, sides: tuple[Side, Side]) -> None:
        self._objects = Objects(plane)
        self._control = control
        self.sides = sides
        self._round = 0
        with control.entered():
            plane.call("POST", "/api/v1/nodes", node("n1"))
            addresses = [{"type": "InternalIP", "address": at.n1} for at in AT.values()]
            self._objects.patch(f"{_NODE}/status", {"status": {"addresses": addresses}})

    async def bring(self, cluster: RandomCluster) -> None:
        """Make the API have these objects, and return when both sides have programmed them."""
        wanted = {f"{SERVICES}/{name}": each for name, each in cluster.services.items()}
        wanted |= {f"{SLICES}/{name}": each for name, each in cluster.slices.items()}
        self._round += 1
        with self._control.entered():
            self._objects.bring(wanted)
            self._objects.patch(_NODE, {"metadata": {"labels": {"topology.kubernetes.io/zone": cluster.zone}}})
            self._objects.bring(wanted | _marker(self._round, cluster.zone))
        async with asyncio.TaskGroup() as group:
            for side in self.sides:
                group.create_task(self._marked(side, cluster.zone), name=side.name)

    async def _marked(self, side: Side, zone: str | None) -> None:
        """Return once traffic tells that the side knows the marker's Service, its slices, and n1's zone."""
        expected = {server_name("a1", PORTS[self._round % 2])} | ({"b1"} if zone is None else set())
        deadline = time.monotonic() + CONVERGENCE
        for family, ip in _MARKER_IPS.items():
            at = AT[family]
            wanted = frozenset[Outcome](Served(by, at.p1) for by in expected)
            await self._met(side, (ip, 1000 + self._round), wanted, deadline)
            if self._round == 1:  # the ServiceCIDR is known
                await self._met(side, (at.unused_cluster_ip, 80), frozenset({TIMEOUT}), deadline)

    async def _met(self, side: Side, target: tuple[str, int], wanted: frozenset[Outcome], deadline: float) -> None:
        """Return once new flows from p1 meet what is wanted, all of it."""
        while (met := frozenset(await side.world.attempts(_MARKER_TRIES, "p1", Protocol.TCP, target, 2.0))) != wanted:
            side.check()
            assert time.monotonic() < deadline, f"{side.name} does not follow: {met} in place of {wanted}"
            await asyncio.sleep(0.05)


def _marker(number: int, zone: str | None) -> dict[str, Object]:
    """A Service that tells by its port and backends, seen from n1, whether all three kinds of objects are known."""
    port = {"name": "m", "port": 1000 + number, "protocol": "TCP"}
    families = [family.label for family in Family]
    spec = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": families, "clusterIPs": list(_MARKER_IPS.values())}
    objects: dict[str, Object] = {
        f"{SERVICES}/marker": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "marker", "namespace": "default"},
            "spec": {**spec, "clusterIP": spec["clusterIPs"][0], "ports": [port]},
        }
    }
    here = [zone] if zone is not None else ["z1", "z2"]
    for family in Family:
        for place, zones, target in (("a1", here, PORTS[number % 2]), ("b1", set(_ALL_ZONES) - set(here), PORTS[0])):
            name = f"marker-{place}-{family.label.lower()}"
            objects[f"{SLICES}/{name}"] = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "marker"}},
                "addressType": family.label,
                "ports": [{"name": "m", "port": target, "protocol": "TCP"}],
                "endpoints": [
                    {
                        "addresses": [address(place, family)],
                        "conditions": {"ready": True},
                        "hints": {"forZones": [{"name": each} for each in sorted(zones)]},
                    }
                ],
            }
    return objects


def node(name: str) -> Object:
    """The Node."""
    cidrs = [at.pods_n1 for at in AT.values()]
    return {"metadata": {"name": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}


@asynccontextmanager
async def two_worlds(directory: Path) -> AsyncIterator[Worlds]:
    """Everything runs and serves, without objects."""
    with ExitStack() as stack:
        control = stack.enter_context(Namespace())
        bridge(control)
        worlds = [stack.enter_context(World()) for _ in range(2)]
        for number, world in enumerate(worlds):
            _prepare(world)
            attach(world.n1, control, number)
        with control.entered():
            flags = [f"--service-cluster-ip-range={LEAKING[Family.IPV4][0]},{LEAKING[Family.IPV6][0]}"]
            plane = stack.enter_context(ControlPlane(host=API_ADDRESS, flags=flags))
            commands = {"kube-proxy": kube_proxy(directory, plane), "svcproxy": svcproxy(directory, plane)}
        sides = []
        for (name, command), world in zip(commands.items(), worlds, strict=True):
            sides.append(Side(name, world, Process(name, command, directory / f"{name}.log")))
        both = Worlds(plane, control, (sides[0], sides[1]))
        for side in sides:
            stack.enter_context(_running(side))
        async with _serving(worlds[0]), _serving(worlds[1]):
            yield both


def bridge(control: Namespace) -> None:
    """The network that nodes reach the API server by."""
    control.run(
        "ip", "-batch", "-", text=f"link add br0 type bridge\nlink set br0 up\naddr add {API_ADDRESS}/24 dev br0\n"
    )


@contextmanager
def _running(side: Side) -> Iterator[None]:
    with side.world.n1.entered():
        side.process.start()
    try:
        yield
    finally:
        side.process.kill()


@asynccontextmanager
async def _serving(world: World) -> AsyncIterator[None]:
    """Pods, processes of nodes, the server outside, and what catches leaks."""
    more: list[Server] = []
    for family, at in AT.items():
        for protocol in TRANSPORTS:
            more.append(world.server("x", LEAK, protocol, at.gateway, LEAK_PORT))
            for place in sorted(set(ENDPOINTS) - set(world.pods)):
                for port in PORTS:
                    name = server_name(place, port)
                    more.append(world.server(place, name, protocol, address(place, family), port))
    async with world.serving(*more):
        yield


def _prepare(world: World) -> None:
    """Routes for all addresses of Services, leaks that are caught, no limit to refusals."""
    for namespace in (world.n1, world.n2, world.outside, *world.pods.values()):
        with namespace.entered():
            Path("/proc/sys/net/ipv4/icmp_ratemask").write_text("0")
            Path("/proc/sys/net/ipv6/icmp/ratemask").write_text("0")
            Path("/proc/sys/net/ipv6/icmp/ratelimit").write_text("0")
            for name in ("udp_timeout", "udp_timeout_stream"):
                Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(str(UDP_TIMEOUT))
    rules = []
    for family, at in AT.items():
        ip = "ip" if family is Family.IPV4 else "ip6"
        for network in LEAKING[family]:
            world.outside.ip("route", "replace", network, "via", at.n1)
            world.n2.ip("route", "add", network, "via", at.n1, "src", at.n2)
        world.n2.ip("route", "add", at.second, "via", at.n1, "src", at.n2)
        rules.append(LEAKS.format(ip=ip, networks=", ".join(LEAKING[family]), clients=f"{at.x}, {at.y}, {at.crowd}"))
    world.outside.run("nft", "-f", "-", text="".join(rules))


def attach(n1: Namespace, control: Namespace, number: int) -> None:
    """Let a node reach the API server."""
    peer = f"/proc/{os.getpid()}/fd/{control.fd}"
    n1.ip("link", "add", "api", "type", "veth", "peer", "name", f"n1-{number}", "netns", peer)
    control.ip("link", "set", f"n1-{number}", "master", "br0", "up")
    n1.ip("link", "set", "api", "addrgenmode", "none", "up")
    n1.ip("addr", "add", f"172.31.0.{2 + number}/24", "dev", "api")


def kube_proxy(directory: Path, plane: ControlPlane, mode: str = "nftables") -> list[str]:
    """The command of a kube-proxy on n1 that follows a control plane."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": "n1",
        "clientConnection": {"kubeconfig": str(plane.kubeconfig())},
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": ",".join(at.pods for at in AT.values()),
        "nftables": {"minSyncPeriod": "100ms"},
        "iptables": {"minSyncPeriod": "100ms"},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }
    path = directory / "kube-proxy.json"
    path.write_text(json.dumps(config))
    return [str(binaries.find("kube-proxy")), f"--config={path}"]


def svcproxy(directory: Path, plane: ControlPlane) -> list[str]:
    """The command of an agent on n1 that follows a control plane; its directories are in `directory`."""
    config = {
        "node_name": "n1",
        "run_dir": str(directory / "run"),
        "state_dir": str(directory / "state"),
        "kube": {"kubeconfig": str(plane.kubeconfig())},
        "dataplane": {
            "mode": "nftables",
            "detect_local_mode": "ClusterCIDR",
            "cluster_cidrs": [at.pods for at in AT.values()],
        },
        "admin": {"health_listen": None, "metrics_listen": None},
    }
    path = directory / "svcproxy.json"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "svcproxy", "agent", "--config", str(path)]
