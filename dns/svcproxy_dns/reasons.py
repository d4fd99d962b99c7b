# SPDX-License-Identifier: Apache-2.0
"""Why a name in a cluster domain exists or does not, for people. Pure.

`svcproxy_dns.zone` decides; this says why, after the fact, when somebody asks. A test holds the two together.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from svcproxy.config import PodNames
from svcproxy.model.meta import NamespacedName
from svcproxy.names.records import NamedPort, ServiceRecord
from svcproxy_dns.service import NamespaceNames, ServiceNames, port_key
from svcproxy_dns.zone import DNS_VERSION_LABEL, NAME_SERVER_LABELS, Zone, pod_address

SHOWN_MAX = 10
"""Ports and addresses that are spelt out."""


class Subject(NamedTuple):
    """What a name is about."""

    text: str
    service: NamespacedName | None = None
    """The Service, known or not."""


def subject(zone: Zone, labels: Sequence[str]) -> Subject:
    """What the name with these labels left of a cluster domain is, or why it is nothing."""
    if not labels:
        return Subject("the zone itself, with SOA and NS")
    match labels[-1]:
        case "svc":
            return _below_svc(zone, labels[:-1])
        case "pod":
            return Subject(_below_pod(zone, labels[:-1]))
        case "dns":
            if tuple(labels) == NAME_SERVER_LABELS:
                return Subject("the server itself")
            return Subject(
                "above the server's name" if len(labels) == 1 else "below dns there is the server's name alone"
            )
        case str(label) if label == DNS_VERSION_LABEL:
            whole = len(labels) == 1
            return Subject("the version of the schema" if whole else "there is nothing below the version of the schema")
        case label:
            return Subject(f"names in the zone end in svc or pod, not in {label}")


def _below_svc(zone: Zone, labels: Sequence[str]) -> Subject:
    if not labels:
        return Subject("above all namespaces")
    namespace = zone.namespaces.get(labels[-1])
    if namespace is None or not namespace.exists:
        return Subject(_no_namespace(zone, labels[-1]), NamespacedName(labels[-1], labels[-2]) if labels[1:] else None)
    if len(labels) == 1:
        return Subject(f"the namespace {labels[0]}")
    key = NamespacedName(labels[-1], labels[-2])
    return Subject(_in_namespace(zone, namespace, key, labels[:-2]), key)


def _no_namespace(zone: Zone, name: str) -> str:
    if zone.schema.namespaces and name not in zone.schema.namespaces:
        return f"the namespace {name} is not among dns.namespaces"
    return f"there is no namespace {name}" if zone.synced else f"whether there is a namespace {name} is not known yet"


def _in_namespace(zone: Zone, namespace: NamespaceNames, key: NamespacedName, below: Sequence[str]) -> str:
    service = namespace.services.get(key.name)
    record = service.record if service is not None else None
    if service is None or record is None:
        if not zone.synced:
            return f"whether there is a Service {key} is not known yet"
        rest = "" if service is None else f", only {_count(len(list(service.endpoints)), 'ready endpoint')} in its name"
        return f"there is no Service {key}{rest}"
    if not service.exists:
        if not zone.synced:
            return f"whether the Service {key} has ready endpoints is not known yet"
        why = "is headless" if service.follows_endpoints else "is hidden while empty (dns.ignore_empty_service)"
        return f"the Service {key} {why}, and no endpoint is ready"
    if service.follows_endpoints and not zone.synced:
        return f"not all endpoints of the Service {key} are known yet"
    if not below:
        return f"the Service {key}, {_kind(service, record)}"
    if record.external_name is not None:
        return f"there is nothing below the Service {key}, an ExternalName"
    return _below_service(zone, service, record, key, below)


def _kind(service: ServiceNames, record: ServiceRecord) -> str:
    if record.external_name is not None:
        return f"an ExternalName for {record.external_name}"
    if record.headless:
        return f"headless with {_count(len(list(service.endpoints)), 'ready endpoint')}"
    if not record.cluster_ips:
        return "whose ClusterIP has not been given out yet"
    return f"ClusterIP {_listed(record.cluster_ips)}"


def _below_service(
    zone: Zone, service: ServiceNames, record: ServiceRecord, key: NamespacedName, below: Sequence[str]
) -> str:
    if len(below) > 2:
        return f"{len(below)} labels left of the Service {key} are too many: at most _PORT._PROTOCOL or an endpoint"
    ports = (port for endpoint in service.endpoints for port in endpoint.ports) if record.headless else record.ports
    if len(below) == 2:
        port = port_key(*below)
        if port is None:
            return f"{'.'.join(below)} is not _PORT._PROTOCOL with the protocol tcp, udp or sctp"
        name = f"{port[0]}/{port[1]}"
        if service.has_port(port):
            return f"the port {name} of the Service {key}"
        return (
            f"the Service {key} has no port {name}{_ports(ports)}" if zone.synced else f"port {name} is not known yet"
        )
    label = below[0]
    if label.startswith("_"):
        if service.has_protocol(label):
            return f"above the {label[1:]} ports of the Service {key}"
        return f"the Service {key} has no named {label[1:]} port{_ports(ports)}"
    endpoints = service.endpoints.labelled(label)
    if endpoints and zone.synced:
        pods = [endpoint.pod for endpoint in endpoints if endpoint.pod]
        of = f" (Pod {_listed(pods)})" if pods else ""
        return f"the endpoint {label} of the Service {key}, {_listed([each.ip for each in endpoints])}{of}"
    if not zone.synced:
        return f"whether the Service {key} has an endpoint {label} is not known yet"
    return f"no ready endpoint of the Service {key} is called {label}"


def _below_pod(zone: Zone, labels: Sequence[str]) -> str:
    mode = zone.schema.pods
    if not labels:
        return "above the Pods of all namespaces"
    if mode is PodNames.DISABLED:
        return "there are no names of Pods: dns.pods is disabled"
    if len(labels) > 2:
        return "left of a Pod's address there is nothing"
    namespace = zone.namespaces.get(labels[-1])
    if namespace is None or not namespace.exists:
        return _no_namespace(zone, labels[-1])
    if len(labels) == 1:
        return f"above the Pods of the namespace {labels[0]}"
    ip = pod_address(labels[0])
    if ip is None:
        return f"{labels[0]} is no address with dashes"
    if mode is not PodNames.VERIFIED:
        return f"the address {ip}, whether a Pod has it or not (dns.pods is insecure)"
    if ip in namespace.pods:
        return f"a Pod of the namespace {labels[1]}"
    return f"no Pod of the namespace {labels[1]} has the address {ip}" + (
        "" if zone.synced else ", as far as is known yet"
    )


def _ports(ports: Iterable[NamedPort]) -> str:
    named = list(dict.fromkeys(f"{port.name}/{port.protocol}" for port in ports if port.name))
    return f"; it has {_listed(named)}" if named else "; it has no named ones"


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - SHOWN_MAX
    return ", ".join(items[:SHOWN_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
