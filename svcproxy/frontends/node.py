# SPDX-License-Identifier: Apache-2.0
"""What the node itself contributes to the choice of frontends and backends."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeView:
    """This node as load balancing sees it. A new value is a new input to `FrontendBuilder.node_changed`."""

    name: str
    zone: str | None = None
    addresses: frozenset[str] = frozenset()
    """Every address the kernel calls local, canonical (rtnetlink), loopback included."""
    primary_addresses: tuple[str, ...] = ()
    """The Node object's address of each family (InternalIP before ExternalIP), canonical."""
