# SPDX-License-Identifier: Apache-2.0
"""Records from the store, kept current by deltas. Pure.

Every object contributes records on its own: a slice without its Service and a Service without slices are fine in
whichever order they arrive, and what a Service's endpoints mean is left to whoever answers. A record that several
slices say is counted, and leaves with the last of them; the counts of one update are settled together, so an endpoint
that moves between slices in it never goes.

Memory: a record shares its strings with the store and its ports with its slice.
"""

from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass

from svcproxy.errors import Problem
from svcproxy.model import (
    AddressType,
    Endpoint,
    EndpointSlice,
    NamespacedName,
    Pod,
    Service,
    ServiceType,
    Store,
    Touched,
)
from svcproxy.model.meta import Family, Protocol, family_of
from svcproxy.model.store import SliceChange
from svcproxy.names.labels import canonical_ip, canonical_target, is_label
from svcproxy.names.records import (
    EndpointRecord,
    NamedPort,
    NamespaceRecord,
    NodePodRecord,
    PodRecord,
    Record,
    ServiceRecord,
)

PROBLEMS_PER_OBJECT = 4
"""Problems kept of one object; a broken slice can have a thousand of the same kind."""

ObjectKey = tuple[str, NamespacedName]
"""Kind and key."""

_ENDED = {"Succeeded", "Failed"}
"""Phases of Pods whose addresses may be another's already."""
FAMILIES = {AddressType.IPV4: Family.IPV4, AddressType.IPV6: Family.IPV6}


Net = dict[Record, int]
"""How many more objects say each record than before; fewer, if it is negative."""


@dataclass(frozen=True, slots=True)
class RecordDelta:
    """Records that came and records that went. None is in both."""

    added: tuple[Record, ...] = ()
    removed: tuple[Record, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class NameBuilder:
    """Derives the records of a store. One `update` for each `Touched`, in order; each costs its own objects alone."""

    def __init__(self, store: Store, *, pod_names: bool = True, node_pods: str = "") -> None:
        """`pod_names`: there are names of Pods. `node_pods`: the node whose Pods are known by their own names too."""
        self._pod_names = pod_names
        self._node_pods = node_pods
        self._counts: dict[Record, int] = {}
        self._problems: dict[ObjectKey, tuple[Problem, ...]] = {}
        self.update(_everything(store))

    def records(self) -> KeysView[Record]:
        """The records in force: a live view. Copy it to go on past an `update`."""
        return self._counts.keys()

    @property
    def problems(self) -> Mapping[ObjectKey, Sequence[Problem]]:
        """What was left out, by object; gone when the object is mended or removed."""
        return self._problems

    def update(self, touched: Touched) -> RecordDelta:
        """Take in what the store says has changed and return what that does to the records."""
        return self.settle(self.count(touched))

    def says(self, record: Record) -> int:
        """How many objects say a record."""
        return self._counts.get(record, 0)

    def count(self, touched: Touched) -> Net:
        """What the store says has changed, as the first half of `update`. Whoever calls it calls `settle` next."""
        net: Net = {}
        for old_namespace, new_namespace in touched.namespaces:
            if old_namespace is not None:
                _count(net, NamespaceRecord(old_namespace.metadata.name), -1)
            if new_namespace is not None:
                _count(net, NamespaceRecord(new_namespace.metadata.name), 1)
        for old_service, new_service in touched.services:
            self._update_service(net, old_service, new_service)
        for change in touched.slices:
            self._update_slice(net, change)
        for old_pod, new_pod in touched.pods:
            for pod_record in self._pod_records(old_pod):
                _count(net, pod_record, -1)
            for pod_record in self._pod_records(new_pod):
                _count(net, pod_record, 1)
        return net

    def _update_service(self, net: Net, old: Service | None, new: Service | None) -> None:
        if old is not None:
            self._problems.pop(("Service", old.key), None)
            if (record := _service_record(old, [])) is not None:
                _count(net, record, -1)
        if new is not None:
            problems: list[Problem] = []
            if (record := _service_record(new, problems)) is not None:
                _count(net, record, 1)
            self._report(("Service", new.key), problems)

    def _update_slice(self, net: Net, change: SliceChange) -> None:
        key = ("EndpointSlice", NamespacedName(change.service.namespace, change.name))
        old, new = entries(change.old), entries(change.new)
        if key not in self._problems and _same_frame(change.old, change.new):
            old, new = differing(old, new)
        if change.old is not None:
            self._problems.pop(key, None)
            for record in _endpoint_records(change.service, change.old, old, []):
                _count(net, record, -1)
        if change.new is not None:
            problems: list[Problem] = []
            for record in _endpoint_records(change.service, change.new, new, problems):
                _count(net, record, 1)
            self._report(key, problems)

    def _pod_records(self, pod: Pod | None) -> Iterator[PodRecord | NodePodRecord]:
        """Records for each address of a Pod that has not ended and is not about to."""
        if pod is None or pod.status.phase in _ENDED or pod.metadata.deletion_timestamp is not None:
            return
        named = bool(self._node_pods) and pod.spec.node_name == self._node_pods and not pod.spec.host_network
        for address in pod.status.pod_ips or ():
            ip = canonical_ip(address.ip, family_of(address.ip))
            if ip is not None and self._pod_names:
                yield PodRecord(pod.metadata.namespace, ip)
            if ip is not None and named:
                yield NodePodRecord(pod.metadata.namespace, ip, pod.metadata.name)

    def _report(self, key: ObjectKey, problems: Sequence[Problem]) -> None:
        if problems:
            self._problems[key] = tuple(problems[:PROBLEMS_PER_OBJECT])

    def settle(self, net: Net) -> RecordDelta:
        """Put counts in force and return what that does to the records, as the second half of `update`."""
        added: list[Record] = []
        removed: list[Record] = []
        for record, change in net.items():
            before = self._counts.get(record, 0)
            after = before + change
            if after:
                self._counts[record] = after
                if not before:
                    added.append(record)
            elif before:
                del self._counts[record]
                removed.append(record)
        return RecordDelta(tuple(added), tuple(removed))


def _everything(store: Store) -> Touched:
    """All of the store as if it had just appeared."""
    touched = Touched()
    touched.namespaces.extend((None, namespace) for namespace in store.namespaces.values())
    touched.services.extend((None, service) for service in store.services.values())
    for found in store.slices.values():
        if (service := found.service) is not None:
            touched.slices.append(SliceChange(service, found.metadata.name, None, found))
    touched.pods.extend((None, pod) for pod in store.pods.values())
    return touched


def _count(net: Net, record: Record, change: int) -> None:
    net[record] = net.get(record, 0) + change


def _service_record(service: Service, problems: list[Problem]) -> ServiceRecord | None:
    """The record of a Service, None if DNS cannot know it."""
    meta, spec = service.metadata, service.spec
    for path, label in (("metadata.name", meta.name), ("metadata.namespace", meta.namespace)):
        if not is_label(label):
            problems.append(Problem(f"{label!r} is not a DNS label", path=path))
            return None
    if spec.type is ServiceType.EXTERNAL_NAME:
        target = canonical_target(spec.external_name or "")
        if target is None:
            problems.append(Problem(f"{spec.external_name!r} is not a host name", path="spec.externalName"))
            return None
        return ServiceRecord(meta.namespace, meta.name, external_name=target)
    ports = tuple(sorted({NamedPort(port.name, port.protocol, port.port) for port in spec.ports or () if port.port}))
    if service.headless:
        return ServiceRecord(meta.namespace, meta.name, ports=ports)
    cluster_ips = tuple(_cluster_ips(service, problems))
    return ServiceRecord(meta.namespace, meta.name, cluster_ips, ports, address_pending=not cluster_ips)


def _cluster_ips(service: Service, problems: list[Problem]) -> Iterator[str]:
    spec = service.spec
    for text in spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ()):
        ip = canonical_ip(text, family_of(text))
        if ip is None:
            problems.append(Problem(f"{text!r} is not an IP address", path="spec.clusterIPs"))
        else:
            yield ip


def entries(found: EndpointSlice | None) -> Sequence[Endpoint]:
    """The endpoints of a slice."""
    return (found.endpoints or ()) if found is not None else ()


def _same_frame(old: EndpointSlice | None, new: EndpointSlice | None) -> bool:
    """Whether an endpoint that is equal in both gives equal records in both."""
    return old is not None and new is not None and old.ports == new.ports and old.address_type == new.address_type


def differing(old: Sequence[Endpoint], new: Sequence[Endpoint]) -> tuple[Sequence[Endpoint], Sequence[Endpoint]]:
    """Both without their common beginning and end: an event seldom changes more than a few endpoints in a row."""
    shorter = min(len(old), len(new))
    start = 0
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return old[start : len(old) - end], new[start : len(new) - end]


def _endpoint_records(
    service: NamespacedName, found: EndpointSlice, endpoints: Sequence[Endpoint], problems: list[Problem]
) -> Iterator[EndpointRecord]:
    """A record for each ready endpoint of these; FQDN slices have none."""
    family = FAMILIES.get(found.address_type)
    if family is None:
        return
    ports = tuple(
        sorted(
            {
                NamedPort(port.name, port.protocol or Protocol.TCP, port.port or 0)
                for port in found.ports or ()
                if port.name is not None
            }
        )
    )
    namespace, name = service.namespace, service.name
    for endpoint in endpoints:
        if not endpoint.conditions.is_ready:
            continue
        text = endpoint.addresses[0] if endpoint.addresses else ""
        ip = canonical_ip(text, family)
        if ip is None:
            problems.append(Problem(f"{text!r} is not an {family.label} address", path="endpoints[].addresses[0]"))
            continue
        hostname = endpoint.hostname or ""
        if hostname and not is_label(hostname):
            problems.append(Problem(f"{hostname!r} is not a DNS label", path="endpoints[].hostname"))
            hostname = ""
        pod = endpoint.target_ref.name if endpoint.target_ref is not None else ""
        yield EndpointRecord(namespace, name, ip, hostname, pod, ports)
