# SPDX-License-Identifier: Apache-2.0
"""What the rules of a kernel data plane have to know of node and cluster, from configuration and objects. Pure.

Objects come from outside, so they are held against what is known for sure: a range of Services that would silence pods
or this node is not taken.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.frontends.addresses import Network, canonical, host_network, network
from svcproxy.model import Node, ServiceCIDR
from svcproxy.model.meta import Family, family_of

_EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


@dataclass(frozen=True, slots=True)
class Derived:
    """What follows from configuration and objects. CIDRs are canonical, sorted, and do not overlap."""

    surroundings: Surroundings
    hairpin_cidrs: tuple[str, ...]
    """Where pods of this node have addresses; empty: anywhere."""
    warnings: tuple[str, ...]
    """What is not as it should be, for people."""


def derive(config: DataplaneConfig, node: Node | None, service_cidrs: Iterable[ServiceCIDR]) -> Derived:
    """What holds for the own Node, None while it is not known, and the ServiceCIDRs there are.

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
    ranges = _networks(_service_cidrs(config, service_cidrs if node is not None else ()), warnings)
    surroundings = Surroundings(
        pod_cidrs=_collapsed(of_node if by_node else of_cluster),
        pod_interfaces=config.pod_interfaces,
        service_cidrs=_collapsed(_without(taken, ranges, warnings)),
        masquerade_all=config.masquerade_all,
    )
    # Where podCIDRs do not say what is a pod, they may be unused: CNIs with address management of their own leave
    # them as they are.
    return Derived(surroundings, _hairpin_cidrs(of_node) if by_node else (), tuple(warnings))


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
