# SPDX-License-Identifier: Apache-2.0
"""The nouns of load balancing on one node: frontends, backends, and the sets that connect them. Pure values.

A *frontend* is something a packet can be addressed to. A *backend* is the (address, port) pair that one endpoint offers
for one Service port. A *backend set* is what a Service port offers within a scope: all of the cluster, or this node
alone. All frontends of a Service port share its two sets.
"""

from enum import IntEnum, StrEnum

import msgspec

from svcproxy.model.meta import Family, NamespacedName, Protocol, family_of


class Address(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True, tag="address"):
    """A frontend on one IP address: ClusterIP, external IP or load-balancer IP."""

    ip: str
    """Canonical text form (RFC 5952 for IPv6)."""
    protocol: Protocol
    port: int

    @property
    def family(self) -> Family:
        """The family of the address."""
        return family_of(self.ip)

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.family is Family.IPV6 else self.ip
        return f"{host}:{self.port}/{self.protocol}"


class NodePort(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True, tag="node-port"):
    """A frontend on every address of this node that takes NodePorts (`FrontendTable.node_port_addresses`)."""

    family: Family
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{self.family.label} node-port:{self.port}/{self.protocol}"


FrontendKey = Address | NodePort


class ServicePortName(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True):
    """A port of a Service: the identity that affinity, metrics and conflicts are about."""

    namespace: str
    service: str
    port: str
    """The port's name; a lone port may have the empty one."""
    protocol: Protocol

    @property
    def owner(self) -> NamespacedName:
        """The Service."""
        return NamespacedName(self.namespace, self.service)

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.namespace}/{self.service}{port}/{self.protocol}"


class Scope(IntEnum):
    """Which endpoints a backend set holds."""

    CLUSTER = 0
    """All that topology allows, on any node."""
    LOCAL = 1
    """Those on this node."""


class BackendSetKey(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True):
    """Names one set of backends."""

    service_port: ServicePortName
    family: Family
    scope: Scope


class Backend(msgspec.Struct, frozen=True, gc=False, order=True, array_like=True):
    """Where a connection is sent."""

    ip: str
    """Canonical text form."""
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class FrontendKind(StrEnum):
    """Which field of the Service a frontend comes from."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER = "LoadBalancer"
    NODE_PORT = "NodePort"

    @property
    def external(self) -> bool:
        """Whether externalTrafficPolicy governs it (internalTrafficPolicy otherwise)."""
        return self is not FrontendKind.CLUSTER_IP


class TrafficPolicy(StrEnum):
    """internalTrafficPolicy or externalTrafficPolicy, whichever governs the frontend."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class Refusal(StrEnum):
    """What a packet meets where there is no backend for it."""

    REJECT = "reject"
    """An immediate error: nothing usable exists anywhere."""
    DROP = "drop"
    """Silence: usable endpoints exist, but a Local policy forbids them here."""


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """Everything about a frontend but its backends."""

    key: FrontendKey
    service_port: ServicePortName
    kind: FrontendKind
    policy: TrafficPolicy = TrafficPolicy.CLUSTER
    when_local_empty: Refusal = Refusal.REJECT
    """The refusal where `policy` is Local and the local set is empty. An empty cluster set always rejects."""
    affinity_timeout: int | None = None
    """Seconds that a client keeps its backend past its last new connection; None without affinity. Affinity belongs
    to `service_port`: a client has one backend over all its frontends."""
    source_ranges: tuple[str, ...] | None = None
    """CIDRs that may use the frontend, of its family, canonical; None admits everyone."""

    @property
    def family(self) -> Family:
        """The family of the frontend."""
        return self.key.family

    def backend_set(self, scope: Scope) -> BackendSetKey:
        """The key of the frontend's set of that scope."""
        return BackendSetKey(self.service_port, self.key.family, scope)


class HealthCheck(msgspec.Struct, frozen=True, gc=False):
    """A Service's health-check node port and the answer it gives."""

    service: NamespacedName
    port: int
    local_endpoints: int
    """Distinct addresses of ready endpoints on this node, over all ports of the Service and both families."""
