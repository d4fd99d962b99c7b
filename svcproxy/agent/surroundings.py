# SPDX-License-Identifier: Apache-2.0
"""What the rules of the kernel have to know of node and cluster, from the configuration and the Node object. Pure."""

import ipaddress
from collections.abc import Iterable

from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.frontends.addresses import network
from svcproxy.model import Node


def surroundings(config: DataplaneConfig, node: Node | None, service_cidrs: Iterable[str] = ()) -> Surroundings:
    """`node`: the own Node, if it is known; `service_cidrs`: the cluster's, for a configuration without."""
    mode = config.local_mode
    node_cidrs = (node.spec.pod_cidrs or ()) if node is not None else ()
    interfaces: tuple[str, ...] = ()
    if mode is DetectLocalMode.BRIDGE_INTERFACE and config.pod_bridge_interface is not None:
        interfaces = (config.pod_bridge_interface,)
    elif mode is DetectLocalMode.INTERFACE_NAME_PREFIX and config.pod_interface_name_prefix is not None:
        interfaces = (f"{config.pod_interface_name_prefix}*",)
    return Surroundings(
        pod_cidrs=disjoint(node_cidrs if mode is DetectLocalMode.NODE_CIDR else config.cluster_cidrs),
        pod_interfaces=interfaces,
        service_cidrs=disjoint(config.service_cidrs or service_cidrs),
        masquerade_all=config.masquerade_all,
    )


def disjoint(cidrs: Iterable[str]) -> tuple[str, ...]:
    """The same addresses as canonical CIDRs that do not overlap, sorted; what is no CIDR is passed over."""
    networks = [parsed for cidr in cidrs if (parsed := network(cidr)) is not None]
    fours = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    sixes = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    return (*map(str, fours), *map(str, sixes))
