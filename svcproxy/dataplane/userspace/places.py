# SPDX-License-Identifier: Apache-2.0
"""Places: what a socket binds to, and which frontend each belongs to. Pure.

An `Address` frontend has one place, a `NodePort` frontend one on every node-port address of its family. At most one
frontend of each kind can claim a place; the `Address` frontend has it, as the nftables data plane looks these up first.
"""

from collections.abc import Mapping, Set
from typing import NamedTuple

from svcproxy.frontends.keys import Address, Frontend, FrontendKey, NodePort
from svcproxy.model.meta import Family, Protocol, family_of


class Place(NamedTuple):
    """What a socket is bound to."""

    protocol: Protocol
    ip: str
    port: int

    @property
    def family(self) -> Family:
        """The family of the address."""
        return family_of(self.ip)

    def __str__(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{self.protocol.lower()}/{host}:{self.port}"


def places_of(key: FrontendKey, node_port_addresses: Set[str]) -> frozenset[Place]:
    """The places that a frontend claims."""
    match key:
        case Address(ip, protocol, port):
            return frozenset((Place(protocol, ip, port),))
        case NodePort(family, protocol, port):
            return frozenset(Place(protocol, ip, port) for ip in node_port_addresses if family_of(ip) is family)


def claimants(
    place: Place, frontends: Mapping[FrontendKey, Frontend], node_port_addresses: Set[str]
) -> tuple[FrontendKey, ...]:
    """The frontends that claim a place; the first one has it."""
    claims: list[FrontendKey] = []
    address = Address(place.ip, place.protocol, place.port)
    if address in frontends:
        claims.append(address)
    node_port = NodePort(place.family, place.protocol, place.port)
    if place.ip in node_port_addresses and node_port in frontends:
        claims.append(node_port)
    return tuple(claims)
