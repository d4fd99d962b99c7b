# SPDX-License-Identifier: Apache-2.0
"""What the rules of a kernel data plane have to know of node and cluster, from configuration and objects. Pure.

Objects come from outside, so they are held against what is known for sure: a range of Services that would silence pods
or this node is not taken. Nor are addresses silenced whose Services are left to another proxy.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
    summarize_address_range,
)

from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.frontends.addresses import Network, canonical, contains, host_network, network
from svcproxy.model import NamespacedName, Node, Service, ServiceCIDR, Store, Touched
from svcproxy.model.meta import Family, family_of

LEFT_TO_OTHERS_MAX = 256
"""ClusterIPs that are cut out of the ranges of Services; with more, no range is met with silence."""

_EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


@dataclass(frozen=True, slots=True)
class Derived:
    """What follows from configuration and objects. CIDRs are canonical, sorted, and do not overlap."""

    surroundings: Surroundings
    hairpin_cidrs: tuple[str, ...]
    """Where pods of this node have addresses; empty: anywhere."""
    pod_cidrs: tuple[str, ...]
    """Which sources are pods as far as addresses can tell: for those who see no interface."""
    warnings: tuple[str, ...]
    """What is not as it should be, for people."""


class SurroundingsBuilder:
    """Derives it from a store. One `update` for each `Touched`; it looks at what was touched, seldom at more."""

    def __init__(self, config: DataplaneConfig, node_name: str, store: Store) -> None:
        self._config = config
        self._node = NamespacedName("", node_name)
        self._store = store
        self._left_to_others = {key: ips for key, obj in store.services.items() if (ips := _left_to_others(obj))}
        self.derived = self._derive()
        """What holds now."""

    def update(self, touched: Touched) -> bool:
        """Take in what has changed in the store. Returns whether `derived` is another value."""
        concerned = bool(touched.nodes or touched.service_cidrs)
        for old, new in touched.services:
            if new is not None and (ips := _left_to_others(new)):
                concerned |= self._left_to_others.get(new.key) != ips
                self._left_to_others[new.key] = ips
            elif old is not None:
                concerned |= self._left_to_others.pop(old.key, None) is not None
        if not concerned:
            return False
        before, self.derived = self.derived, self._derive()
        return self.derived != before

    def _derive(self) -> Derived:
        left = {ip for ips in self._left_to_others.values() for ip in ips}
        return derive(self._config, self._store.nodes.get(self._node), self._store.service_cidrs.values(), left)


def _left_to_others(service: Service) -> tuple[str, ...]:
    """The ClusterIPs of a Service that another proxy serves; none if we do."""
    if service.metadata.labels is None or service.metadata.labels.proxy_name is None:
        return ()
    listed = service.spec.cluster_ips or (service.spec.cluster_ip or "",)
    return tuple(ip for text in listed if (ip := canonical(text)) is not None)


def derive(
    config: DataplaneConfig,
    node: Node | None,
    service_cidrs: Iterable[ServiceCIDR],
    left_to_others: Collection[str] = (),
) -> Derived:
    """What holds for the own Node, None while it is not known, and the ServiceCIDRs there are.

    `left_to_others`: canonical ClusterIPs that another proxy serves.

    With `NodeCIDR`, as long as the Node has no podCIDRs, nothing is taken for a pod and nobody for a stranger.
    ServiceCIDRs count once the Node is known, for its addresses must not be among them.
    """
    warnings: list[str] = []
    of_node = list(_networks(_node_cidrs(node), warnings))
    of_cluster = list(_networks((("dataplane.cluster_cidrs", cidr) for cidr in config.cluster_cidrs), warnings))
    by_node = config.local_mode is DetectLocalMode.NODE_CIDR
    if by_node and not of_node:
        warnings.append("the Node has no podCIDRs (yet): nothing tells pods from others, all keep their source address")
    taken = [*of_node, *of_cluster, *_node_addresses(node)]
    ranges = _without(taken, _networks(_service_cidrs(config, service_cidrs if node else ()), warnings), warnings)
    pod_cidrs = _collapsed(of_node if by_node else of_cluster)
    surroundings = Surroundings(
        pod_cidrs=pod_cidrs,
        pod_interfaces=config.pod_interfaces,
        service_cidrs=_silent(_collapsed(ranges), left_to_others, warnings),
        masquerade_all=config.masquerade_all,
    )
    # Where podCIDRs do not say what is a pod, they may be unused: CNIs with address management of their own leave
    # them as they are.
    hairpin_cidrs = _hairpin_cidrs(of_node) if by_node else ()
    return Derived(surroundings, hairpin_cidrs, pod_cidrs or _collapsed(of_node), tuple(warnings))


def _node_cidrs(node: Node | None) -> Iterator[tuple[str, str]]:
    for cidr in (node.spec.pod_cidrs or ()) if node is not None else ():
        yield "podCIDRs of the Node", cidr


def _node_addresses(node: Node | None) -> Iterator[Network]:
    for address in (node.status.addresses or ()) if node is not None else ():
        ip = canonical(address.address)
        if ip is not None and (parsed := network(host_network(ip))) is not None:
            yield parsed


def _service_cidrs(config: DataplaneConfig, objects: Iterable[ServiceCIDR]) -> Iterator[tuple[str, str]]:
    if config.service_cidrs:
        yield from (("dataplane.service_cidrs", cidr) for cidr in config.service_cidrs)
        return
    for obj in objects:
        for cidr in obj.spec.cidrs or ():
            yield f"ServiceCIDR {obj.key}", cidr


def _networks(named: Iterable[tuple[str, str]], warnings: list[str]) -> Iterator[Network]:
    """The CIDRs, of (where it stands, CIDR); what is none is passed over."""
    for where, cidr in named:
        if (parsed := network(cidr)) is not None:
            yield parsed
        else:
            warnings.append(f"{where}: {cidr!r} is not a CIDR and is left out")


def _without(taken: Iterable[Network], ranges: Iterable[Network], warnings: list[str]) -> Iterator[Network]:
    """The ranges that have nothing in common with what is taken."""
    for each in ranges:
        others = [str(other) for other in taken if each.overlaps(other)]
        if others:
            listed = ", ".join(others)
            warnings.append(f"{each} is not taken for a range of Services: pods or this node have {listed}")
        else:
            yield each


def _silent(cidrs: tuple[str, ...], left_to_others: Collection[str], warnings: list[str]) -> tuple[str, ...]:
    """The CIDRs less the addresses that another proxy serves."""
    if len(left_to_others) > LEFT_TO_OTHERS_MAX:
        warnings.append(
            f"{len(left_to_others)} ClusterIPs are left to another proxy, more than {LEFT_TO_OTHERS_MAX}: "
            "no address of the ranges of Services is met with silence"
        )
        return ()
    return tuple(part for cidr in cidrs for part in _around(cidr, left_to_others))


def _around(cidr: str, ips: Iterable[str]) -> Iterator[str]:
    """The parts of a CIDR before, between and after some addresses."""
    inside = sorted(int(ip_address(ip)) for ip in ips if contains(cidr, ip))
    whole = ip_network(cidr)
    first = int(whole.network_address)
    for at in (*inside, int(whole.broadcast_address) + 1):
        if at > first and isinstance(whole, IPv4Network):
            yield from map(str, summarize_address_range(IPv4Address(first), IPv4Address(at - 1)))
        elif at > first:
            yield from map(str, summarize_address_range(IPv6Address(first), IPv6Address(at - 1)))
        first = at + 1


def _hairpin_cidrs(of_node: Iterable[Network]) -> tuple[str, ...]:
    """The podCIDRs; everything for a family without any. Empty if there are none at all."""
    known = _collapsed(of_node)
    families = {family_of(cidr) for cidr in known}
    return (*known, *(_EVERYTHING[family] for family in Family if known and family not in families))


def _collapsed(networks: Iterable[Network]) -> tuple[str, ...]:
    """The same addresses in as few CIDRs as possible."""
    listed = list(networks)
    ipv4 = collapse_addresses(each for each in listed if isinstance(each, IPv4Network))
    ipv6 = collapse_addresses(each for each in listed if isinstance(each, IPv6Network))
    return (*map(str, ipv4), *map(str, ipv6))
