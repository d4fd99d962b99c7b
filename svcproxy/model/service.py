# SPDX-License-Identifier: Apache-2.0
"""core/v1 Service."""

from enum import StrEnum

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta, PortNumber, Protocol

CLUSTER_IP_NONE = "None"
"""`spec.clusterIP` of a headless Service."""


class ServiceType(StrEnum):
    """`spec.type`."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class ServiceLabels(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The labels used."""

    proxy_name: str | None = msgspec.field(default=None, name="service.kubernetes.io/service-proxy-name")
    """Present with any value, even empty: another proxy serves this Service."""


class ServiceMeta(ObjectMeta, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """Metadata of a Service."""

    labels: ServiceLabels | None = None


class ServicePort(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """One entry of `spec.ports`."""

    port: PortNumber
    name: str = ""
    protocol: Protocol = Protocol.TCP
    node_port: PortNumber = 0


class ClientIPConfig(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """`sessionAffinityConfig.clientIP`."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`spec.sessionAffinityConfig`."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class LoadBalancerIngress(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """One entry of `status.loadBalancer.ingress`; entries with only a hostname have no `ip`."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`status.loadBalancer`."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """The part of a Service's status that is used."""

    load_balancer: LoadBalancerStatus | None = None


class ServiceSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """The part of a Service's spec that is used."""

    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: tuple[str, ...] | None = None
    ports: tuple[ServicePort, ...] | None = None
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    external_name: str | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: PortNumber = 0
    load_balancer_source_ranges: tuple[str, ...] | None = None


class Service(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A Service."""

    metadata: ServiceMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key

    @property
    def headless(self) -> bool:
        """Whether the Service has no virtual address and DNS answers its endpoints."""
        return self.spec.cluster_ip == CLUSTER_IP_NONE and self.spec.type is not ServiceType.EXTERNAL_NAME
