# SPDX-License-Identifier: Apache-2.0
"""What the cluster says: Kubernetes objects as frozen structs that hold only the fields used. Pure.

The structs mirror the API's JSON, so bytes decode straight into them (`svcproxy.kube.decoding`). A field that the API
may omit or send as null is `None` here; what an absent value means is decided where it is used. Structs are `gc=False`:
they hold no cycles, and a hundred thousand of them must not slow the collector.
"""

from svcproxy.model.changes import Changes
from svcproxy.model.meta import NamespacedName, ObjectMeta
from svcproxy.model.namespace import Namespace
from svcproxy.model.node import Node
from svcproxy.model.pod import Pod
from svcproxy.model.service import Service, ServicePort, ServiceType
from svcproxy.model.service_cidr import ServiceCIDR
from svcproxy.model.slice import AddressType, Endpoint, EndpointConditions, EndpointPort, EndpointSlice
from svcproxy.model.store import Store, Touched

Object = Service | EndpointSlice | Node | Namespace | Pod | ServiceCIDR

__all__ = [
    "AddressType",
    "Changes",
    "Endpoint",
    "EndpointConditions",
    "EndpointPort",
    "EndpointSlice",
    "Namespace",
    "NamespacedName",
    "Node",
    "Object",
    "ObjectMeta",
    "Pod",
    "Service",
    "ServiceCIDR",
    "ServicePort",
    "ServiceType",
    "Store",
    "Touched",
]
