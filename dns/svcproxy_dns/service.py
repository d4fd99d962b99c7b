# SPDX-License-Identifier: Apache-2.0
"""What DNS knows of one namespace and of one Service. Pure.

Both are *sources* of answers: `revision` grows whenever an answer made from them may no longer be right, so whoever
keeps an answer keeps the revision with it and compares.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from svcproxy.model.meta import Protocol
from svcproxy.names.labels import address_label, is_label, labelled_addresses
from svcproxy.names.records import EndpointRecord, NamedPort, ServiceRecord
from svcproxy_dns.groups import Groups
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.wire import RRType

_PROTOCOLS = {f"_{protocol.lower()}": protocol for protocol in Protocol}


class Source:
    """Where an answer comes from."""

    __slots__ = ("revision",)

    def __init__(self) -> None:
        self.revision = 0


class EndpointIndex:
    """The endpoints of a Service by what their label is made of: hostname, Pod name or address.

    Addresses hold dots or colons and labels do not, so one dictionary serves; it shares its keys with the records.
    """

    __slots__ = ("_groups", "_pod_names")

    def __init__(self, *, pod_names: bool) -> None:
        self._pod_names = pod_names
        self._groups: Groups[str, EndpointRecord] = Groups()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __iter__(self) -> Iterator[EndpointRecord]:
        return iter(self._groups)

    def _key(self, record: EndpointRecord) -> str:
        return record.hostname or (record.pod if self._pod_names and is_label(record.pod) else record.ip)

    def label(self, record: EndpointRecord) -> str:
        """The label of an endpoint below its Service."""
        key = self._key(record)
        return address_label(key) if key is record.ip else key

    def find(self, record: EndpointRecord) -> EndpointRecord | None:
        """The held record equal to this one."""
        return self._groups.find(self._key(record), record)

    def add(self, record: EndpointRecord) -> None:
        """Take in a record that is not held."""
        self._groups.add(self._key(record), record)

    def discard(self, record: EndpointRecord) -> None:
        """Take out a record that is held."""
        self._groups.discard(self._key(record), record)

    def labelled(self, label: str) -> Sequence[EndpointRecord]:
        """The endpoints that have this label."""
        if "." in label or ":" in label:
            return ()
        found = self._groups.get(label)
        if "-" not in label:
            return found
        ipv4, ipv6 = labelled_addresses(label)
        return (*found, *self._groups.get(ipv4), *self._groups.get(ipv6))


class Targets(NamedTuple):
    """What SRV tells of endpoints."""

    weight: int
    """Of each record: 100 shared by the addresses and ports, at least 1."""
    ports: Iterable[tuple[int, str]]
    """(port, label), each once."""
    addresses: Iterable[tuple[str, str]]
    """(label, canonical address), each once."""


PortKey = tuple[str, Protocol]
"""Name and protocol of a port."""


def port_key(port_label: str, protocol_label: str) -> PortKey | None:
    """The port that `_port._proto` names; None if these labels cannot name one."""
    protocol = _PROTOCOLS.get(protocol_label)
    if protocol is None or len(port_label) < 2 or port_label[0] != "_":
        return None
    return port_label[1:], protocol


class ServiceNames(Source):
    """The names of one Service: its own, its ports' and its endpoints'."""

    __slots__ = (
        "_addresses",
        "_hidden_empty",
        "_port_lists",
        "_records",
        "endpoints",
        "follows_endpoints",
        "name",
        "namespace",
        "needs_endpoints",
        "record",
    )

    def __init__(self, namespace: str, name: str, *, pod_names: bool = False, hidden_empty: bool = False) -> None:
        """`pod_names`: endpoints without a hostname are called after their Pod. `hidden_empty`: a Service with cluster
        IPs does not exist either while it has no ready endpoint."""
        super().__init__()
        self.namespace = namespace
        self.name = name
        self.endpoints = EndpointIndex(pod_names=pod_names)
        self.record: ServiceRecord | None = None
        """The Service, None while only endpoints of it are known."""
        self.follows_endpoints = False
        """Whether the Service's name stands for its endpoints."""
        self.needs_endpoints = False
        """Whether the Service's name exists only while there are endpoints."""
        self._hidden_empty = hidden_empty
        self._records: tuple[ServiceRecord, ...] = ()
        """The one in force is the last."""
        self._port_lists: dict[tuple[NamedPort, ...], int] = {}
        """How many endpoints have this list of ports; Services have a handful of lists however many endpoints."""
        self._addresses: tuple[AddressSet, AddressSet] | None = None
        """A and AAAA of the Service's own name, made when it is first asked for and kept current from then on."""

    @property
    def records(self) -> Sequence[ServiceRecord]:
        """Every record known of the Service."""
        return self._records

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return not self._records and not self.endpoints

    @property
    def exists(self) -> bool:
        """Whether the Service's name exists: a headless Service without a ready endpoint does not (DNS spec §2.4.1)."""
        return self.record is not None and (not self.needs_endpoints or bool(self.endpoints))

    @property
    def is_alias(self) -> bool:
        """Whether the Service is of type ExternalName."""
        record = self.record
        return record is not None and record.external_name is not None

    @property
    def labels(self) -> tuple[str, str, str]:
        """The Service's own name, left of the zone."""
        return self.name, self.namespace, "svc"

    def put(self, record: ServiceRecord) -> None:
        """Put a record in force."""
        if self.record != record:
            self._records = (*(other for other in self._records if other != record), record)
            self._change_record()

    def drop(self, record: ServiceRecord) -> None:
        """Take out a record that is held."""
        in_force = self.record == record
        self._records = tuple(other for other in self._records if other != record)
        if in_force:
            self._change_record()

    def _change_record(self) -> None:
        record = self.record = self._records[-1] if self._records else None
        self.follows_endpoints = record is not None and record.headless
        alias = record is not None and record.external_name is not None
        self.needs_endpoints = self.follows_endpoints or (self._hidden_empty and not alias)
        self.revision += 1
        self._addresses = None

    def add(self, record: EndpointRecord) -> EndpointRecord:
        """Take in an endpoint and return it as it is held: strings and ports shared with the Service's others."""
        if (held := self.endpoints.find(record)) is not None:
            return held
        ports = next((ports for ports in self._port_lists if ports == record.ports), record.ports)
        held = EndpointRecord(self.namespace, self.name, record.ip, record.hostname, record.pod, ports)
        self.endpoints.add(held)
        self._port_lists[ports] = self._port_lists.get(ports, 0) + 1
        self.revision += 1
        if self._addresses is not None and self.follows_endpoints:
            self._addresses[":" in held.ip].add(held.ip)
        return held

    def discard(self, record: EndpointRecord) -> bool:
        """Take out an endpoint; False if it is not held."""
        if self.endpoints.find(record) is None:
            return False
        self.endpoints.discard(record)
        left = self._port_lists[record.ports] - 1
        if left:
            self._port_lists[record.ports] = left
        else:
            del self._port_lists[record.ports]
        self.revision += 1
        if self._addresses is not None and self.follows_endpoints:
            self._addresses[":" in record.ip].discard(record.ip)
        return True

    def addresses(self, ttl: int, rng: random.Random) -> tuple[AddressSet, AddressSet]:
        """A and AAAA of the Service's own name."""
        if self._addresses is None:
            record = self.record
            if record is None or record.external_name is not None:
                ips: Iterable[str] = ()
            else:
                ips = (endpoint.ip for endpoint in self.endpoints) if record.headless else record.cluster_ips
            self._addresses = address_sets(ips, ttl, rng)
        return self._addresses

    def has_port(self, key: PortKey) -> bool:
        """Whether a port has this name and protocol: the Service's, or with headless ones an endpoint's."""
        lists: Iterable[tuple[NamedPort, ...]] = self._port_lists
        if not self.follows_endpoints:
            lists = (self.record.ports,) if self.record is not None else ()
        return any((port.name, port.protocol) == key for ports in lists for port in ports)

    def has_protocol(self, protocol_label: str) -> bool:
        """Whether a named port has the protocol, so that `_proto` has a name below it."""
        protocol = _PROTOCOLS.get(protocol_label)
        lists: Iterable[tuple[NamedPort, ...]] = self._port_lists
        if not self.follows_endpoints:
            lists = (self.record.ports,) if self.record is not None else ()
        return any(port.name and port.protocol is protocol for ports in lists for port in ports)

    def own_ports(self, key: PortKey | None) -> tuple[int, Iterable[int]]:
        """Weight and numbers that SRV tells of a Service with cluster IPs (DNS spec §2.3.2), of one port alone with
        `key`; of a Service without, nothing."""
        record = self.record
        if record is None or not record.cluster_ips:
            return 1, ()
        numbers = _numbers(record.ports, key)
        weight = _weight(len(numbers) * len(record.cluster_ips))
        return weight, numbers if len(numbers) < 2 else dict.fromkeys(numbers)

    def targets(self, key: PortKey | None, among: Iterable[EndpointRecord] | None) -> Targets:
        """What SRV tells of the Service's endpoints, or of `among`: their slices' ports (DNS spec §2.4.2), of one port
        alone with `key`."""
        count, ports, addresses = 0, dict[tuple[int, str], None](), dict[tuple[str, str], None]()
        last: tuple[NamedPort, ...] | None = None
        numbers: list[int] = []
        for endpoint in self.endpoints if among is None else among:
            if endpoint.ports is not last:  # they share a handful of lists, see `add`
                last = endpoint.ports
                numbers = _numbers(last, key)
            if numbers:
                label = self.endpoints.label(endpoint)
                count += len(numbers)
                for number in numbers:
                    ports[number, label] = None
                addresses[label, endpoint.ip] = None
        return Targets(_weight(count), ports, addresses)


def _numbers(ports: Iterable[NamedPort], key: PortKey | None) -> list[int]:
    if key is None:
        return [port.port for port in ports if port.port]
    name, protocol = key
    return [port.port for port in ports if port.port and port.name == name and port.protocol is protocol]


def _weight(entries: int) -> int:
    return 100 // entries or 1 if entries else 1


class NamespaceNames(Source):
    """A namespace: declared, or implied by a Service in it."""

    __slots__ = ("_declared", "_known_services", "pods", "services")

    def __init__(self) -> None:
        super().__init__()
        self.services: dict[str, ServiceNames] = {}
        self.pods: set[str] = set()
        """Addresses of its Pods; no answer that is kept depends on them."""
        self._declared = False
        self._known_services = 0

    @property
    def exists(self) -> bool:
        """Whether `NAMESPACE.svc` exists."""
        return self._declared or self._known_services > 0

    @property
    def declared(self) -> bool:
        """Whether the namespace itself is known."""
        return self._declared

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return not (self._declared or self.services or self.pods)

    def declare(self) -> None:
        """The namespace itself is known from now on."""
        self._declared = True
        self.revision += 1

    def retract(self) -> None:
        """The namespace itself is no longer known."""
        self._declared = False
        self.revision += 1

    def count_services(self, change: int) -> None:
        """Say how many Services with a record have come or gone."""
        self._known_services += change
        self.revision += 1


def address_sets(ips: Iterable[str], ttl: int, rng: random.Random) -> tuple[AddressSet, AddressSet]:
    """A and AAAA sets of these addresses."""
    sets = AddressSet(RRType.A, ttl, rng), AddressSet(RRType.AAAA, ttl, rng)
    for ip in ips:
        sets[":" in ip].add(ip)
    return sets
