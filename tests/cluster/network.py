# SPDX-License-Identifier: Apache-2.0
"""The network of a cluster: a bridge, and hosts on it, each in a network namespace that goes with its last process."""

import os
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.plan import CONTROL_PLANE, GATEWAY, OUTSIDE, NodePlan
from tests.netns.namespaces import Namespace

PREFIXES = (24, 64)


class Network:
    """All namespaces of a cluster. Closed by `close`; what runs in them keeps them until it ends."""

    def __init__(self, nodes: Sequence[NodePlan]) -> None:
        self._nodes = nodes
        self.bridge = _router()
        self.bridge.ip("link", "add", "br0", "type", "bridge")
        for address, prefix in zip(GATEWAY, PREFIXES, strict=True):
            self.bridge.ip("addr", "add", f"{address}/{prefix}", "dev", "br0")
        self.bridge.ip("link", "set", "br0", "up")
        self._route_pods(self.bridge, but=None)
        self.control_plane = self._host("cp", CONTROL_PLANE)
        self.outside = self._host("outside", OUTSIDE)
        self.nodes = {node.name: self._host(node.name, node.addresses, node) for node in nodes}

    def _host(self, link: str, addresses: Sequence[str], node: NodePlan | None = None) -> Namespace:
        host = _router()
        there = f"/proc/{os.getpid()}/fd/{host.fd}"
        self.bridge.ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", there)
        self.bridge.ip("link", "set", link, "master", "br0", "up")
        host.ip("link", "set", "eth0", "up")
        for address, prefix, gateway in zip(addresses, PREFIXES, GATEWAY, strict=True):
            host.ip("addr", "add", f"{address}/{prefix}", "dev", "eth0")
            host.ip("route", "add", "default", "via", gateway)
        if link != "outside":  # it goes through the bridge
            self._route_pods(host, but=node)
        return host

    def _route_pods(self, host: Namespace, but: NodePlan | None) -> None:
        for node in self._nodes:
            if node != but:
                for cidr, address in zip(node.pod_cidrs, node.addresses, strict=True):
                    host.ip("route", "add", cidr, "via", address)

    def close(self) -> None:
        """Let go of the namespaces."""
        for namespace in (self.bridge, self.control_plane, self.outside, *self.nodes.values()):
            os.close(namespace.fd)


def _router() -> Namespace:
    namespace = Namespace()
    namespace.forward()
    with namespace.entered():
        Path("/proc/sys/net/ipv6/conf/all/accept_dad").write_text("0")
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    return namespace
