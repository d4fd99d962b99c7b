# SPDX-License-Identifier: Apache-2.0
"""The cluster's zone: which names exist and what they hold, kept current by records. Pure.

Whether a name exists is decided once, for all types: `lookup` knows no type, and NODATA is a name without the type.
A name exists if it holds something or if one below it does (RFC 8020), but for endpoints without their Service, and
for the parents of addresses in reverse zones.

Answers are made from sources (`svcproxy_dns.service.Source`), whose revisions tell when they end.
"""

import random
from collections.abc import Iterable, Sequence

import msgspec

from svcproxy.config import PodNames
from svcproxy.model.meta import Family
from svcproxy.names.labels import canonical_ip
from svcproxy.names.records import EndpointRecord
from svcproxy_dns.addresses import reverse_address
from svcproxy_dns.contents import Contents, Schema
from svcproxy_dns.rrset import AddressSet
from svcproxy_dns.service import PortKey, ServiceNames, Source, port_key
from svcproxy_dns.wire import RRType

DNS_VERSION_LABEL = "dns-version"
"""The name that tells the version of the schema."""
DNS_VERSION = "1.1.0"
"""The version of the Kubernetes DNS specification that the names follow."""
NAME_SERVER_LABELS = ("ns", "dns")
"""The name of the server itself."""

NameServer = tuple[tuple[str, ...], tuple[str, ...]]
"""Labels left of the zone, and canonical addresses."""


class Name(msgspec.Struct, frozen=True):
    """A name that exists."""

    source: Source | None
    """What the answers of all types depend on. None: on more than one source; such answers must not be kept."""
    ipv4: AddressSet | None = None
    """Addresses; None and empty both mean none."""
    ipv6: AddressSet | None = None
    alias: str | None = None
    """The target of an ExternalName Service, canonical."""
    service: ServiceNames | None = None
    """The Service whose `targets` SRV tells, with `port` and `endpoints`."""
    port: PortKey | None = None
    endpoints: Sequence[EndpointRecord] | None = None
    pointers: Sequence[tuple[str, ...]] = ()
    """Names that PTR tells, as labels left of the zone."""
    text: str | None = None
    apex: bool = False
    """Whether SOA and NS stand here."""


class Unready(msgspec.Struct, frozen=True):
    """The name may turn out to exist: the first snapshot is not complete."""


UNREADY = Unready()


class Zone(Contents):
    """Records in, names out."""

    def __init__(self, schema: Schema, *, ttl: int, rng: random.Random, server_addresses: Sequence[str] = ()) -> None:
        """`server_addresses`: canonical addresses that clients reach this server at."""
        super().__init__(schema)
        self.ttl = ttl
        self._rng = rng
        self._static = Source()
        self._server_addresses = tuple(server_addresses)

    def name_servers(self) -> list[NameServer]:
        """Who answers for the zone: the Services that have this server as an endpoint or by their cluster IP, else it
        itself."""
        found: dict[NameServer, None] = {}
        for ip in self._server_addresses:
            for service in self.addresses.services(ip):
                found[_name_server(service)] = None
            for service, endpoint in self.addresses.endpoints(ip):
                record = service.record
                if record is not None and record.headless:
                    found[(service.endpoints.label(endpoint), *service.labels), (ip,)] = None
                else:
                    found[_name_server(service)] = None
        return list(found) or [(NAME_SERVER_LABELS, self._server_addresses)]

    def lookup(self, labels: Sequence[str]) -> Name | Unready | None:
        """The name with these labels left of a cluster domain, lower case; None if it does not exist."""
        if not labels:
            return Name(None, apex=True)
        match labels[-1]:
            case "svc":
                return self._lookup_service(labels[:-1])
            case "pod":
                return self._lookup_pod(labels[:-1])
            case "dns":
                if len(labels) == 1:
                    return Name(self._static)
                return self._lookup_server() if tuple(labels) == NAME_SERVER_LABELS else None
            case "dns-version":
                return Name(self._static, text=DNS_VERSION) if len(labels) == 1 else None
            case _:
                return None

    def lookup_address(self, labels: Sequence[str]) -> Name | Unready | None:
        """The whole name in a reverse zone, lower case. What is no address does not exist."""
        ip = reverse_address(labels)
        if ip is None:
            return None
        if not self.synced and not self.addresses.services(ip):
            return UNREADY
        pointers = self.addresses.names(ip)
        return Name(None, pointers=pointers) if pointers else None

    def _absent(self) -> Unready | None:
        return None if self.synced else UNREADY

    def service_addresses(self, service: ServiceNames) -> tuple[AddressSet, AddressSet]:
        """A and AAAA of a Service's own name."""
        return service.addresses(self.ttl, self._rng)

    def _address_sets(self, ips: Iterable[str]) -> tuple[AddressSet | None, AddressSet | None]:
        """A and AAAA of these addresses; those of a family that is not among them are not made."""
        sets: list[AddressSet | None] = [None, None]
        for ip in ips:
            found = sets[is_ipv6 := ":" in ip]
            if found is None:
                found = sets[is_ipv6] = AddressSet(RRType.AAAA if is_ipv6 else RRType.A, self.ttl, self._rng)
            found.add(ip)
        return sets[0], sets[1]

    def _lookup_server(self) -> Name:
        return Name(None, *self._address_sets(dict.fromkeys(ip for _, ips in self.name_servers() for ip in ips)))

    def _lookup_service(self, labels: Sequence[str]) -> Name | Unready | None:
        if not labels:
            return Name(self._static)
        namespace = self.namespaces.get(labels[-1])
        if namespace is None or not namespace.exists:
            return self._absent()
        if len(labels) == 1:
            return Name(namespace)
        service = namespace.services.get(labels[-2])
        record = service.record if service is not None else None
        if service is None or record is None or not service.exists:
            return self._absent()
        if service.follows_endpoints and not self.synced:
            return UNREADY  # a part of the addresses is not an answer
        if len(labels) == 2:
            ipv4, ipv6 = service.addresses(self.ttl, self._rng)
            return Name(service, ipv4, ipv6, record.external_name, service)
        if record.external_name is not None:
            return None
        return self._lookup_below(service, labels[:-2])

    def _lookup_below(self, service: ServiceNames, labels: Sequence[str]) -> Name | Unready | None:
        """Names of ports and endpoints."""
        if len(labels) == 2:
            key = port_key(*labels)
            if key is None:
                return None
            return Name(service, service=service, port=key) if service.has_port(key) else self._absent()
        if len(labels) > 2:
            return None
        label = labels[0]
        if label.startswith("_"):
            return Name(service) if service.has_protocol(label) else self._absent()
        endpoints = service.endpoints.labelled(label)
        if not endpoints or not self.synced:
            return self._absent()
        addresses = self._address_sets([endpoint.ip for endpoint in endpoints])
        return Name(service, *addresses, service=service, endpoints=endpoints)

    def _lookup_pod(self, labels: Sequence[str]) -> Name | Unready | None:
        if not labels:
            return Name(self._static)
        pods = self.schema.pods
        if pods is PodNames.DISABLED or len(labels) > 2:
            return None
        namespace = self.namespaces.get(labels[-1])
        if namespace is None or not namespace.exists:
            return self._absent()
        if len(labels) == 1:
            return Name(namespace)
        ip = pod_address(labels[0])
        if ip is None:
            return None
        if pods is PodNames.VERIFIED and ip not in namespace.pods:
            return self._absent()
        return Name(None, *self._address_sets((ip,)))


def _name_server(service: ServiceNames) -> NameServer:
    record = service.record
    return service.labels, record.cluster_ips if record is not None else ()


def pod_address(label: str) -> str | None:
    """The canonical address that a pod's label spells: three single dashes make it IPv4."""
    if label.count("-") == 3 and "--" not in label:
        return canonical_ip(label.replace("-", "."), Family.IPV4)
    return canonical_ip(label.replace("-", ":"), Family.IPV6)
