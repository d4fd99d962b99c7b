# SPDX-License-Identifier: Apache-2.0
"""core/v1 Pod: what DNS pod names verified against running pods need."""

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta


class PodSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """The part of a Pod's spec that is used."""

    node_name: str | None = None
    host_network: bool | None = None


class PodAddress(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One address of a Pod."""

    ip: str


class PodStatus(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The part of a Pod's status that is used."""

    phase: str | None = None
    pod_ips: tuple[PodAddress, ...] | None = msgspec.field(default=None, name="podIPs")


class Pod(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key
