# SPDX-License-Identifier: Apache-2.0
"""Who has which address in the cluster. Each cluster has network namespaces of its own, so all have the same ones."""

from dataclasses import dataclass

CONTROL_PLANE = ("10.77.0.10", "fd00:77::10")
GATEWAY = ("10.77.0.1", "fd00:77::1")
"""The bridge that joins all."""
OUTSIDE = ("10.77.0.200", "fd00:77::200")
"""A host beside the cluster."""
POD_CIDRS = ("10.244.0.0/16", "fd00:244::/48")
CLUSTER_DNS = "10.96.0.10"
"""The address of the Service kube-dns, which pods have in their resolv.conf."""
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. `number` is 1 to 99."""

    number: int

    @property
    def name(self) -> str:
        """Of the Node and of the host."""
        return f"node{self.number}"

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6."""
        return f"10.77.0.{100 + self.number}", f"fd00:77::{100 + self.number}"

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        """IPv4 and IPv6."""
        return f"10.244.{self.number}.0/24", f"fd00:244:0:{self.number}::/64"

    @property
    def token(self) -> str:
        """What its kubelet shows the API server."""
        return f"token-of-{self.name}"
