# SPDX-License-Identifier: Apache-2.0
"""This node as load balancing sees it, from its Node object, the kernel's addresses and the configuration. Pure."""

from collections.abc import Iterable

from svcproxy.config import DataplaneConfig
from svcproxy.frontends.addresses import canonical
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Node
from svcproxy.model.meta import Family, family_of

_PREFERENCE = ("InternalIP", "ExternalIP")


def node_view(name: str, node: Node | None, addresses: Iterable[str]) -> NodeView:
    """The view of a node whose object may not be known (yet)."""
    return NodeView(
        name=name,
        zone=node.zone if node is not None else None,
        addresses=frozenset(addresses),
        primary_addresses=primary_addresses(node),
    )


def primary_addresses(node: Node | None) -> tuple[str, ...]:
    """The Node's address of each family, an InternalIP before an ExternalIP; what is no address is passed over."""
    listed = [(each.type, canonical(each.address)) for each in (node.status.addresses or ())] if node else []
    chosen: dict[Family, str] = {}
    for wanted in _PREFERENCE:
        for kind, ip in listed:
            if kind == wanted and ip is not None:
                chosen.setdefault(family_of(ip), ip)
    return tuple(chosen[family] for family in sorted(chosen))


def frontend_options(config: DataplaneConfig) -> FrontendOptions:
    """What of the configuration frontends depend on."""
    return FrontendOptions(
        node_port_addresses=config.node_port_addresses,
        external_ips=config.external_ips,
        external_ip_cidrs=config.external_ip_cidrs,
    )
