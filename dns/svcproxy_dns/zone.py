# SPDX-License-Identifier: Apache-2.0
"""The cluster's zone: which names exist and what they hold, kept current by records. Pure.

Whether a name exists is decided once, for all types: `lookup` knows no type, and NODATA is a name without the type.
A name exists if it holds something or if one below it does (RFC 8020), but for endpoints without their Service.

Answers are made from sources (`svcproxy_dns.service.Source`), whose revisions tell when they end.
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from svcproxy.model.meta import Family
from svcproxy.names.labels import canonical_ip
from svcproxy.names.records import EndpointRecord, NamespaceRecord, Record, RecordSink, ServiceRecord
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.service import NamespaceNames, ServiceNames, Source, address_sets

DNS_VERSION_LABEL = "dns-version"
"""The name that tells the version of the schema."""
NAME_SERVER_LABELS = ("ns", "dns")
"""The name of the server itself."""


class PodNames(StrEnum):
    """Which names below `pod` exist."""

    DISABLED = "disabled"
    INSECURE = "insecure"
    """Every address in a namespace that exists, as written in the name."""


class Name(msgspec.Struct, frozen=True):
    """A name that exists."""

    source: Source | None
    """What the answers of all types depend on. None: on more than one source; such answers must not be kept."""
    ipv4: AddressSet | None = None
    """Addresses; None and empty both mean none."""
    ipv6: AddressSet | None = None
    alias: str | None = None
    """The target of an ExternalName Service, canonical."""


class Unready(msgspec.Struct, frozen=True):
    """The name may turn out to exist: the first snapshot is not complete."""


UNREADY = Unready()


class Zone(RecordSink):
    """Records in, names out. `domain`: the zone's name in any case."""

    def __init__(
        self,
        domain: str,
        *,
        ttl: int,
        rng: random.Random,
        pods: PodNames = PodNames.INSECURE,
        endpoint_pod_names: bool = False,
        server_addresses: Sequence[str] = (),
    ) -> None:
        self.labels = domain.lower().strip(".").split(".")
        """The zone's own labels."""
        self.ttl = ttl
        self.synced = False
        """Whether a whole snapshot has been taken in once. It stays true: what is known is served."""
        self.revision = 0
        """Grows with every change of what is known."""
        self._rng = rng
        self._pods = pods
        self._endpoint_pod_names = endpoint_pod_names
        self._namespaces: dict[str, NamespaceNames] = {}
        self._static = Source()
        self._server = address_sets(server_addresses, ttl, rng)
        self._seen: set[Record] | None = None
        """While a snapshot is taken: what it has brought, and all that came since."""
        self._counts = {NamespaceRecord: 0, ServiceRecord: 0, EndpointRecord: 0}

    def count(self, kind: type[NamespaceRecord] | type[ServiceRecord] | type[EndpointRecord]) -> int:
        """How many records of a kind are known."""
        return self._counts[kind]

    # Records in

    def begin_snapshot(self) -> None:
        """A full snapshot follows; one that is still being taken or swept is abandoned."""
        self._seen = set()

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        """Take records in and out, in one step as seen by `lookup`."""
        for record in removed:
            self._remove(record)
        for record in added:
            self._add(record)

    def sweep(self, batch: int) -> Iterator[int]:
        """Remove what the snapshot did not bring; looks at no more than `batch` records between two yields.

        Records may change between two yields. A new snapshot ends this sweep.
        """
        seen = self._seen
        if seen is None:
            return
        examined = removed = 0
        for namespace in list(self._namespaces.items()):
            for record in _records_of(*namespace):
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
        self.synced = True
        yield removed

    def _known(self, record: Record) -> bool:
        """Whether a record is held now."""
        if isinstance(record, NamespaceRecord):
            namespace = self._namespaces.get(record.name)
            return namespace is not None and namespace.declared
        service = self._service(record.namespace, record.name)
        if service is None:
            return False
        if isinstance(record, ServiceRecord):
            return record in service.records
        return service.endpoints.find(record) is not None

    def _service(self, namespace: str, name: str) -> ServiceNames | None:
        found = self._namespaces.get(namespace)
        return found.services.get(name) if found is not None else None

    def _add(self, record: Record) -> None:
        held: Record = record
        if isinstance(record, NamespaceRecord):
            if not self._known(record):
                self._namespaces.setdefault(record.name, NamespaceNames()).declare()
                self._altered(NamespaceRecord, 1)
        else:
            namespace = self._namespaces.get(record.namespace)
            if namespace is None:
                namespace = self._namespaces[record.namespace] = NamespaceNames()
            service = namespace.services.get(record.name)
            if service is None:
                service = ServiceNames(record.namespace, record.name, pod_names=self._endpoint_pod_names)
                namespace.services[record.name] = service
            revision, known = service.revision, len(service.records)
            if isinstance(record, EndpointRecord):
                held = service.add(record)
                if service.revision != revision:
                    self._altered(EndpointRecord, 1)
            else:
                service.put(record)
                if not known:
                    namespace.count_services(1)
                if service.revision != revision:
                    self._altered(ServiceRecord, len(service.records) - known)
        if self._seen is not None:
            self._seen.add(held)

    def _remove(self, record: Record) -> None:
        if self._seen is not None:
            self._seen.discard(record)
        if not self._known(record):
            return
        if isinstance(record, NamespaceRecord):
            namespace, name = self._namespaces[record.name], record.name
            namespace.retract()
        else:
            namespace, name = self._namespaces[record.namespace], record.namespace
            service = namespace.services[record.name]
            if isinstance(record, ServiceRecord):
                service.drop(record)
                if not service.records:
                    namespace.count_services(-1)
            else:
                service.discard(record)
            if service.empty:
                del namespace.services[record.name]
        if namespace.empty:
            del self._namespaces[name]
        self._altered(type(record), -1)

    def _altered(self, kind: type[Record], change: int) -> None:
        self._counts[kind] += change
        self.revision += 1

    # Names out

    def lookup(self, labels: Sequence[str]) -> Name | Unready | None:
        """The name with these labels left of the zone, lower case; None if it does not exist."""
        if not labels:
            return Name(self._static)
        match labels[-1]:
            case "svc":
                return self._lookup_service(labels[:-1])
            case "pod":
                return self._lookup_pod(labels[:-1])
            case "dns":
                if len(labels) == 1:
                    return Name(self._static)
                return Name(self._static, *self._server) if tuple(labels) == NAME_SERVER_LABELS else None
            case "dns-version":
                return Name(self._static) if len(labels) == 1 else None
            case _:
                return None

    def _absent(self) -> Unready | None:
        return None if self.synced else UNREADY

    def _lookup_service(self, labels: Sequence[str]) -> Name | Unready | None:
        if not labels:
            return Name(self._static)
        namespace = self._namespaces.get(labels[-1])
        if namespace is None or not namespace.exists:
            return self._absent()
        if len(labels) == 1:
            return Name(namespace)
        service = namespace.services.get(labels[-2])
        record = service.record if service is not None else None
        if service is None or record is None or not service.exists:
            return self._absent()
        if record.headless and not self.synced:
            return UNREADY  # a part of the addresses is not an answer
        if len(labels) == 2:
            return Name(service, *service.addresses(self.ttl, self._rng), alias=record.external_name)
        if record.external_name is not None:
            return None
        return self._lookup_below(service, labels[:-2])

    def _lookup_below(self, service: ServiceNames, labels: Sequence[str]) -> Name | Unready | None:
        """Names of ports and endpoints."""
        if len(labels) == 2:
            return Name(service) if service.has_port(*labels) else self._absent()
        if len(labels) > 2:
            return None
        label = labels[0]
        if label.startswith("_"):
            return Name(service) if service.has_protocol(label) else self._absent()
        endpoints = service.endpoints.labelled(label)
        if not endpoints or not self.synced:
            return self._absent()
        return Name(service, *address_sets([endpoint.ip for endpoint in endpoints], self.ttl, self._rng))

    def _lookup_pod(self, labels: Sequence[str]) -> Name | Unready | None:
        if not labels:
            return Name(self._static)
        if self._pods is PodNames.DISABLED or len(labels) > 2:
            return None
        namespace = self._namespaces.get(labels[-1])
        if namespace is None or not namespace.exists:
            return self._absent()
        if len(labels) == 1:
            return Name(namespace)
        ip = pod_address(labels[0])
        return Name(None, *address_sets((ip,), self.ttl, self._rng)) if ip is not None else None


def pod_address(label: str) -> str | None:
    """The canonical address that a pod's label spells: three single dashes make it IPv4."""
    if label.count("-") == 3 and "--" not in label:
        return canonical_ip(label.replace("-", "."), Family.IPV4)
    return canonical_ip(label.replace("-", ":"), Family.IPV6)


def _records_of(name: str, namespace: NamespaceNames) -> Iterator[Record]:
    """The records known of a namespace, each Service's as they stood when it came up."""
    if namespace.declared:
        yield NamespaceRecord(name)
    for service in list(namespace.services.values()):
        yield from list(service.records)
        yield from list(service.endpoints)
