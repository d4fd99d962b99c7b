# SPDX-License-Identifier: Apache-2.0
"""What is tried against a random cluster: from where, to where. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from svcproxy.model.meta import Family, Protocol
from tests.e2e.differential.cluster import (
    PORTS_MAX,
    RandomCluster,
    balanced,
    balancer_ip,
    cluster_ip,
    families_of,
    node_port,
)
from tests.e2e.objects import Object
from tests.netns.places import AT
from tests.netns.world import TRANSPORTS

CROWD = "crowd"
"""Clients outside in X's network, another one each time."""
PLACES = ("p1", "a1", "h1", "b1", "h2", "x", "y", CROWD)
LEAK = "leak"
"""Who answers what nobody should let out."""
FOR_EACH = 6
"""Flows for each endpoint that may answer, to begin with."""
WRONG_PORT = 999
FRONTENDS = ("ClusterIP", "NodePort", "ingress VIP", "externalIP")
SERVED_SHARE = 0.75
"""Of the tries, those to `FRONTENDS`."""


@dataclass(frozen=True, slots=True)
class Try:
    """New flows from a place to a target."""

    place: str
    protocol: Protocol
    target: tuple[str, int]
    frontend: str
    """What the target is, or was a round ago."""
    service: str | None = None
    """Whose it is."""
    times: int = 2
    sticky: bool = False
    """Session affinity: one client, one backend."""

    def __str__(self) -> str:
        ip, port = self.target
        return f"{self.place} → {ip} port {port}/{self.protocol} ({self.frontend})"


def sample(cluster: RandomCluster, rng: Random, count: int) -> list[Try]:
    """At most so many tries, the same number of each slot: mostly of frontends, and of what is none for the rest."""
    chosen: list[Try] = []
    slots = list(cluster.slots)
    for slot, service in slots:
        tries = list(_of_slot(cluster, slot, service))
        wanted = count // len(slots)
        for kind, share in ((True, SERVED_SHARE), (False, 1 - SERVED_SHARE)):
            pool = [each for each in tries if (each.frontend in FRONTENDS) is kind]
            chosen += rng.sample(pool, min(len(pool), round(share * wanted)))
    return chosen


def _of_slot(cluster: RandomCluster, slot: int, service: Object | None) -> Iterator[Try]:
    for place in PLACES:
        for family in Family:
            for protocol, target, frontend in _targets(slot, service, family, place):
                if service is None:
                    yield Try(place, protocol, target, frontend)
                    continue
                name = service["metadata"]["name"]
                endpoints = {
                    address
                    for piece in cluster.slices_of(name)
                    for endpoint in piece["endpoints"]
                    for address in endpoint["addresses"]
                    if (":" in address) is (family is Family.IPV6)
                }
                yield Try(
                    place,
                    protocol,
                    target,
                    frontend,
                    name,
                    times=max(2, FOR_EACH * len(endpoints)) if frontend in FRONTENDS else 2,
                    sticky=service["spec"].get("sessionAffinity") == "ClientIP" and place != CROWD,
                )


def _targets(
    slot: int, service: Object | None, family: Family, place: str
) -> Iterator[tuple[Protocol, tuple[str, int], str]]:
    """All frontends that the Service of the slot has or might have, a wrong port of each address, other addresses."""
    spec = service["spec"] if service is not None else {}
    ports = [(Protocol(port["protocol"]), port["port"]) for port in spec.get("ports", ())]
    ip = cluster_ip(slot, family)
    taken = service is not None and balanced(service) and family in families_of(service)
    kind = "ClusterIP" if taken else "ClusterIP of no Service"
    for protocol, port in ports or [(Protocol.TCP, 80), (Protocol.UDP, 80)]:
        yield protocol, (ip, port), kind
    for protocol in TRANSPORTS:
        yield protocol, (ip, WRONG_PORT), f"{kind}, wrong port"
    ingress = (service or {}).get("status", {}).get("loadBalancer", {}).get("ingress", ())
    external = {each["ip"]: f"ingress {each.get('ipMode')}" for each in ingress if "ip" in each}
    external |= dict.fromkeys(spec.get("externalIPs", ()), "externalIP")
    external.setdefault(balancer_ip(50 + slot, family), "address of no Service")
    for ip, kind in external.items():
        if (":" in ip) is (family is Family.IPV6):
            for protocol, port in ports:
                yield protocol, (ip, port), kind
            yield Protocol.TCP, (ip, WRONG_PORT), f"{kind}, wrong port"
    at = AT[family]
    for index in range(PORTS_MAX):
        open_ports = [port for port in spec.get("ports", ()) if port.get("nodePort") == node_port(slot, index)]
        for protocol in TRANSPORTS:
            own = "NodePort" if any(port["protocol"] == protocol for port in open_ports) else "NodePort of no Service"
            yield protocol, (at.n1, node_port(slot, index)), own
            if index == 0:
                yield protocol, (at.second, node_port(slot, index)), f"{own}, secondary address"
                if place == "h1":
                    yield protocol, (at.loopback, node_port(slot, index)), f"{own}, loopback"
