# SPDX-License-Identifier: Apache-2.0
"""Objects in few words, and strategies that make clusters of them."""

from collections.abc import Sequence

from hypothesis import strategies as st

from svcproxy.model import (
    AddressType,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Namespace,
    ObjectMeta,
    Pod,
    Service,
    ServicePort,
    ServiceType,
)
from svcproxy.model.meta import Protocol
from svcproxy.model.pod import PodAddress, PodSpec, PodStatus
from svcproxy.model.service import CLUSTER_IP_NONE, ServiceMeta, ServiceSpec
from svcproxy.model.slice import SliceLabels, SliceMeta, TargetRef


def namespace(name: str) -> Namespace:
    return Namespace(ObjectMeta(name))


def service(name: str, *ips: str, ports: Sequence[ServicePort] = (), namespace: str = "shop") -> Service:
    """A Service with these cluster IPs; `None` makes it headless."""
    spec = ServiceSpec(cluster_ip=ips[0] if ips else None, cluster_ips=ips, ports=tuple(ports))
    return Service(ServiceMeta(name, namespace), spec)


def external(name: str, target: str, ports: Sequence[ServicePort] = (), namespace: str = "shop") -> Service:
    spec = ServiceSpec(type=ServiceType.EXTERNAL_NAME, external_name=target, ports=tuple(ports))
    return Service(ServiceMeta(name, namespace), spec)


def pod(
    name: str,
    *ips: str,
    phase: str = "Running",
    deleted: str | None = None,
    namespace: str = "shop",
    node: str = "",
    host_network: bool = False,
) -> Pod:
    status = PodStatus(phase, tuple(map(PodAddress, ips)) or None)
    return Pod(ObjectMeta(name, namespace, deletion_timestamp=deleted), PodSpec(node, host_network), status)


def port(number: int, name: str = "", protocol: Protocol = Protocol.TCP) -> ServicePort:
    return ServicePort(number, name, protocol)


def endpoint(
    *addresses: str, hostname: str | None = None, ready: bool | None = True, serving: bool | None = None, pod: str = ""
) -> Endpoint:
    return Endpoint(addresses, EndpointConditions(ready, serving), hostname, target_ref=TargetRef(pod) if pod else None)


def endpoint_slice(
    name: str,
    owner: str,
    *endpoints: Endpoint,
    ports: Sequence[tuple[str | None, int | None]] = (),
    kind: AddressType = AddressType.IPV4,
    namespace: str = "shop",
) -> EndpointSlice:
    offered = tuple(EndpointPort(port_name, number, Protocol.TCP) for port_name, number in ports)
    return EndpointSlice(SliceMeta(name, namespace, labels=SliceLabels(owner)), kind, endpoints, offered)


_NAMESPACES = st.sampled_from(["shop", "yard"])
_NAMES = st.sampled_from(["web", "db", "bad.name"])
_PORTS = st.lists(st.builds(port, st.integers(1, 3), st.sampled_from(["", "http"])), max_size=2)

namespaces = st.builds(namespace, _NAMESPACES)
services = st.one_of(
    st.builds(service, _NAMES, st.sampled_from(["10.96.0.1", CLUSTER_IP_NONE]), ports=_PORTS, namespace=_NAMESPACES),
    st.builds(service, _NAMES, namespace=_NAMESPACES),
    st.builds(external, _NAMES, st.sampled_from(["www.example.com", "192.0.2.7"]), namespace=_NAMESPACES),
)
_endpoints = st.builds(
    endpoint,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00:0::2", "01.2.3.4"]),
    hostname=st.sampled_from([None, None, "a", "Bad"]),
    ready=st.sampled_from([True, None, False]),
    pod=st.sampled_from(["", "pod-1", "pod-2"]),
)


pods = st.builds(
    pod,
    st.sampled_from(["p1", "p2", "p3"]),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00:0::2", "x"]),
    phase=st.sampled_from(["Pending", "Running", "Failed"]),
    namespace=_NAMESPACES,
)


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    return endpoint_slice(
        draw(st.sampled_from(["s1", "s2", "s3"])),
        draw(st.sampled_from(["web", "db"])),
        *draw(st.lists(_endpoints, max_size=5)),
        ports=draw(st.lists(st.tuples(st.sampled_from(["http", None]), st.sampled_from([80, 81, None])), max_size=2)),
        kind=draw(st.sampled_from(list(AddressType))),
        namespace=draw(_NAMESPACES),
    )
