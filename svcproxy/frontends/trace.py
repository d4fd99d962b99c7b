# SPDX-License-Identifier: Apache-2.0
"""Why a packet goes where it goes: each decision on its way, in order, for people and as JSON. Pure.

A diagnosis, not a data path: it searches the whole table and store where that helps to explain why there is nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from svcproxy.errors import SvcproxyError
from svcproxy.frontends.addresses import canonical
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.decision import SourceKind, admits, lookup, scope_for, source_kind
from svcproxy.frontends.demand import not_proxied
from svcproxy.frontends.keys import (
    Address,
    Backend,
    Frontend,
    FrontendKey,
    FrontendKind,
    NodePort,
    Refusal,
    Scope,
    TrafficPolicy,
)
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.offers import candidates
from svcproxy.frontends.selection import Candidate, deduplicate
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import NamespacedName, Protocol, family_of
from svcproxy.model.store import Store

ENDPOINTS_MAX = 100
"""Endpoints shown of one Service port, selected ones first."""
PORTS_MAX = 20
"""Other ports of an address that are named."""


class InvalidAddress(SvcproxyError):
    """The caller's text is not an IP address. Reaction: tell the caller."""


class Verdict(StrEnum):
    """What becomes of the packet."""

    FORWARD = "forward"
    """It goes to one of the backends."""
    REJECT = "reject"
    """An immediate error."""
    DROP = "drop"
    """Silence: a Local policy leaves no endpoint on this node."""
    FILTERED = "filtered"
    """Silence: the source is in none of loadBalancerSourceRanges."""
    NOT_OURS = "not-ours"
    """No frontend takes it: routing and host sockets decide."""


class Stage(StrEnum):
    """What a step is about."""

    FRONTEND = "frontend"
    SERVICE = "service"
    SOURCE = "source"
    POLICY = "policy"
    BACKENDS = "backends"
    VERDICT = "verdict"


class Step(msgspec.Struct, frozen=True, gc=False):
    """One decision."""

    stage: Stage
    text: str


class TracedEndpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of the Service port, and why it is in the set or not."""

    backend: str
    selected: bool
    reason: str
    node: str | None
    slice: str


class Trace(msgspec.Struct, frozen=True, gc=False):
    """The answer."""

    destination: str
    source: str | None
    source_kind: SourceKind
    verdict: Verdict
    steps: tuple[Step, ...]
    frontend: str | None = None
    kind: FrontendKind | None = None
    service: str | None = None
    service_port: str | None = None
    policy: TrafficPolicy | None = None
    scope: str | None = None
    """`cluster` or `local`: the set that serves the packet."""
    backends: tuple[str, ...] = ()
    """Where the packet may go, sorted; at most `ENDPOINTS_MAX`."""
    backends_total: int = 0
    endpoints: tuple[TracedEndpoint, ...] = ()
    endpoints_total: int = 0
    affinity_timeout: int | None = None
    """Seconds."""


def trace(
    table: FrontendTable,
    store: Store,
    node: NodeView,
    ip: str,
    protocol: Protocol,
    port: int,
    *,
    source: str | None = None,
    pod_cidrs: Iterable[str] = (),
    pod_interfaces: Iterable[str] = (),
    conflicts: Mapping[FrontendKey, Conflict] | None = None,
    refused: Mapping[FrontendKey, str] | None = None,
) -> Trace:
    """Explain what a packet to `ip` and `port` meets; without `source`, one from outside that no range keeps out.

    `pod_interfaces`: where the data plane goes by these, an address tells its kind only as far as addresses can.
    `conflicts` are the builder's, `refused` the data plane's. Raises `InvalidAddress`.
    """
    destination, origin = _address(ip), _address(source) if source is not None else None
    kind = source_kind(origin, node, pod_cidrs) if origin is not None else SourceKind.OTHER
    frontend = lookup(table, destination, protocol, port)
    asked = str(Address(destination, protocol, port))
    if frontend is None:
        steps = [Step(Stage.FRONTEND, text) for text in _why_nothing(table, store, node, destination, protocol, port)]
        steps.append(Step(Stage.VERDICT, "not ours: routing and host sockets decide"))
        return Trace(asked, origin, kind, Verdict.NOT_OURS, tuple(steps))
    explanation = _Explanation(table, store, node, frontend, asked, origin, kind, tuple(pod_interfaces))
    return explanation.trace(conflicts or {}, refused or {})


class _Explanation:
    """The decisions about a packet that a frontend takes."""

    def __init__(
        self,
        table: FrontendTable,
        store: Store,
        node: NodeView,
        frontend: Frontend,
        asked: str,
        source: str | None,
        kind: SourceKind,
        pod_interfaces: Sequence[str],
    ) -> None:
        self._table, self._store, self._node = table, store, node
        self._pod_interfaces = pod_interfaces
        self._frontend, self._asked, self._source, self._kind = frontend, asked, source, kind

    def trace(self, conflicts: Mapping[FrontendKey, Conflict], refused: Mapping[FrontendKey, str]) -> Trace:
        frontend = self._frontend
        scope = scope_for(frontend, self._kind)
        selected = self._table.backends_of(frontend, scope)
        verdict = self._verdict(scope, empty=not selected)
        shown = sorted(selected)[:ENDPOINTS_MAX]
        endpoints = self._endpoints(scope, selected)
        steps = [Step(Stage.FRONTEND, text) for text in self._about_frontend(conflicts.get(frontend.key), refused)]
        steps += [
            Step(Stage.SERVICE, f"served by {frontend.service_port}"),
            Step(Stage.SOURCE, self._about_source()),
            Step(Stage.POLICY, self._about_policy(scope)),
            Step(Stage.BACKENDS, self._about_backends(scope, len(selected), len(endpoints))),
            Step(Stage.VERDICT, self._about_verdict(verdict)),
        ]
        return Trace(
            self._asked,
            self._source,
            self._kind,
            verdict,
            tuple(steps),
            frontend=str(frontend.key),
            kind=frontend.kind,
            service=str(frontend.service_port.owner),
            service_port=str(frontend.service_port),
            policy=frontend.policy,
            scope=scope.name.lower(),
            backends=tuple(map(str, shown)) if verdict is Verdict.FORWARD else (),
            backends_total=len(selected) if verdict is Verdict.FORWARD else 0,
            endpoints=tuple(endpoints[:ENDPOINTS_MAX]),
            endpoints_total=len(endpoints),
            affinity_timeout=frontend.affinity_timeout,
        )

    def _verdict(self, scope: Scope, *, empty: bool) -> Verdict:
        if self._source is not None and not admits(self._frontend, self._source):
            return Verdict.FILTERED
        if not empty:
            return Verdict.FORWARD
        if scope is Scope.LOCAL and self._frontend.when_local_empty is Refusal.DROP:
            return Verdict.DROP
        return Verdict.REJECT

    def _about_frontend(self, conflict: Conflict | None, refused: Mapping[FrontendKey, str]) -> Iterator[str]:
        frontend = self._frontend
        if isinstance(frontend.key, NodePort):
            yield "no Service has this address and port; the address takes NodePorts"
        yield f"{frontend.key} is a frontend, a {frontend.kind} of {frontend.service_port.owner}"
        if conflict is not None:
            losers = ", ".join(map(str, conflict.losers))
            yield f"conflict: also asked for by {losers}; {frontend.service_port} has the better claim"
        if frontend.key in refused:
            yield f"the data plane refused it and does not serve it: {refused[frontend.key]}"

    def _about_source(self) -> str:
        ranges = self._frontend.source_ranges
        what = {
            SourceKind.POD: "a pod of the cluster",
            SourceKind.NODE: "this node",
            SourceKind.OTHER: "neither a pod nor this node",
        }[self._kind]
        who = f"{self._source} is {what}" if self._source is not None else "no source given: taken to be from outside"
        if self._source is not None and self._pod_interfaces:
            who += f", by its address; what comes through {', '.join(self._pod_interfaces)} is a pod's"
        if ranges is None:
            return f"{who}; every source is admitted"
        listed = ", ".join(ranges) or "none that can be read"
        if self._source is None:
            return f"{who}; only sources in loadBalancerSourceRanges are admitted: {listed}"
        admitted = "in" if admits(self._frontend, self._source) else "in none of"
        return f"{who}; it is {admitted} loadBalancerSourceRanges: {listed}"

    def _about_policy(self, scope: Scope) -> str:
        frontend = self._frontend
        name = "externalTrafficPolicy" if frontend.kind.external else "internalTrafficPolicy"
        if frontend.policy is TrafficPolicy.LOCAL and scope is Scope.CLUSTER:
            return f"{name} is Local, which does not bind pods and the node itself: the cluster set serves"
        return f"{name} is {frontend.policy}: the {scope.name.lower()} set serves"

    def _about_backends(self, scope: Scope, selected: int, total: int) -> str:
        port = self._frontend.service_port
        if total:
            return f"{selected} of {total} endpoints are in the {scope.name.lower()} set"
        slices = self._store.slices_of(port.owner)
        if not slices:
            return "the Service has no EndpointSlices"
        wanted = f"{self._frontend.family.label} endpoints for a port named {port.port!r}, {port.protocol}"
        return f"none of the Service's {len(slices)} EndpointSlices has {wanted}"

    def _about_verdict(self, verdict: Verdict) -> str:
        match verdict:
            case Verdict.FORWARD if self._frontend.affinity_timeout is not None:
                seconds = self._frontend.affinity_timeout
                return f"forward: to the client's backend of the last {seconds} s, else to one at random"
            case Verdict.FORWARD:
                return "forward: to one backend, at random"
            case Verdict.DROP:
                return "drop: usable endpoints exist, but none on this node and the policy is Local"
            case Verdict.FILTERED:
                return "drop: the source is not admitted"
            case _:
                return "reject: no usable endpoint exists on any node"

    def _endpoints(self, scope: Scope, selected: Iterable[Backend]) -> list[TracedEndpoint]:
        port, family = self._frontend.service_port, self._frontend.family
        found = (c for piece in self._store.slices_of(port.owner).values() for c in candidates(piece, port, family))
        endpoints = deduplicate(found, self._node)
        inside = set(selected)
        narrowed = any(e.ready and backend not in inside for backend, e in endpoints.items())
        traced = [
            TracedEndpoint(
                str(backend),
                backend in inside,
                self._reason(endpoint, scope, backend in inside, narrowed),
                endpoint.node_name,
                endpoint.slice,
            )
            for backend, endpoint in sorted(endpoints.items())
        ]
        return sorted(traced, key=lambda endpoint: not endpoint.selected)

    def _here(self, endpoint: Candidate) -> bool:
        return endpoint.node_name == self._node.name

    def _reason(self, endpoint: Candidate, scope: Scope, selected: bool, narrowed: bool) -> str:
        if not endpoint.ready and not (endpoint.serving and endpoint.terminating):
            return "terminating and not serving" if endpoint.terminating else "not ready"
        if scope is Scope.LOCAL and not self._here(endpoint):
            return "on another node" if endpoint.node_name else "on no known node"
        if not endpoint.ready:
            return "terminating, used because none is ready" if selected else "terminating, while others are ready"
        if not selected:
            return "hinted for other nodes or zones"
        hinted = self._node.name in endpoint.for_nodes or self._node.zone in endpoint.for_zones
        return "ready, hinted for here" if hinted and scope is Scope.CLUSTER and narrowed else "ready"


def _why_nothing(
    table: FrontendTable, store: Store, node: NodeView, ip: str, protocol: Protocol, port: int
) -> Iterator[str]:
    """Why no frontend takes the packet, most specific first."""
    others = sorted(key for key in table.frontends if isinstance(key, Address) and key.ip == ip)
    if others:
        listed = ", ".join(f"{key.port}/{key.protocol}" for key in others[:PORTS_MAX])
        more = f" and {len(others) - PORTS_MAX} more" if len(others) > PORTS_MAX else ""
        yield f"{ip} is an address of {_owners(table, others)}, on other ports: {listed}{more}"
    node_port = NodePort(family_of(ip), protocol, port)
    if node_port in table.frontends:
        where = "an address of this node that takes no NodePorts" if ip in node.addresses else "no address of this node"
        yield f"{port}/{protocol} is a NodePort of {table.frontends[node_port].service_port.owner}, but {ip} is {where}"
    elif ip in node.addresses and not others:
        takes = "takes NodePorts" if ip in table.node_port_addresses else "takes no NodePorts"
        yield f"{ip} is an address of this node and {takes}; no Service has the NodePort {port}/{protocol}"
    claimed = list(_claimed(store, ip, bool(others)))
    yield from claimed
    if not others and not claimed and ip not in node.addresses:
        yield f"{ip} is not an address of any Service, nor of this node"


def _owners(table: FrontendTable, keys: Iterable[Address]) -> str:
    owners: dict[NamespacedName, None] = dict.fromkeys(table.frontends[key].service_port.owner for key in keys)
    return ", ".join(map(str, owners))


def _claimed(store: Store, ip: str, served: bool) -> Iterator[str]:
    """Services that name the address without getting frontends on it."""
    for service in store.services.values():
        spec = service.spec
        ingress = (
            (service.status.load_balancer.ingress or ()) if service.status and service.status.load_balancer else ()
        )
        modes = {canonical(entry.ip): entry.ip_mode for entry in ingress if entry.ip}
        listed = {canonical(text) for text in (*(spec.cluster_ips or ()), *(spec.external_ips or ())) if text}
        if ip not in listed and ip not in modes:
            continue
        reason = not_proxied(service)
        if reason is not None:
            yield f"{ip} is an address of {service.key}, which has no frontends: {reason}"
        elif modes.get(ip) == "Proxy" and not served:
            yield f"{ip} is a load balancer of {service.key} with ipMode Proxy: packets go to the load balancer"
        elif not served:
            yield f"{ip} is asked for by {service.key}, which has no frontends on it"


def _address(text: str) -> str:
    ip = canonical(text)
    if ip is None:
        raise InvalidAddress(f"not an IP address: {text!r}")
    return ip
