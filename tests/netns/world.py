# SPDX-License-Identifier: Apache-2.0
"""Two nodes, their pods and the world outside as network namespaces, with servers and clients in all of them.

Whatever data plane programs the namespace `n1` can be tried in it. n1 and n2 are on one network with `outside`, which
is the gateway of both, where X and Y live and which routes Service addresses, load-balancer and external IPs and all
addresses of n1 by way of n1. Each pod has a veth of its own and no neighbours, as with point-to-point CNI plug-ins.
"""

import asyncio
import itertools
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from svcproxy.model.meta import Family, Protocol
from tests.netns.namespaces import Namespace
from tests.netns.places import AT, Addresses
from tests.netns.probes import PATIENCE, Flow, Outcome, Server

PODS = {"p1": "n1", "a1": "n1", "a2": "n1", "b1": "n2", "b2": "n2"}
"""The node of each."""
PORTS = (8080, 9090)
"""That every pod serves, TCP and UDP, both families, under its name and under its name and the port."""
AT_ONCE = 200
"""Flows of `attempts` open at the same time."""
LOOKS_MAX = 2000
"""At 5 ms and more."""
_ROUTE_IS_LOCAL = 0x80000000
SOURCE_PORTS = (32768, 61000)
"""Of clients, one after the other: a new flow must not be taken for an old one."""
TRANSPORTS = (Protocol.TCP, Protocol.UDP)
_POD_GATEWAY = {Family.IPV4: "169.254.1.1", Family.IPV6: "fe80::1"}
_OUTSIDE = ("x", "y")


def server_name(pod: str, port: int) -> str:
    """What a pod calls itself on a port."""
    return pod if port == PORTS[0] else f"{pod}:{port}"


class World:
    """All namespaces, without any data plane. Servers run within `serving`."""

    def __init__(self) -> None:
        """Raises OSError without privileges."""
        self._ports = itertools.cycle(range(*SOURCE_PORTS))
        with ExitStack() as stack:
            self.n1, self.n2, self.outside = (stack.enter_context(Namespace()) for _ in range(3))
            self._nodes = {"n1": self.n1, "n2": self.n2}
            self.pods = {name: stack.enter_context(Namespace()) for name in PODS}
            self._connect()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, place: str) -> Namespace:
        """The one of a pod, of `x` or `y`, or of the processes of a node: `h1`, `h2`."""
        if place in _OUTSIDE:
            return self.outside
        return self.pods.get(place) or self._nodes[place.replace("h", "n")]

    def flow(self, place: str, protocol: Protocol, target: tuple[str, int], source: str = "", port: int = 0) -> Flow:
        """A flow of its own, which asks for nothing yet, from a port that none came from before."""
        at = AT[Family.IPV6 if ":" in target[0] else Family.IPV4]
        own = getattr(at, place) if place in _OUTSIDE else "::" if at.family is Family.IPV6 else "0.0.0.0"
        with self.namespace(place).entered():
            return Flow(protocol, target, (source or own, port or next(self._ports)))

    async def attempt(
        self, place: str, protocol: Protocol, target: tuple[str, int], patience: float = PATIENCE, source: str = ""
    ) -> Outcome:
        """What one new flow from a place meets."""
        with self.flow(place, protocol, target, source) as flow:
            return await flow.ask(patience)

    async def attempts(
        self, times: int, place: str, protocol: Protocol, target: tuple[str, int], patience: float = PATIENCE
    ) -> list[Outcome]:
        """What so many new flows meet, many at once."""
        met: list[Outcome] = []
        for first in range(0, times, AT_ONCE):
            together = min(AT_ONCE, times - first)
            met += await asyncio.gather(*(self.attempt(place, protocol, target, patience) for _ in range(together)))
        return met

    def server(self, place: str, name: str, protocol: Protocol, ip: str, port: int) -> Server:
        """A bound server that nobody runs yet."""
        with self.namespace(place).entered():
            return Server(name, protocol, ip, port)

    @asynccontextmanager
    async def serving(self, *more: Server) -> AsyncIterator[dict[str, list[Server]]]:
        """All pods and `more` serve. Gives the servers by name."""
        pods = [
            self.server(pod, server_name(pod, port), protocol, at.of_pods[pod], port)
            for pod in PODS
            for at in AT.values()
            for protocol in TRANSPORTS
            for port in PORTS
        ]
        async with self.running(*pods, *more) as servers:
            yield servers

    @asynccontextmanager
    async def running(self, *servers: Server) -> AsyncIterator[dict[str, list[Server]]]:
        """These serve. Gives them by name."""
        by_name: dict[str, list[Server]] = {}
        try:
            for server in servers:
                await server.start()
                by_name.setdefault(server.name, []).append(server)
            yield by_name
        finally:
            for server in servers:
                server.abort()
            await asyncio.sleep(0)  # transports close in the next turn

    def own(self, place: str, ip: str) -> None:
        """Make an address one of the namespace's own; never the source of its own accord."""
        device = "lo" if place in _OUTSIDE else "eth0"
        late = ("nodad", "preferred_lft", "0") if ":" in ip else ()
        self.namespace(place).ip("addr", "add", f"{ip}/{128 if ':' in ip else 32}", "dev", device, *late)
        _settle(self.namespace(place))

    def syn_retransmits(self) -> int:
        """SYNs that clients had to send again, wherever they are."""
        total = 0
        for namespace in self._namespaces:
            with namespace.entered():
                lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
            names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
            total += int(values[names.index("TCPSynRetrans")])
        return total

    @property
    def _namespaces(self) -> tuple[Namespace, ...]:
        return self.n1, self.n2, self.outside, *self.pods.values()

    # How it is connected

    def _connect(self) -> None:
        for router in (self.n1, self.n2, self.outside):
            router.forward()
        with self.outside.entered():
            Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")  # or the crowd could not be bound to
        self._batch(self.outside, ["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"])
        for name, node in self._nodes.items():
            self._veth(node, "eth0", self.outside, name)
        for pod, where in PODS.items():
            self._veth(self.pods[pod], "eth0", self._nodes[where], pod)
        self._batch(self.outside, self._outside())
        for name, node in self._nodes.items():
            self._batch(node, self._node(name))
        for pod in PODS:
            self._batch(self.pods[pod], self._pod(pod))
        for namespace in self._namespaces:
            _settle(namespace)

    def _veth(self, here: Namespace, name: str, there: Namespace, peer: str) -> None:
        target = f"/proc/{os.getpid()}/fd/{there.fd}"
        self._batch(here, [f"link add {name} type veth peer name {peer} netns {target}"])

    def _outside(self) -> Iterable[str]:
        yield "link set br0 up"
        for node in self._nodes:
            yield f"link set {node} master br0 up"
        for at in AT.values():
            yield from (f"addr add {ip}/{at.prefix_length} dev lo" for ip in (at.x, at.y))
            yield f"addr add {at.gateway}/{_length(at.nodes)} dev br0 {_nodad(at)}"
            for network in (at.services, at.second, at.vip, at.external_ip, at.pods_n1):
                yield f"route add {network} via {at.n1}"
            yield f"route add local {at.crowd} dev lo"
            yield f"route add {at.pods_n2} via {at.n2}"

    def _node(self, node: str) -> Iterable[str]:
        yield "link set eth0 up"
        other = {"n1": "n2", "n2": "n1"}[node]
        pods = [pod for pod, where in PODS.items() if where == node]
        for pod in pods:
            yield f"link set {pod} addrgenmode none up"
        for at in AT.values():
            four = at.family is Family.IPV4
            own = getattr(at, node)
            yield f"addr add {own}/{_length(at.nodes)} dev eth0 {_nodad(at)}"
            yield f"route add default via {at.gateway} src {own}"
            yield f"route add {getattr(at, f'pods_{other}')} via {getattr(at, other)} src {own}"
            for pod in pods:
                gateway = f"{_POD_GATEWAY[at.family]}/32 scope link" if four else f"{_POD_GATEWAY[at.family]}/64 nodad"
                yield f"addr add {gateway} dev {pod}"
                yield f"route add {at.of_pods[pod]} dev {pod} src {own}"
            if node == "n1":  # never a source of its own accord
                yield f"addr add {at.second}/{at.prefix_length} dev eth0 {'' if four else 'nodad preferred_lft 0'}"

    def _pod(self, pod: str) -> Iterable[str]:
        yield "link set eth0 up"
        for at in AT.values():
            gateway = _POD_GATEWAY[at.family]
            yield f"addr add {at.of_pods[pod]}/{at.prefix_length} dev eth0 {_nodad(at)}"
            if at.family is Family.IPV4:
                yield f"route add {gateway} dev eth0 scope link"
            yield f"route add default via {gateway} dev eth0"

    def _batch(self, namespace: Namespace, commands: Iterable[str]) -> None:
        namespace.run("ip", "-batch", "-", text="\n".join(commands) + "\n")


def _settle(namespace: Namespace) -> None:
    """The kernel makes links and IPv6 addresses ready some time after they are there; until then packets get lost."""
    with namespace.entered():
        for _ in range(LOOKS_MAX):
            if not _unready():
                return
            time.sleep(0.005)
    raise TimeoutError(f"not ready: {_unready()}")


def _unready() -> list[str]:
    """Links that are up and have no queue, and IPv6 addresses that packets are not accepted for."""
    listing = subprocess.run(["ip", "-json", "link", "show", "up"], check=True, stdout=subprocess.PIPE).stdout
    links = [link["ifname"] for link in json.loads(listing) if link["qdisc"] == "noop"]
    net = Path("/proc/thread-self/net")
    addresses = {line.split()[0] for line in (net / "if_inet6").read_text().splitlines()}
    routes = [line.split() for line in (net / "ipv6_route").read_text().splitlines()]
    return links + sorted(addresses - {route[0] for route in routes if int(route[8], 16) & _ROUTE_IS_LOCAL})


def _length(cidr: str) -> str:
    return cidr.partition("/")[2]


def _nodad(at: Addresses) -> str:
    return "nodad" if at.family is Family.IPV6 else ""
