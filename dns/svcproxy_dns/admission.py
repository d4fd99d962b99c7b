# SPDX-License-Identifier: Apache-2.0
"""Which TCP connections are taken: bounds on all, on those of an address and on those of an IPv6 network. Pure."""

import ipaddress
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

NETWORK_BITS = 64
"""An IPv6 host can have any address of its /64. So can the Pods of a node together, which is why a /64 may have more
connections than an address."""


@dataclass(frozen=True, slots=True)
class TcpLimits:
    """What TCP clients may take. Times are in seconds."""

    connections: int = 1024
    """At once, over all addresses. A further one takes the place of the one that has been idle for longest."""
    per_address: int = 128
    """Of them, from one address; a further one is closed at once."""
    per_network: int = 512
    """The same from one IPv6 /64."""
    idle: float = 10.0
    """Between an answer and the next query."""
    message: float = 3.0
    """From the connection to the first message, and from a message's first octet to its last."""
    write: float = 5.0
    """For a client to read answers once the connection's buffers are full."""


class Refusal(StrEnum):
    """Why a connection is not taken."""

    TOTAL = "total"
    """There are too many, and none is idle."""
    ADDRESS = "address"
    NETWORK = "network"


class Admission:
    """Counts connections by where they come from."""

    def __init__(self, limits: TcpLimits) -> None:
        self._limits = limits
        self._by_origin: Counter[Hashable] = Counter()
        self.total = 0

    def refusal(self, address: str) -> Refusal | None:
        """Why an address may have no more connections; None if it may."""
        if self._by_origin[address] >= self._limits.per_address:
            return Refusal.ADDRESS
        network = _network(address)
        if network is not None and self._by_origin[network] >= self._limits.per_network:
            return Refusal.NETWORK
        return Refusal.TOTAL if self.total >= self._limits.connections else None

    def entered(self, address: str) -> None:
        """A connection has been taken."""
        self.total += 1
        self._by_origin.update(_origins(address))

    def left(self, address: str) -> None:
        """A connection that was taken has ended."""
        self.total -= 1
        for origin in _origins(address):
            self._by_origin[origin] -= 1
            if not self._by_origin[origin]:
                del self._by_origin[origin]


def _origins(address: str) -> list[Hashable]:
    network = _network(address)
    return [address] if network is None else [address, network]


def _network(address: str) -> int | None:
    """The number of an IPv6 address' network."""
    if ":" not in address:
        return None
    return int(ipaddress.IPv6Address(address.partition("%")[0])) >> (128 - NETWORK_BITS)
