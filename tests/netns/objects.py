# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices of the acceptance cases, by family. The Service is s in namespace ns, TCP and UDP."""

from collections.abc import Iterable
from typing import Any

from svcproxy.model import Endpoint, EndpointSlice, Service
from svcproxy.model.meta import Family, Protocol
from tests.frontends import world as objects
from tests.netns.places import Addresses
from tests.netns.world import PODS, PORTS, TRANSPORTS

PORT = 80
NODE_PORT = 30080
HEALTH_PORT = 30081
OTHER_NODE_PORT = 30090


def service(
    at: Addresses,
    name: str = "s",
    *,
    ports: Iterable[dict[str, Any]] | None = None,
    node_port: int = 0,
    **spec: Any,
) -> Service:
    """A ClusterIP Service on port 80."""
    node_ports = {"nodePort": node_port} if node_port else {}
    if ports is None:
        ports = [{"name": p.lower(), "port": PORT, "protocol": p.value, **node_ports} for p in TRANSPORTS]
    return objects.service(name, ports=list(ports), **{"clusterIP": at.cluster_ip, **spec})


def load_balancer(at: Addresses, name: str = "s", *, node_port: int = NODE_PORT, **spec: Any) -> Service:
    """A Service of type LoadBalancer with NodePort and VIP."""
    local = {"healthCheckNodePort": HEALTH_PORT} if spec.get("externalTrafficPolicy") == "Local" else {}
    spec = {"type": "LoadBalancer", "ingress": [{"ip": at.vip}], **local, **spec}
    return service(at, name, node_port=node_port, **spec)


def ready(at: Addresses, pod: str, *, zones: Iterable[str] = (), nodes: Iterable[str] = ()) -> Endpoint:
    """The pod as a ready endpoint."""
    return endpoint(at, pod, ready=True, serving=True, terminating=False, zones=zones, nodes=nodes)


def draining(at: Addresses, pod: str) -> Endpoint:
    """The pod as one that is serving and terminating."""
    return endpoint(at, pod, ready=False, serving=True, terminating=True)


def failing(at: Addresses, pod: str, *, terminating: bool = False) -> Endpoint:
    """The pod as one that is neither ready nor serving."""
    return endpoint(at, pod, ready=False, serving=False, terminating=terminating)


def endpoint(at: Addresses, pod: str, **conditions: Any) -> Endpoint:
    """The pod as an endpoint; conditions as in `tests.frontends.world.endpoint`."""
    return objects.endpoint(at.of_pods[pod], PODS[pod], **conditions)


def host(at: Addresses) -> Endpoint:
    """A ready endpoint on n1's own address."""
    return objects.ready(at.n1, "n1")


def slice_of(
    at: Addresses,
    *endpoints: Endpoint | str,
    name: str = "s-1",
    of: str = "s",
    port: int = PORTS[0],
    ports: list[dict[str, Any]] | None = None,
    protocols: Iterable[Protocol] = TRANSPORTS,
    address_type: str = "",
) -> EndpointSlice:
    """A slice; words stand for ready pods."""
    if ports is None:
        ports = [{"name": each.lower(), "port": port, "protocol": each.value} for each in protocols]
    return objects.slice_of(
        *(ready(at, each) if isinstance(each, str) else each for each in endpoints),
        name=name,
        of=of,
        ports=ports,
        family=address_type or ("IPv4" if at.family is Family.IPV4 else "IPv6"),
    )
