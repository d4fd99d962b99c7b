# SPDX-License-Identifier: Apache-2.0
"""core/v1 Node: only the agent's own is watched, for addresses, zone, pod CIDRs and eligibility."""

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta


class NodeLabels(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The labels used."""

    zone: str | None = msgspec.field(default=None, name="topology.kubernetes.io/zone")


class NodeMeta(ObjectMeta, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """Metadata of a Node."""

    labels: NodeLabels | None = None


class NodeAddress(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One address of a Node."""

    type: str
    """`InternalIP`, `ExternalIP`, `Hostname`, …"""
    address: str


class Taint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One taint of a Node."""

    key: str


class NodeSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The part of a Node's spec that is used."""

    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")
    taints: tuple[Taint, ...] | None = None


class NodeStatus(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The part of a Node's status that is used."""

    addresses: tuple[NodeAddress, ...] | None = None


class Node(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A Node."""

    metadata: NodeMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key

    @property
    def zone(self) -> str | None:
        """The zone label; an empty label is none."""
        return (self.metadata.labels.zone or None) if self.metadata.labels else None
