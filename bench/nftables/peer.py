# SPDX-License-Identifier: Apache-2.0
"""The agent with its nftables data plane next to kube-proxy v1.37.2 (mode nftables), both on one real API server.

    sudo PYTHONPATH=. .venv/bin/python bench/nftables/peer.py [--services 10000] [--endpoints 4] [--changes 100]

Each follower is in a network namespace of its own, with a client and a server around it, and reaches the API server in
a third one. Both see the same changes at the same time. A change is active when nf_tables notifies of a commit that has
the new endpoint's address, heard by the bench in either namespace.
"""

import argparse
import asyncio
import json
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from bench.agent.bench import (
    SERVICES,
    SLICES,
    cpu,
    kube_proxy,
    kube_proxy_synced,
    populate,
    process,
    rss,
    slice_of,
    status,
    svcproxy,
    wait,
)
from bench.nftables.flows import PORT, SERVER_IP, Cost, Flows
from bench.nftables.plane import percentile, slab_kib
from bench.nftables.traffic import CONNECTIONS, MIB, report
from svcproxy.testing.control_plane import ControlPlane
from tests.netns.namespaces import Namespace

NODE = "bench"
HUB = "10.1.1.1"
"""Where the API server listens."""
VIP = "10.97.254.254"
POD_CIDR = "10.128.0.0/24"
"""Of the node: of all backends, those here may be the client itself."""
NEW_PODS = 200
"""Second octet of the addresses of changed endpoints."""
IDLE_SECONDS = 10.0
"""In which nothing changes, to know what a process does anyway."""


@dataclass
class Follower:
    """One that follows the API server and programs its namespace."""

    name: str
    node: Namespace
    flows: Flows
    command: Callable[[], list[str]]
    ready: Callable[[], bool]
    directory: Path
    heard: dict[bytes, float] = field(default_factory=dict)
    """When an address was first in a notification."""

    @contextmanager
    def running(self) -> Iterator[Popen[bytes]]:
        with self.node.entered(), process(*self.command(), log=self.directory / f"{self.name}.log") as child:
            yield child

    @contextmanager
    def listening(self, awaited: list[bytes]) -> Iterator[None]:
        """Note when addresses of `awaited`, which grows, are first heard of."""
        with self.node.entered():
            heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        heard.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
        heard.bind((0, 0))
        heard.setsockopt(270, 1, 7)  # NETLINK_ADD_MEMBERSHIP of NFNLGRP_NFTABLES
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                if not select.select([heard], [], [], 0.1)[0]:
                    continue
                try:
                    datagram = heard.recv(1 << 20)
                except OSError:
                    continue
                now = time.perf_counter()
                for packed in awaited:
                    if packed not in self.heard and packed in datagram:
                        self.heard[packed] = now

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            heard.close()


def agent_command(directory: Path, plane: ControlPlane) -> list[str]:
    command = svcproxy(directory, plane, "agent")
    config = directory / "config.yaml"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"dataplane": {"mode": "nftables"}}))
    return command


def cold(follower: Follower, base: Path) -> None:
    shutil.rmtree(base / "state", ignore_errors=True)
    follower.node.run("nft", "flush", "ruleset")
    slab = slab_kib()
    with follower.running() as child:
        started = time.monotonic()
        with follower.node.entered():
            wait(follower.ready, child)
        seconds = time.monotonic() - started
        print(
            f"  {follower.name:<11} {cpu(child.pid):7.2f} s CPU, ready after {seconds:6.2f} s, "
            f"RSS {rss(child.pid):4.0f} MiB, kernel slab {(slab_kib() - slab) / 1024:4.0f} MiB",
            flush=True,
        )


def change(plane: ControlPlane, followers: list[tuple[Follower, Popen[bytes]]], options: argparse.Namespace) -> None:
    awaited: list[bytes] = []
    acknowledged: dict[bytes, float] = {}
    with ExitStack() as stack:
        for follower, _ in followers:
            stack.enter_context(follower.listening(awaited))
        resting = [cpu(child.pid) for _, child in followers]
        time.sleep(IDLE_SECONDS)
        before = [cpu(child.pid) for _, child in followers]
        began = time.monotonic()
        for index in range(options.changes):
            number = index * 7919 % options.services
            body = slice_of(number, options.endpoints, 0)
            ip = f"10.{NEW_PODS}.{index >> 8}.{index & 255}"
            body["endpoints"][0]["addresses"] = [ip]
            packed = socket.inet_aton(ip)
            awaited.append(packed)
            plane.request("PUT", f"{SLICES}/s{number}-1", json.dumps(body).encode())
            acknowledged[packed] = time.perf_counter()
            time.sleep(options.gap)
        time.sleep(5)
        lasted = time.monotonic() - began
        after = [cpu(child.pid) for _, child in followers]
    for (follower, child), idle, used_before, used_after in zip(followers, resting, before, after, strict=True):
        late = [(follower.heard[each] - at) * 1000 for each, at in acknowledged.items() if each in follower.heard]
        used = (used_after - used_before) / options.changes * 1000
        anyway = (used_before - idle) / IDLE_SECONDS
        own = used - anyway * lasted / options.changes * 1000
        times = f"p50 {percentile(late, 0.5):7.2f} ms, p99 {percentile(late, 0.99):7.2f} ms" if late else "never"
        print(
            f"  {follower.name:<11} write acknowledged to rule active {times} ({len(late)} of {options.changes}); "
            f"{used:6.2f} ms CPU a change, {own:.2f} ms without {anyway * 1000:.1f} ms/s at rest, "
            f"RSS {rss(child.pid):4.0f} MiB",
            flush=True,
        )


def traffic(followers: list[Follower], rounds: int) -> None:
    targets = [("direct", SERVER_IP, PORT), ("ClusterIP", VIP, 80)]
    connections: dict[str, list[Cost]] = {}
    octets: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, ip, port in targets:
            for follower in followers:
                where = f"{follower.name} {name}"
                connections.setdefault(where, []).append(follower.flows.connect(ip, port, CONNECTIONS))
                octets.setdefault(where, []).append(follower.flows.send(ip, port, MIB))
    report(connections, octets)


def echo(plane: ControlPlane) -> None:
    """The Service of the traffic."""
    spec = {"clusterIP": VIP, "ports": [{"name": "http", "port": 80, "targetPort": PORT}]}
    plane.call("POST", SERVICES, {"metadata": {"name": "echo"}, "spec": spec})
    body = slice_of(0, 1)
    body["metadata"] = {"name": "echo-1", "labels": {"kubernetes.io/service-name": "echo"}}
    body["ports"] = [{"name": "http", "port": PORT, "protocol": "TCP"}]
    body["endpoints"][0]["addresses"] = [SERVER_IP]
    plane.call("POST", SLICES, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=4)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.3, help="seconds between two changes")
    parser.add_argument("--no-peer", action="store_true", help="svcproxy alone")
    options = parser.parse_args()
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub, agent_node, peer_node = (stack.enter_context(Namespace()) for _ in range(3))
        hub.forward()
        hub.connect(agent_node, "agent", 1)
        hub.connect(peer_node, "peer", 2)
        stack.enter_context(hub.entered())
        plane = stack.enter_context(ControlPlane(host=HUB))
        spec = {"podCIDR": POD_CIDR, "podCIDRs": [POD_CIDR]}
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}, "spec": spec})
        plane.request(
            "PATCH",
            f"/api/v1/nodes/{NODE}/status",
            {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
            content_type="application/merge-patch+json",
        )
        started = time.monotonic()
        asyncio.run(populate(plane, options.services, options.endpoints))
        echo(plane)
        print(
            f"{options.services} Services × {options.endpoints} endpoints, made in {time.monotonic() - started:.0f} s"
        )
        agent = Follower(
            "svcproxy",
            agent_node,
            stack.enter_context(Flows(agent_node)),
            lambda: agent_command(base, plane),
            lambda: bool(status(base).get("readiness", {}).get("ready")),
            base,
        )
        peer = Follower(
            "kube-proxy",
            peer_node,
            stack.enter_context(Flows(peer_node)),
            lambda: kube_proxy(plane),
            kube_proxy_synced,
            base,
        )
        print("cold: process start to ready", flush=True)
        for _ in range(options.rounds):
            for each in (agent,) if options.no_peer else (agent, peer):
                cold(each, base)
        running = []
        for each in (agent,) if options.no_peer else (agent, peer):
            child = stack.enter_context(each.running())
            with each.node.entered():
                wait(each.ready, child)
            running.append((each, child))
        time.sleep(3)
        print(f"{options.changes} changes of one endpoint, {options.gap} s apart", flush=True)
        change(plane, running, options)
        if not options.no_peer:
            print("traffic through the node", flush=True)
            traffic([agent, peer], options.rounds + 2)


if __name__ == "__main__":
    main()
