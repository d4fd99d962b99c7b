# SPDX-License-Identifier: Apache-2.0
"""What DNS knows of one namespace and of one Service. Pure.

Both are *sources* of answers: `revision` grows whenever an answer made from them may no longer be right, so whoever
keeps an answer keeps the revision with it and compares.
"""

import random
from collections.abc import Iterable, Iterator, Sequence

from svcproxy.model.meta import Protocol
from svcproxy.names.labels import is_label, labelled_addresses
from svcproxy.names.records import EndpointRecord, NamedPort, ServiceRecord
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

    __slots__ = ("_by_key", "_pod_names")

    def __init__(self, *, pod_names: bool) -> None:
        self._pod_names = pod_names
        self._by_key: dict[str, EndpointRecord | dict[EndpointRecord, EndpointRecord]] = {}
        """A dictionary only where endpoints share a label."""

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def __iter__(self) -> Iterator[EndpointRecord]:
        for held in self._by_key.values():
            if isinstance(held, dict):
                yield from held
            else:
                yield held

    def _key(self, record: EndpointRecord) -> str:
        return record.hostname or (record.pod if self._pod_names and is_label(record.pod) else record.ip)

    def find(self, record: EndpointRecord) -> EndpointRecord | None:
        """The held record equal to this one."""
        held = self._by_key.get(self._key(record))
        if isinstance(held, dict):
            return held.get(record)
        return held if held == record else None

    def add(self, record: EndpointRecord) -> None:
        """Take in a record that is not held."""
        key = self._key(record)
        held = self._by_key.get(key)
        if held is None:
            self._by_key[key] = record
        elif isinstance(held, dict):
            held[record] = record
        else:
            self._by_key[key] = {held: held, record: record}

    def discard(self, record: EndpointRecord) -> None:
        """Take out a record that is held."""
        key = self._key(record)
        held = self._by_key[key]
        if isinstance(held, dict):
            del held[record]
            if len(held) == 1:
                self._by_key[key] = next(iter(held))
        else:
            del self._by_key[key]

    def labelled(self, label: str) -> list[EndpointRecord]:
        """The endpoints that have this label."""
        if "." in label or ":" in label:
            return []
        found: list[EndpointRecord] = []
        for key in dict.fromkeys((label, *labelled_addresses(label))):
            held = self._by_key.get(key)
            if isinstance(held, dict):
                found.extend(held)
            elif held is not None:
                found.append(held)
        return found


class ServiceNames(Source):
    """The names of one Service: its own, its ports' and its endpoints'."""

    __slots__ = ("_addresses", "_port_lists", "_records", "endpoints", "name", "namespace")

    def __init__(self, namespace: str, name: str, *, pod_names: bool) -> None:
        super().__init__()
        self.namespace = namespace
        self.name = name
        self.endpoints = EndpointIndex(pod_names=pod_names)
        self._records: tuple[ServiceRecord, ...] = ()
        """The one in force is the last."""
        self._port_lists: dict[tuple[NamedPort, ...], int] = {}
        """How many endpoints have this list of ports; Services have a handful of lists however many endpoints."""
        self._addresses: tuple[AddressSet, AddressSet] | None = None
        """A and AAAA of the Service's own name, made when it is first asked for and kept current from then on."""

    @property
    def record(self) -> ServiceRecord | None:
        """The Service, None while only endpoints of it are known."""
        return self._records[-1] if self._records else None

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
        record = self.record
        return record is not None and (not record.headless or bool(self.endpoints))

    def put(self, record: ServiceRecord) -> None:
        """Put a record in force."""
        if self.record != record:
            self._records = (*(other for other in self._records if other != record), record)
            self._forget()

    def drop(self, record: ServiceRecord) -> None:
        """Take out a record that is held."""
        in_force = self.record == record
        self._records = tuple(other for other in self._records if other != record)
        if in_force:
            self._forget()

    def _forget(self) -> None:
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
        if self._addresses is not None and self._follows_endpoints:
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
        if self._addresses is not None and self._follows_endpoints:
            self._addresses[":" in record.ip].discard(record.ip)
        return True

    @property
    def _follows_endpoints(self) -> bool:
        record = self.record
        return record is not None and record.headless

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

    def has_port(self, port_label: str, protocol_label: str) -> bool:
        """Whether `_port._proto` names a port: the Service's, or with headless ones an endpoint's."""
        protocol = _PROTOCOLS.get(protocol_label)
        name = port_label[1:] if port_label.startswith("_") else ""
        return bool(name) and any(
            port.name == name and port.protocol is protocol for ports in self._ports_in_force() for port in ports
        )

    def has_protocol(self, protocol_label: str) -> bool:
        """Whether a named port has the protocol, so that `_proto` has a name below it."""
        protocol = _PROTOCOLS.get(protocol_label)
        return any(port.name and port.protocol is protocol for ports in self._ports_in_force() for port in ports)

    def _ports_in_force(self) -> Iterable[tuple[NamedPort, ...]]:
        record = self.record
        if record is None:
            return ()
        return self._port_lists if record.headless else (record.ports,)


class NamespaceNames(Source):
    """A namespace: declared, or implied by a Service in it."""

    __slots__ = ("_declared", "_known_services", "services")

    def __init__(self) -> None:
        super().__init__()
        self.services: dict[str, ServiceNames] = {}
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
        return not self._declared and not self.services

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
