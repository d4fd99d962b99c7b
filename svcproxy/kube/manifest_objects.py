# SPDX-License-Identifier: Apache-2.0
"""One document of a manifest as Kubernetes objects, defaulted and validated. Pure.

Objects are held to what the API server demands of the fields that are used, so that whatever comes after may rely on
the same in both modes. It differs where no API server allocates: a Service needs its `clusterIP` written down. And it
allows loopback addresses, which make sense where all endpoints are processes of one machine.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from msgspec import structs

from svcproxy import syntax
from svcproxy.convert import Check, convert
from svcproxy.document import Document, Path, Value
from svcproxy.errors import Problem
from svcproxy.model import (
    AddressType,
    EndpointSlice,
    Namespace,
    NamespacedName,
    Node,
    Object,
    Pod,
    Service,
    ServiceCIDR,
    ServiceType,
)
from svcproxy.model.meta import family_of
from svcproxy.model.service import CLUSTER_IP_NONE

ENDPOINTS_MAX = 1000
"""Endpoints of a slice (discovery/v1)."""
ADDRESSES_MAX = 100
"""Addresses of an endpoint (discovery/v1)."""
AFFINITY_TIMEOUT_MAX = 86400
"""Seconds (core/v1)."""
DEFAULT_NAMESPACE = "default"

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")

O = TypeVar("O", Service, EndpointSlice, Node, Namespace, Pod, ServiceCIDR)  # noqa: E741


@dataclass(frozen=True, slots=True)
class Good:
    """An object as it should be."""

    object: Object
    line: int


@dataclass(frozen=True, slots=True)
class Bad:
    """An object, or something that should be one, with problems."""

    kind: type[Object] | None
    key: NamespacedName | None
    """None if it cannot be told which object it is."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """An object of a kind that is not used."""

    kind: str
    """Such as `apps/v1 Deployment`."""


Item = Good | Bad | Ignored


def items(document: Document) -> Iterator[Item]:
    """What a document holds: one object, those of a list, or nothing if it is empty."""
    if document.root is None:
        yield Bad(None, None, document.problems)
        return
    content = document.root.content
    api_version, kind = _text(document.root, "apiVersion"), _text(document.root, "kind")
    if not isinstance(content, dict) or not api_version or not kind:
        problem = document.problem("not a Kubernetes object: it needs apiVersion and kind")
        yield Bad(None, None, (*document.problems, problem))
    elif kind.endswith("List") and (api_version, kind) not in KINDS:
        yield from _list_items(document, api_version, kind)
    else:
        yield _item(document, api_version, kind)


def _list_items(document: Document, api_version: str, kind: str) -> Iterator[Item]:
    """The items of a v1 List or of a list of one kind, whose items may leave out what the list says."""
    assert document.root is not None
    assert isinstance(document.root.content, dict)
    entries = document.root.content.get("items", Value(document.line, None)).content
    if entries is not None and not isinstance(entries, list):
        yield Bad(None, None, (*document.problems, document.problem("expected a list", ("items",))))
        return
    implied = (api_version, kind.removesuffix("List"))
    for index, entry in enumerate(entries or ()):
        prefix = f"items[{index}]."
        own = tuple(
            replace(problem, path=problem.path.removeprefix(prefix))
            for problem in document.problems
            if problem.path.startswith(prefix)
        )
        inner = Document(document.file, entry.line, entry, own)
        of_entry = (_text(entry, "apiVersion") or implied[0], _text(entry, "kind") or implied[1])
        if not isinstance(entry.content, dict) or not of_entry[1]:
            yield Bad(None, None, (*own, inner.problem("not a Kubernetes object: it needs apiVersion and kind")))
        else:
            yield _item(inner, *of_entry)
    if rest := tuple(problem for problem in document.problems if not problem.path.startswith("items[")):
        yield Bad(None, None, rest)


def _item(document: Document, api_version: str, kind: str) -> Item:
    known = KINDS.get((api_version, kind))
    if known is not None:
        return known.read(document)
    group = api_version.partition("/")[0]
    for (used, name), other in KINDS.items():
        if name == kind and "/" in used and used.partition("/")[0] == group:
            problem = document.problem(f"{kind} is read as {used}, not as {api_version}", ("apiVersion",))
            return Bad(other.type, other.key_of(document), (*document.problems, problem))
    return Ignored(f"{api_version} {kind}")


def _text(value: Value, key: str) -> str:
    """The string at a key of a mapping, empty if there is none."""
    member = value.content.get(key) if isinstance(value.content, dict) else None
    return member.content if member is not None and isinstance(member.content, str) else ""


Relations = Callable[[Any], Iterator[tuple[Path, str]]]
"""(path, message) of what is wrong between the fields of an object."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind is read."""

    type: type[Object]
    namespaced: bool
    name: Check
    checks: Mapping[str, Check] = field(default_factory=dict)
    relations: Relations = lambda _: iter(())
    complete: Callable[[Any], Any] = lambda obj: obj
    """Fills in what the API server would."""

    def read(self, document: Document) -> Good | Bad:
        """The object of this kind in a document."""
        checks = {"metadata.name": self.name, "metadata.namespace": _optional(syntax.dns_label), **_META, **self.checks}
        obj, problems = convert(document, self.type, checks)
        bad = {problem.path.partition("[")[0] for problem in problems}
        if obj is not None and not {"spec.type", "addressType"} & bad:
            found = (document.problem(message, path) for path, message in self.relations(obj))
            problems += tuple(problem for problem in found if not _concerns(problem.path, bad))
        if obj is not None and not self.namespaced and obj.metadata.namespace:
            problems += (document.problem(f"a {self.type.__name__} is in no namespace", ("metadata", "namespace")),)
        if problems or obj is None:
            ordered = sorted(problems, key=lambda problem: problem.line or 0)
            return Bad(self.type, self.key_of(document), tuple(ordered))
        if self.namespaced and not obj.metadata.namespace:
            obj = structs.replace(obj, metadata=structs.replace(obj.metadata, namespace=DEFAULT_NAMESPACE))
        return Good(self.complete(obj), document.first_line)

    def key_of(self, document: Document) -> NamespacedName | None:
        """The key of an object that may be bad, None if it cannot be read."""
        root = document.root
        metadata = root.content.get("metadata") if root is not None and isinstance(root.content, dict) else None
        if metadata is None or not (name := _text(metadata, "name")):
            return None
        namespace = _text(metadata, "namespace") or DEFAULT_NAMESPACE
        return NamespacedName(namespace if self.namespaced else "", name)


def _concerns(path: str, bad: set[str]) -> bool:
    """Whether a path is inside or around one of the bad ones, whose values are not what was written."""
    return any(path.startswith(other) or other.startswith(path.partition("[")[0]) for other in bad)


def _optional(check: Check) -> Check:
    """The check, with the empty string standing for an absent value as it does in the API."""
    return lambda value: check(value) if value else value


def _one_of(*choices: str) -> Check:
    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {value!r}")
        return value

    return _optional(check)


def _within(low: int, high: int) -> Check:
    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range: {low} to {high}")
        return value

    return check


def _at_most(limit: int) -> Check:
    def check(values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) > limit:
            raise ValueError(f"{len(values)} entries, at most {limit} are allowed")
        return values

    return check


def _unicast(text: str) -> str:
    address = ipaddress.ip_address(syntax.ip_address(text))
    if address.is_multicast or address.is_unspecified:
        raise ValueError(f"{text!r} is no unicast address")
    return str(address)


def _cluster_ip(text: str) -> str:
    return text if text == CLUSTER_IP_NONE else _unicast(text)


def _trimmed_cidr(text: str) -> str:
    return syntax.cidr(text.strip())  # the API server allows blanks around source ranges


def _timestamp(text: str) -> str:
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    return text


_META: Mapping[str, Check] = {
    "metadata.creationTimestamp": _timestamp,
    "metadata.deletionTimestamp": _timestamp,
}

_PORT = _within(1, 65535)

_SERVICE: Mapping[str, Check] = {
    "spec.clusterIP": _optional(_cluster_ip),
    "spec.clusterIPs": _at_most(2),
    "spec.clusterIPs[]": _cluster_ip,
    "spec.ipFamilies": _at_most(2),
    "spec.ipFamilies[]": _one_of("IPv4", "IPv6"),
    "spec.ports[].name": _optional(syntax.dns_label),
    "spec.ports[].port": _PORT,
    "spec.externalIPs[]": _unicast,
    "spec.externalName": _optional(lambda name: syntax.dns_subdomain(name.lower().removesuffix("."))),
    "spec.internalTrafficPolicy": _one_of("Cluster", "Local"),
    "spec.externalTrafficPolicy": _one_of("Cluster", "Local"),
    "spec.sessionAffinity": _one_of("None", "ClientIP"),
    "spec.sessionAffinityConfig.clientIP.timeoutSeconds": _within(1, AFFINITY_TIMEOUT_MAX),
    "spec.loadBalancerSourceRanges[]": _trimmed_cidr,
    "status.loadBalancer.ingress[].ip": _optional(_unicast),
    "status.loadBalancer.ingress[].ipMode": _one_of("VIP", "Proxy"),
}


def _service_relations(service: Service) -> Iterator[tuple[Path, str]]:
    spec = service.spec
    if spec.type is ServiceType.EXTERNAL_NAME:
        if not spec.external_name:
            yield ("spec", "externalName"), "required for type ExternalName"
        return
    ips = spec.cluster_ips or ()
    if not spec.cluster_ip and not ips:
        yield ("spec", "clusterIP"), "required, nobody allocates one here: an address, or None for a headless Service"
    if spec.cluster_ip and ips and spec.cluster_ip != ips[0]:
        yield ("spec", "clusterIPs", 0), f"{ips[0]} differs from clusterIP {spec.cluster_ip}"
    if CLUSTER_IP_NONE in ips and len(ips) > 1:
        yield ("spec", "clusterIPs"), "None stands alone"
    elif len(ips) > 1 and family_of(ips[0]) is family_of(ips[1]):
        yield ("spec", "clusterIPs", 1), "two addresses of one family"
    for index, (family, ip) in enumerate(zip(spec.ip_families or (), ips, strict=False)):
        if ip != CLUSTER_IP_NONE and family != family_of(ip).label:
            yield ("spec", "ipFamilies", index), f"{family} does not fit {ip}"
    yield from _service_port_relations(service)


def _service_port_relations(service: Service) -> Iterator[tuple[Path, str]]:
    ports = service.spec.ports or ()
    if not ports and CLUSTER_IP_NONE not in {service.spec.cluster_ip, *(service.spec.cluster_ips or ())}:
        yield ("spec", "ports"), "required"
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        if len(ports) > 1 and not port.name:
            yield ("spec", "ports", index, "name"), "required where there are several ports"
        elif port.name in names:
            yield ("spec", "ports", index, "name"), f"{port.name!r} is the name of another port"
        if (port.protocol, port.port) in numbers:
            yield ("spec", "ports", index), f"{port.port}/{port.protocol} is listed twice"
        names.add(port.name)
        numbers.add((port.protocol, port.port))


def _complete_service(service: Service) -> Service:
    spec = service.spec
    if spec.type is ServiceType.EXTERNAL_NAME:
        return service
    ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    families = spec.ip_families
    if not families and CLUSTER_IP_NONE not in ips:
        families = tuple(family_of(ip).label for ip in ips)
    return structs.replace(
        service, spec=structs.replace(spec, cluster_ip=ips[0], cluster_ips=ips, ip_families=families)
    )


_SLICE: Mapping[str, Check] = {
    "endpoints": _at_most(ENDPOINTS_MAX),
    "endpoints[].addresses": _at_most(ADDRESSES_MAX),
    "endpoints[].hostname": _optional(syntax.dns_label),
    "endpoints[].nodeName": _optional(syntax.dns_subdomain),
    "ports[].name": _optional(syntax.dns_label),
    "ports[].port": _PORT,
}


def _slice_relations(obj: EndpointSlice) -> Iterator[tuple[Path, str]]:
    for index, endpoint in enumerate(obj.endpoints or ()):
        if not endpoint.addresses:
            yield ("endpoints", index, "addresses"), "at least one address is needed"
        for number, address in enumerate(endpoint.addresses):
            if problem := _address_problem(address, obj.address_type):
                yield ("endpoints", index, "addresses", number), problem
    names = [port.name or "" for port in obj.ports or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("ports", index, "name"), f"{name!r} is the name of another port"


def _address_problem(address: str, kind: AddressType) -> str:
    try:
        if kind is AddressType.FQDN:
            syntax.dns_subdomain(address.lower().removesuffix("."))
        elif family_of(_unicast(address)).label != kind:
            return f"{address!r} is not of the slice's addressType {kind}"
    except ValueError as exc:
        return str(exc)
    return ""


_NODE: Mapping[str, Check] = {"spec.podCIDRs": _at_most(2), "spec.podCIDRs[]": syntax.cidr}


def _node_relations(node: Node) -> Iterator[tuple[Path, str]]:
    for index, address in enumerate(node.status.addresses or ()):
        if address.type in {"InternalIP", "ExternalIP"}:
            try:
                syntax.ip_address(address.address)
            except ValueError as exc:
                yield ("status", "addresses", index, "address"), str(exc)


_SERVICE_CIDR: Mapping[str, Check] = {"spec.cidrs": _at_most(2), "spec.cidrs[]": syntax.cidr}


def _service_cidr_relations(obj: ServiceCIDR) -> Iterator[tuple[Path, str]]:
    cidrs = obj.spec.cidrs or ()
    if not cidrs:
        yield ("spec", "cidrs"), "required"
    elif len(cidrs) > 1 and family_of(cidrs[0]) is family_of(cidrs[1]):
        yield ("spec", "cidrs", 1), "two ranges of one family"


_POD: Mapping[str, Check] = {
    "spec.nodeName": _optional(syntax.dns_subdomain),
    "status.podIPs[].ip": syntax.ip_address,
}

KINDS: Mapping[tuple[str, str], Kind] = {
    ("v1", "Service"): Kind(Service, True, syntax.dns_label, _SERVICE, _service_relations, _complete_service),
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind(EndpointSlice, True, syntax.dns_subdomain, _SLICE, _slice_relations),
    ("v1", "Node"): Kind(Node, False, syntax.dns_subdomain, _NODE, _node_relations),
    ("v1", "Namespace"): Kind(Namespace, False, syntax.dns_label),
    ("networking.k8s.io/v1", "ServiceCIDR"): Kind(
        ServiceCIDR, False, syntax.dns_subdomain, _SERVICE_CIDR, _service_cidr_relations
    ),
    ("v1", "Pod"): Kind(Pod, True, syntax.dns_subdomain, _POD),
}
"""By (apiVersion, kind)."""
