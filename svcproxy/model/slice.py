# SPDX-License-Identifier: Apache-2.0
"""discovery.k8s.io/v1 EndpointSlice."""

from enum import StrEnum

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta, PortNumber, Protocol


class AddressType(StrEnum):
    """`addressType`; FQDN slices are decoded and never used."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"
    FQDN = "FQDN"


class SliceLabels(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The labels used."""

    service_name: str | None = msgspec.field(default=None, name="kubernetes.io/service-name")
    managed_by: str | None = msgspec.field(default=None, name="endpointslice.kubernetes.io/managed-by")


class SliceAnnotations(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The annotations used."""

    trigger_time: str | None = msgspec.field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")
    """RFC 3339: when the Pod or Service change happened that led to this slice."""


class SliceMeta(ObjectMeta, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """Metadata of an EndpointSlice."""

    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class EndpointConditions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`endpoints[].conditions` as sent; the properties apply the API's defaults for null."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    @property
    def is_ready(self) -> bool:
        """Null means true."""
        return self.ready is not False

    @property
    def is_serving(self) -> bool:
        """Null means true, whatever `ready` says."""
        return self.serving is not False

    @property
    def is_terminating(self) -> bool:
        """Null means false."""
        return self.terminating is True


class HintTarget(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One entry of `hints.forZones` or `hints.forNodes`."""

    name: str


class EndpointHints(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """`endpoints[].hints`; absent and empty lists both mean no hint."""

    for_zones: tuple[HintTarget, ...] | None = None
    for_nodes: tuple[HintTarget, ...] | None = None


class TargetRef(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The Pod behind an endpoint."""

    name: str = ""


class Endpoint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """One endpoint of a slice; only its first address is used (discovery/v1 makes more undefined)."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    hints: EndpointHints | None = None
    target_ref: TargetRef | None = None


class EndpointPort(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """One port that all endpoints of a slice offer. A null name or port makes the entry unusable."""

    name: str | None = None
    port: PortNumber | None = None
    protocol: Protocol | None = None
    """Null means TCP."""


class EndpointSlice(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """An EndpointSlice."""

    metadata: SliceMeta
    address_type: AddressType
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key

    @property
    def service(self) -> NamespacedName | None:
        """The Service that the slice belongs to by its label, None without one."""
        labels = self.metadata.labels
        if labels is None or not labels.service_name:
            return None
        return NamespacedName(self.metadata.namespace, labels.service_name)
