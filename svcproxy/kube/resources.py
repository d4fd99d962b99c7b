# SPDX-License-Identifier: Apache-2.0
"""Where each kind lives in the API, and what it takes to read it. Pure."""

from dataclasses import dataclass, replace
from typing import Any

from svcproxy.errors import ApiUnavailable
from svcproxy.model import EndpointSlice, Namespace, Node, Pod, Service, ServiceCIDR


class ServerBehind(ApiUnavailable):
    """The server knows less than we do. Reaction: ask another; when all say so for long, etcd has been restored."""


class NotServed(ApiUnavailable):
    """404: the server has no such kind. Reaction: do without, if it is optional; else ask another server."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API serves it, over all namespaces."""

    kind: type[Any]
    group: str
    """API group, empty for core."""
    plural: str
    path: str
    field_selector: str = ""
    optional: bool = False
    """Whether everything works without: not every API server serves it, not every role may read it."""

    @property
    def name(self) -> str:
        """The kind's name, as in `kind:`."""
        return self.kind.__name__

    def not_served(self) -> str:
        """What a 404 means, for people."""
        return f"not served by this API server: resource {self.plural!r} in API group {self.group!r}"

    def missing_rule(self, verb: str) -> str:
        """The RBAC rule that a 403 asks for, for people."""
        group = self.group or '""'
        return f"the role lacks verb {verb!r} on resource {self.plural!r} in API group {group}"


_PODS = Resource(
    Pod,
    "",
    "pods",
    "/api/v1/pods",
    "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown",
)
"""All that run. The API server sends a Pod that no longer does as deleted."""


def resources(node_name: str, *, pods: bool, node_pods: bool = False) -> tuple[Resource, ...]:
    """The kinds that the agent follows; of the Nodes its own alone, Pods only with `pods`, or those of the node with
    `node_pods`."""
    followed = (
        Resource(Service, "", "services", "/api/v1/services"),
        Resource(EndpointSlice, "discovery.k8s.io", "endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"),
        Resource(Namespace, "", "namespaces", "/api/v1/namespaces"),
        Resource(Node, "", "nodes", "/api/v1/nodes", f"metadata.name={node_name}"),
        Resource(
            ServiceCIDR,
            "networking.k8s.io",
            "servicecidrs",
            "/apis/networking.k8s.io/v1/servicecidrs",
            optional=True,
        ),
    )
    if node_pods and not pods:
        selector = f"spec.nodeName={node_name},{_PODS.field_selector}"
        return (*followed, replace(_PODS, field_selector=selector, optional=True))
    return (*followed, _PODS) if pods else followed
