# SPDX-License-Identifier: Apache-2.0
"""What is known of the cluster: records in, kept by namespace, Service and address. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from svcproxy.config import PodNames
from svcproxy.names.records import (
    EndpointRecord,
    NamespaceRecord,
    NodePodRecord,
    PodRecord,
    Record,
    RecordSink,
    ServiceRecord,
)
from svcproxy_dns.reverse import ReverseIndex
from svcproxy_dns.service import NamespaceNames, ServiceNames


@dataclass(frozen=True, slots=True)
class Schema:
    """Which names are made of what is known."""

    pods: PodNames = PodNames.INSECURE
    endpoint_pod_names: bool = False
    """Whether endpoints without a hostname are called after their Pod."""
    ignore_empty_service: bool = False
    """Whether a Service with cluster IPs does not exist while it has no ready endpoint."""
    namespaces: frozenset[str] = frozenset()
    """The namespaces that exist, if they are there; empty: all."""


class Contents(RecordSink):
    """The records known, and the sources of answers made of them."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.synced = False
        """Whether a whole snapshot has been taken in once. It stays true: what is known is served."""
        self.revision = 0
        """Grows with every change of what is known."""
        self.namespaces: dict[str, NamespaceNames] = {}
        self.addresses = ReverseIndex(self.service)
        self._node_pods: dict[str, NodePodRecord] = {}
        """By address."""
        self._seen: set[Record] | None = None
        """While a snapshot is taken: what it has brought, and all that came since."""
        self._counts: dict[type[Record], int] = dict.fromkeys(get_args(Record), 0)

    def count(self, kind: type[Record]) -> int:
        """How many records of a kind are known."""
        return len(self._node_pods) if kind is NodePodRecord else self._counts[kind]

    def service(self, namespace: str, name: str) -> ServiceNames | None:
        """The Service of this key, as far as anything is known of it."""
        found = self.namespaces.get(namespace)
        return found.services.get(name) if found is not None else None

    def pod_of(self, ip: str) -> tuple[str, str] | None:
        """Namespace and name of the Pod that has an address, as far as it is known by its name."""
        if (known := self._node_pods.get(ip)) is not None:
            return known.namespace, known.name
        for _, endpoint in self.addresses.endpoints(ip):
            if endpoint.pod:
                return endpoint.namespace, endpoint.pod
        return None

    def begin_snapshot(self) -> None:
        """A full snapshot follows; one that is still being taken or swept is abandoned."""
        self._seen = set()

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        """Take records in and out, in one step as seen by whoever looks up."""
        for record in removed:
            self._remove(record)
        for record in added:
            if self._served(record):
                self._add(record)

    def sweep(self, batch: int) -> Iterator[int]:
        """Remove what the snapshot did not bring; looks at no more than `batch` records between two yields.

        Records may change between two yields. A new snapshot ends this sweep.
        """
        seen = self._seen
        if seen is None:
            return
        examined = removed = 0
        for record in self._records():
            if record not in seen and self._known(record):
                self._remove(record)
                removed += 1
            examined += 1
            if examined == batch:
                yield removed
                examined = removed = 0
                if self._seen is not seen:
                    return
        self._seen = None
        while seen:  # freed at once, 100,000 records hold everything up for 10 ms
            for _ in range(min(batch, len(seen))):
                seen.pop()
            yield 0
        self.synced = True
        yield removed

    def _records(self) -> Iterator[Record]:
        """All that are known, each as it stood when it came up."""
        for name, namespace in list(self.namespaces.items()):
            yield from _records_of(name, namespace)
        yield from list(self._node_pods.values())

    def _served(self, record: Record) -> bool:
        """Whether the schema has a use for a record."""
        if isinstance(record, PodRecord) and self.schema.pods is not PodNames.VERIFIED:
            return False
        if isinstance(record, NodePodRecord):
            return True
        namespace = record.name if isinstance(record, NamespaceRecord) else record.namespace
        return not self.schema.namespaces or namespace in self.schema.namespaces

    def _known(self, record: Record) -> bool:
        """Whether a record is held now."""
        if isinstance(record, NodePodRecord):
            return self._node_pods.get(record.ip) == record
        if isinstance(record, NamespaceRecord | PodRecord):
            namespace = self.namespaces.get(record.name if isinstance(record, NamespaceRecord) else record.namespace)
            if namespace is None:
                return False
            return namespace.declared if isinstance(record, NamespaceRecord) else record.ip in namespace.pods
        service = self.service(record.namespace, record.name)
        if service is None:
            return False
        if isinstance(record, ServiceRecord):
            return record in service.records
        return service.endpoints.find(record) is not None

    def _namespace(self, name: str) -> NamespaceNames:
        namespace = self.namespaces.get(name)
        if namespace is None:
            namespace = self.namespaces[name] = NamespaceNames()
        return namespace

    def _add(self, record: Record) -> None:
        if isinstance(record, EndpointRecord | ServiceRecord):
            record = self._add_to_service(record)
        elif isinstance(record, NodePodRecord):
            self._node_pods[record.ip] = record
        elif not self._known(record):
            if isinstance(record, NamespaceRecord):
                self._namespace(record.name).declare()
            else:
                self._namespace(record.namespace).pods.add(record.ip)
            self._altered(type(record), 1)
        if self._seen is not None:
            self._seen.add(record)

    def _add_to_service(self, record: EndpointRecord | ServiceRecord) -> Record:
        """Take a record in and return it as it is held."""
        namespace = self._namespace(record.namespace)
        service = namespace.services.get(record.name)
        if service is None:
            schema = self.schema
            service = namespace.services[record.name] = ServiceNames(
                record.namespace,
                record.name,
                pod_names=schema.endpoint_pod_names,
                hidden_empty=schema.ignore_empty_service,
            )
        revision, known = service.revision, len(service.records)
        if isinstance(record, EndpointRecord):
            record = service.add(record)
            if service.revision != revision:
                self.addresses.add(record)
                self._altered(EndpointRecord, 1)
            return record
        before = service.record
        service.put(record)
        if not known:
            namespace.count_services(1)
        if service.revision != revision:
            self.addresses.change_service(service, before, service.record)
            self._altered(ServiceRecord, len(service.records) - known)
        return record

    def _remove(self, record: Record) -> None:
        if self._seen is not None:
            self._seen.discard(record)
        if not self._known(record):
            return
        if isinstance(record, NodePodRecord):
            del self._node_pods[record.ip]
            return
        name = record.name if isinstance(record, NamespaceRecord) else record.namespace
        namespace = self.namespaces[name]
        if isinstance(record, NamespaceRecord):
            namespace.retract()
        elif isinstance(record, PodRecord):
            namespace.pods.discard(record.ip)
        else:
            self._remove_from_service(namespace, record)
        if namespace.empty:
            del self.namespaces[name]
        self._altered(type(record), -1)

    def _remove_from_service(self, namespace: NamespaceNames, record: EndpointRecord | ServiceRecord) -> None:
        service = namespace.services[record.name]
        if isinstance(record, EndpointRecord):
            service.discard(record)
            self.addresses.discard(record)
        else:
            before = service.record
            service.drop(record)
            self.addresses.change_service(service, before, service.record)
            if not service.records:
                namespace.count_services(-1)
        if service.empty:
            del namespace.services[record.name]

    def _altered(self, kind: type[Record], change: int) -> None:
        self._counts[kind] += change
        self.revision += 1


def _records_of(name: str, namespace: NamespaceNames) -> Iterator[Record]:
    """The records known of a namespace, each Service's as they stood when it came up."""
    if namespace.declared:
        yield NamespaceRecord(name)
    for service in list(namespace.services.values()):
        yield from list(service.records)
        yield from list(service.endpoints)
    for ip in list(namespace.pods):
        yield PodRecord(name, ip)
