# SPDX-License-Identifier: Apache-2.0
"""networking/v1 ServiceCIDR: the ranges that ClusterIPs are taken from. Kubernetes before 1.33 has none."""

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta


class ServiceCIDRSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The spec."""

    cidrs: tuple[str, ...] | None = None
    """One of each family at most."""


class ServiceCIDR(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A ServiceCIDR. One that is being deleted counts until it is gone: Services may still have addresses of it."""

    metadata: ObjectMeta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key
