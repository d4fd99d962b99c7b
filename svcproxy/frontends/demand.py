# SPDX-License-Identifier: Apache-2.0
"""What one Service asks of this node: its ports, their frontends and the sets they use (core/v1 ServiceSpec). Pure.

Looks at the Service alone: neither its endpoints nor other Services that may own an address already.
"""

from collections.abc import Iterable, Iterator

import msgspec

from svcproxy.frontends.addresses import canonical, canonical_of, contains, host_network, network
from svcproxy.frontends.keys import Address, Frontend, FrontendKind, NodePort, ServicePortName, TrafficPolicy
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model.meta import Family, family_of
from svcproxy.model.service import CLUSTER_IP_NONE, Service, ServicePort, ServiceType

AFFINITY_TIMEOUT = 10800
"""Seconds that ClientIP affinity lasts when the Service does not say."""

IP_MODE_VIP = "VIP"


class PortDemand(msgspec.Struct, frozen=True, gc=False):
    """One Service port in one family."""

    service_port: ServicePortName
    family: Family
    frontends: tuple[Frontend, ...]
    """At most one per key. `when_local_empty` is REJECT: what it is depends on the endpoints."""
    internal_local: bool
    """internalTrafficPolicy is Local."""
    external_local: bool
    """externalTrafficPolicy is Local, in effect, and governs at least one frontend."""
    accessible: bool
    """At least one frontend is external."""

    @property
    def uses_cluster(self) -> bool:
        """Whether some packet is served by the cluster set."""
        return self.accessible or not self.internal_local

    @property
    def uses_local(self) -> bool:
        """Whether some packet is served by the local set."""
        return self.internal_local or self.external_local


class Demand(msgspec.Struct, frozen=True, gc=False):
    """All that a Service asks for; nothing at all when it is not proxied."""

    ports: tuple[PortDemand, ...] = ()
    health_port: int = 0
    """The health-check node port, 0 without one."""
    problems: tuple[str, ...] = ()
    """What had to be left out, for people."""


NO_DEMAND = Demand()


def not_proxied(service: Service) -> str | None:
    """Why the Service has no frontends, for people; None if it is proxied."""
    spec = service.spec
    if service.metadata.labels is not None and service.metadata.labels.proxy_name is not None:
        return f"left to the proxy {service.metadata.labels.proxy_name!r} by its service-proxy-name label"
    if spec.type is ServiceType.EXTERNAL_NAME:
        return "of type ExternalName: DNS answers with a CNAME"
    if spec.cluster_ip == CLUSTER_IP_NONE:
        return "headless: DNS answers with its endpoints"
    return None if spec.cluster_ip else "without a clusterIP"


def demand_of(service: Service, options: FrontendOptions, node: NodeView) -> Demand:
    """What the Service asks for. `node` matters for source ranges alone."""
    if not_proxied(service) is not None:
        return NO_DEMAND
    return _Reading(service, options, node).demand()


def external_policy_is_local(service: Service) -> bool:
    """Whether externalTrafficPolicy is Local and in effect."""
    spec = service.spec
    return spec.external_traffic_policy == TrafficPolicy.LOCAL and (
        spec.type is not ServiceType.CLUSTER_IP or bool(spec.external_ips)
    )


def affinity_timeout(service: Service) -> int | None:
    """Seconds of ClientIP affinity, None without."""
    if service.spec.session_affinity != "ClientIP":
        return None
    config = service.spec.session_affinity_config
    if config is None or config.client_ip is None or config.client_ip.timeout_seconds is None:
        return AFFINITY_TIMEOUT
    return config.client_ip.timeout_seconds


class _Reading:
    """One pass over one Service."""

    def __init__(self, service: Service, options: FrontendOptions, node: NodeView) -> None:
        self._service = service
        self._options = options
        self._node = node
        self._problems: list[str] = []
        self._affinity = affinity_timeout(service)
        self._internal = _policy(service.spec.internal_traffic_policy == TrafficPolicy.LOCAL)
        self._external = _policy(external_policy_is_local(service))

    def demand(self) -> Demand:
        spec = self._service.spec
        vips = self._load_balancer_ips() if self._service.status is not None else ()
        externals = self._external_ips() if spec.external_ips else ()
        ports: list[PortDemand] = []
        for family in (Family.IPV4, Family.IPV6):
            cluster_ip = self._cluster_ip(family)
            if cluster_ip is None:
                continue
            own_vips = [ip for ip in vips if family_of(ip) is family]
            addresses = [(cluster_ip, FrontendKind.CLUSTER_IP)]
            addresses += [(ip, FrontendKind.LOAD_BALANCER) for ip in own_vips]
            addresses += [(ip, FrontendKind.EXTERNAL_IP) for ip in externals if family_of(ip) is family]
            ranges = self._source_ranges(family, own_vips) if own_vips else None
            ports += self._ports(family, dict(reversed(addresses)), ranges)
        local_load_balancer = spec.type is ServiceType.LOAD_BALANCER and self._external is TrafficPolicy.LOCAL
        return Demand(
            tuple(ports),
            spec.health_check_node_port if local_load_balancer and ports else 0,
            tuple(dict.fromkeys(self._problems)),
        )

    def _cluster_ip(self, family: Family) -> str | None:
        """The entry of clusterIPs where ipFamilies names the family; clusterIP alone if there is no ipFamilies."""
        spec = self._service.spec
        text: str | None = spec.cluster_ip
        if spec.ip_families:
            if family.label not in spec.ip_families:
                return None
            index = spec.ip_families.index(family.label)
            listed = spec.cluster_ips or (spec.cluster_ip,)
            text = listed[index] if index < len(listed) else None
        elif text is not None and (":" in text) is (family is Family.IPV4):
            return None
        if text is None:
            self._problems.append(f"spec.clusterIPs: no {family.label} address, though spec.ipFamilies names it")
            return None
        ip = canonical_of(text, family)
        if ip is None:
            self._problems.append(f"spec.clusterIPs: not an {family.label} address: {text!r}")
        return ip

    def _load_balancer_ips(self) -> tuple[str, ...]:
        status = self._service.status
        if status is None or status.load_balancer is None:
            return ()
        entries = status.load_balancer.ingress or ()
        return self._addresses(
            "status.loadBalancer.ingress", (e.ip for e in entries if e.ip and e.ip_mode in (None, IP_MODE_VIP))
        )

    def _external_ips(self) -> tuple[str, ...]:
        served = []
        for ip in self._addresses("spec.externalIPs", self._service.spec.external_ips or ()):
            if self._options.serves_external_ip(ip):
                served.append(ip)
            else:
                self._problems.append(f"spec.externalIPs: {ip} is not allowed on this node")
        return tuple(served)

    def _addresses(self, path: str, texts: Iterable[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for text in texts:
            ip = canonical(text)
            if ip is None:
                self._problems.append(f"{path}: not an IP address: {text!r}")
            else:
                found[ip] = None
        return tuple(found)

    def _source_ranges(self, family: Family, vips: list[str]) -> tuple[str, ...] | None:
        """The ranges of the family, None if none was given.

        A range that cannot be read still closes the door: whoever asked for a filter gets one. When a range holds an
        address of the node itself, the Service's own addresses are admitted as sources: bound on the node, they
        are what its processes send from.
        """
        texts = [text.strip() for text in self._service.spec.load_balancer_source_ranges or ()]
        own = [text for text in texts if family_of(text) is family]
        if not own:
            if texts:
                self._problems.append(
                    f"spec.loadBalancerSourceRanges: no {family.label} range: {family.label} sources are not filtered"
                )
            return None
        ranges: dict[str, None] = {}
        for text in own:
            if (parsed := network(text)) is None:
                self._problems.append(f"spec.loadBalancerSourceRanges: not a CIDR: {text!r}")
            else:
                ranges[str(parsed)] = None
        if any(contains(cidr, ip) for cidr in ranges for ip in self._node.primary_addresses):
            ranges.update(dict.fromkeys(map(host_network, vips)))
        return tuple(ranges)

    def _ports(
        self, family: Family, addresses: dict[str, FrontendKind], ranges: tuple[str, ...] | None
    ) -> Iterator[PortDemand]:
        by_name: dict[ServicePortName, dict[Address | NodePort, Frontend]] = {}
        metadata = self._service.metadata
        for port in self._service.spec.ports or ():
            if not port.port:
                self._problems.append(f"spec.ports: {port.name!r} has no number")
                continue
            name = ServicePortName(metadata.namespace, metadata.name, port.name, port.protocol)
            by_name.setdefault(name, {}).update(
                (frontend.key, frontend) for frontend in self._frontends(name, family, port, addresses, ranges)
            )
        for name, frontends in by_name.items():
            accessible = len(frontends) > 1 and any(f.kind.external for f in frontends.values())
            yield PortDemand(
                name,
                family,
                tuple(frontends.values()),
                self._internal is TrafficPolicy.LOCAL,
                accessible and self._external is TrafficPolicy.LOCAL,
                accessible,
            )

    def _frontends(
        self,
        name: ServicePortName,
        family: Family,
        port: ServicePort,
        addresses: dict[str, FrontendKind],
        ranges: tuple[str, ...] | None,
    ) -> Iterator[Frontend]:
        for ip, kind in addresses.items():
            yield Frontend(
                Address(ip, port.protocol, port.port),
                name,
                kind,
                self._internal if kind is FrontendKind.CLUSTER_IP else self._external,
                affinity_timeout=self._affinity,
                source_ranges=ranges if kind is FrontendKind.LOAD_BALANCER else None,
            )
        if port.node_port:
            yield Frontend(
                NodePort(family, port.protocol, port.node_port),
                name,
                FrontendKind.NODE_PORT,
                self._external,
                affinity_timeout=self._affinity,
            )


def _policy(local: bool) -> TrafficPolicy:
    return TrafficPolicy.LOCAL if local else TrafficPolicy.CLUSTER
