# SPDX-License-Identifier: Apache-2.0
"""Two nodes, their pods and one Service, with short words for what tests say about them.

n1 (192.0.2.11, zone z1) is the node under test, n2 (zone z2) another one. p1 is a pod on n1, h1 a process on n1 itself,
X a client outside. Endpoints a… are on n1, b… on n2.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from svcproxy.frontends.builder import FrontendBuilder, Update
from svcproxy.frontends.decision import admits, decide, lookup, source_kind
from svcproxy.frontends.keys import Refusal
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.table import FrontendTable
from svcproxy.model import Changes, Endpoint, EndpointSlice, NamespacedName, Service, Store, Touched
from svcproxy.model.meta import Protocol

LOOPBACK = frozenset({"127.0.0.1", "::1"})
N1 = NodeView("n1", "z1", LOOPBACK | {"192.0.2.11", "2001:db8::11"}, ("192.0.2.11", "2001:db8::11"))
POD_CIDRS = ("10.244.0.0/16", "fd00:244::/64")

P1, H1, X, Y = "10.244.1.9", "192.0.2.11", "203.0.113.5", "198.18.0.1"
VIP, CLUSTER_IP, NODE_PORT = "198.51.100.7", "10.96.0.50", 30080

A1, A2, B1 = "10.244.1.1:8080", "10.244.1.2:8080", "10.244.2.1:8080"

FILTERED = "filtered"
REJECT, DROP = Refusal.REJECT, Refusal.DROP


def service(
    name: str = "s",
    *,
    namespace: str = "ns",
    created: str | None = "2026-01-01T00:00:00Z",
    labels: dict[str, str] | None = None,
    ingress: Iterable[dict[str, str]] = (),
    **spec: Any,
) -> Service:
    """A Service on 10.96.0.50:80; `spec` as in YAML."""
    if spec.get("clusterIP") is None:
        spec["clusterIP"] = CLUSTER_IP
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    spec.setdefault("ipFamilies", ["IPv6" if ":" in ip else "IPv4" for ip in spec["clusterIPs"]])
    spec.setdefault("ports", [{"name": "http", "port": 80}])
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created, "labels": labels},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": list(ingress)}},
        },
        Service,
    )


def load_balancer(name: str = "s", **spec: Any) -> Service:
    """A Service of type LoadBalancer with NodePort 30080 and VIP 198.51.100.7."""
    spec.setdefault("ports", [{"name": "http", "port": 80, "nodePort": NODE_PORT}])
    spec.setdefault("ingress", [{"ip": VIP}])
    return service(name, type="LoadBalancer", **spec)


def ready(ip: str, node: str | None = None, *, zones: Iterable[str] = (), nodes: Iterable[str] = ()) -> Endpoint:
    """A ready endpoint; on n1 or n2 by its address unless `node` says otherwise."""
    return endpoint(ip, node, ready=True, serving=True, terminating=False, zones=zones, nodes=nodes)


def draining(ip: str, node: str | None = None, *, zones: Iterable[str] = (), nodes: Iterable[str] = ()) -> Endpoint:
    """An endpoint that is serving and terminating."""
    return endpoint(ip, node, ready=False, serving=True, terminating=True, zones=zones, nodes=nodes)


def endpoint(
    ip: str,
    node: str | None = None,
    *,
    ready: bool | None = None,
    serving: bool | None = None,
    terminating: bool | None = None,
    zones: Iterable[str] = (),
    nodes: Iterable[str] = (),
) -> Endpoint:
    """An endpoint with these conditions; absent ones are null."""
    if node is None:
        node = "n1" if ip.startswith(("10.244.1.", "fd00:244::1:")) else "n2"
    return msgspec.convert(
        {
            "addresses": [ip],
            "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "hints": {"forZones": [{"name": z} for z in zones], "forNodes": [{"name": n} for n in nodes]},
        },
        Endpoint,
    )


def slice_of(
    *endpoints: Endpoint,
    name: str = "s-1",
    of: str | None = "s",
    namespace: str = "ns",
    port: int | None = 8080,
    ports: list[dict[str, Any]] | None = None,
    family: str = "IPv4",
    trigger: str | None = None,
) -> EndpointSlice:
    """A slice of Service `of`, whose port http is `port`."""
    piece = msgspec.convert(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": of} if of is not None else None,
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger},
            },
            "addressType": family,
            "ports": [{"name": "http", "port": port}] if ports is None else ports,
        },
        EndpointSlice,
    )
    return msgspec.structs.replace(piece, endpoints=endpoints)


class World:
    """A store, a builder that follows it, and a data plane that only knows the deltas."""

    def __init__(
        self, *objects: Service | EndpointSlice, node: NodeView = N1, options: FrontendOptions | None = None
    ) -> None:
        self.store = Store()
        self.node = node
        self.options = options or FrontendOptions()
        self.builder = FrontendBuilder(self.store, node, self.options)
        self.mirror = FrontendTable()
        self.apply(*objects)

    @property
    def table(self) -> FrontendTable:
        return self.builder.table

    def apply(self, *objects: Service | EndpointSlice) -> Update:
        """Objects appear or change, all at once."""
        touched = self.store.apply(Changes.of(Service, [o for o in objects if isinstance(o, Service)]))
        slices = Changes.of(EndpointSlice, [o for o in objects if isinstance(o, EndpointSlice)])
        touched.slices += self.store.apply(slices).slices
        return self.take(touched)

    def remove(self, kind: type[Service | EndpointSlice], name: str, namespace: str = "ns") -> Update:
        """An object goes."""
        return self.take(self.store.apply(Changes(kind, (), (NamespacedName(namespace, name),))))

    def take(self, touched: Touched) -> Update:
        """The builder takes in what the store has applied."""
        return self.check(self.builder.update(touched))

    def move(self, node: NodeView) -> Update:
        """The node changes."""
        self.node = node
        return self.check(self.builder.node_changed(node))

    def check(self, update: Update) -> Update:
        """The delta leads from the old table to the new one, and says nothing in vain."""
        for frontend in update.delta.frontends:
            assert self.mirror.frontends.get(frontend.key) != frontend
        assert set(update.delta.removed) <= set(self.mirror.frontends)
        for change in update.delta.backends:
            held = self.mirror.backends.get(change.key, set())
            assert change.added or change.removed
            assert set(change.removed) <= held
            assert not set(change.added) & held
            assert len(set(change.added)) == len(change.added)
            assert len(set(change.removed)) == len(change.removed)
        assert len({change.key for change in update.delta.backends}) == len(update.delta.backends)
        self.mirror.apply(update.delta)
        assert self.mirror == self.table
        return update

    def meets(
        self, source: str, ip: str, port: int = 80, protocol: Protocol = Protocol.TCP
    ) -> set[str] | Refusal | str | None:
        """What a packet meets: the backends it may reach, a refusal, FILTERED, or None where nothing intercepts it."""
        frontend = lookup(self.table, ip, protocol, port)
        if frontend is None:
            return None
        if not admits(frontend, source):
            return FILTERED
        decision = decide(self.table, frontend, source_kind(source, self.node, POD_CIDRS))
        if isinstance(decision, Refusal):
            return decision
        return set(map(str, self.table.backends[decision]))
