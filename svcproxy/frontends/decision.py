# SPDX-License-Identifier: Apache-2.0
"""What a packet meets: the frontend it is for, whether its source is admitted, and the set that serves it. Pure.

This is the meaning of a `FrontendTable`. The user-space data plane asks these functions for every connection, `trace`
explains with them, and the conformance suite holds every other data plane against them.
"""

from collections.abc import Iterable
from enum import StrEnum

from svcproxy.frontends.addresses import contains
from svcproxy.frontends.keys import Address, BackendSetKey, Frontend, NodePort, Refusal, Scope, TrafficPolicy
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Protocol, family_of


class SourceKind(StrEnum):
    """Where a packet comes from, as far as policies care."""

    POD = "pod"
    """A pod of the cluster."""
    NODE = "node"
    """This node itself."""
    OTHER = "other"
    """Anything else."""


def source_kind(ip: str, node: NodeView, pod_cidrs: Iterable[str]) -> SourceKind:
    """The kind of a canonical source address. A node's address inside a pod CIDR is a pod's."""
    if any(contains(cidr, ip) for cidr in pod_cidrs):
        return SourceKind.POD
    return SourceKind.NODE if ip in node.addresses else SourceKind.OTHER


def lookup(table: FrontendTable, ip: str, protocol: Protocol, port: int) -> Frontend | None:
    """The frontend that takes packets to a canonical address. An address of a Service beats a NodePort."""
    frontend = table.frontends.get(Address(ip, protocol, port))
    if frontend is None and ip in table.node_port_addresses:
        frontend = table.frontends.get(NodePort(family_of(ip), protocol, port))
    return frontend


def admits(frontend: Frontend, source_ip: str) -> bool:
    """Whether a canonical source address may use the frontend; who may not is met with silence."""
    return frontend.source_ranges is None or any(contains(cidr, source_ip) for cidr in frontend.source_ranges)


def scope_for(frontend: Frontend, source: SourceKind) -> Scope:
    """The set that serves packets of that source.

    externalTrafficPolicy Local does not bind pods and the node itself: they would reach the ClusterIP as well, and a
    node without local endpoints would cut its own pods off (Kubernetes #131765).
    """
    if frontend.policy is TrafficPolicy.CLUSTER or (frontend.kind.external and source is not SourceKind.OTHER):
        return Scope.CLUSTER
    return Scope.LOCAL


def decide(table: FrontendTable, frontend: Frontend, source: SourceKind) -> BackendSetKey | Refusal:
    """The set, not empty, that serves a packet of an admitted source, or what the packet meets instead."""
    scope = scope_for(frontend, source)
    key = frontend.backend_set(scope)
    if key in table.backends:
        return key
    return Refusal.REJECT if scope is Scope.CLUSTER else frontend.when_local_empty
