# SPDX-License-Identifier: Apache-2.0
"""Sharing equal values between decoded objects. Pure.

A cluster repeats itself: node names, namespaces, zones, conditions, ports. Decoding makes a new value each time; here
the equal ones become one, which takes about 300 octets off every endpoint that is kept. The objects are changed in
place, so this is done once, before anyone else has seen them.
"""

from collections.abc import Callable, Hashable
from typing import Any

from msgspec.structs import force_setattr

from svcproxy.model import EndpointSlice, Namespace, Node, Object, ObjectMeta, Pod, Service, ServiceCIDR
from svcproxy.model.service import ServiceMeta
from svcproxy.model.slice import EndpointConditions, SliceMeta

TABLE_LIMIT = 65_536
"""Values remembered at once. A full table is emptied: sharing starts anew, what is shared stays shared."""

_DEFAULT_CONDITIONS = EndpointConditions()


class Interner:
    """A bounded table of values seen before."""

    def __init__(self, limit: int = TABLE_LIMIT) -> None:
        self._limit = limit
        self._values: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._values)

    def share(self, obj: Object) -> None:
        """Replace what `obj` holds by equal values held by objects before it. `obj` stays equal to itself."""
        if len(self._values) >= self._limit:
            self._values.clear()
        match obj:
            case EndpointSlice():
                self._slice(obj)
            case Service():
                self._service(obj)
            case Pod():
                self._meta(obj.metadata)
                if obj.spec.node_name is not None:
                    force_setattr(obj.spec, "node_name", self._value(obj.spec.node_name))
            case Namespace() | Node() | ServiceCIDR():
                self._meta(obj.metadata)

    def _value(self, value: Any) -> Any:
        return self._values.setdefault(value, value)

    def _meta(self, meta: ObjectMeta) -> None:
        share = self._values.setdefault
        force_setattr(meta, "namespace", share(meta.namespace, meta.namespace))
        if (created := meta.creation_timestamp) is not None:
            force_setattr(meta, "creation_timestamp", share(created, created))

    def _service(self, service: Service) -> None:
        meta: ServiceMeta = service.metadata
        self._meta(meta)
        # The name comes back as the label of the Service's slices.
        force_setattr(meta, "name", self._value(meta.name))
        if meta.labels is not None:
            force_setattr(meta, "labels", self._value(meta.labels))
        if service.status is not None:
            force_setattr(service, "status", self._value(service.status))
        spec = service.spec
        for field in ("ip_families", "ports", "internal_traffic_policy", "external_traffic_policy", "session_affinity"):
            if (value := getattr(spec, field)) is not None:
                force_setattr(spec, field, self._value(value))

    def _slice(self, obj: EndpointSlice) -> None:
        share = self._values.setdefault
        meta: SliceMeta = obj.metadata
        self._meta(meta)
        if (labels := meta.labels) is not None:
            _share_field(share, labels, "service_name", labels.service_name)
            _share_field(share, labels, "managed_by", labels.managed_by)
        if (annotations := meta.annotations) is not None:
            force_setattr(meta, "annotations", share(annotations, annotations))
        if (ports := obj.ports) is not None:
            force_setattr(obj, "ports", share(ports, ports))
        for endpoint in obj.endpoints or ():
            # The default is one object already and the commonest case besides "all three set".
            if (conditions := endpoint.conditions) is not _DEFAULT_CONDITIONS:
                force_setattr(endpoint, "conditions", share(conditions, conditions))
            if (node := endpoint.node_name) is not None:
                force_setattr(endpoint, "node_name", share(node, node))
            if (hints := endpoint.hints) is not None:
                force_setattr(endpoint, "hints", share(hints, hints))


def _share_field(share: Callable[[Any, Any], Any], owner: Any, field: str, value: str | None) -> None:
    if value is not None:
        force_setattr(owner, field, share(value, value))
