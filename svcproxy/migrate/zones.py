# SPDX-License-Identifier: Apache-2.0
"""Zones, server block keys and upstreams as CoreDNS writes them. Pure. Each raises ValueError if it cannot."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

from svcproxy import syntax

_TRANSPORT = re.compile(r"(dns|tls|https|https3|quic|grpc)://(.*)", re.DOTALL)
_PORT = re.compile(r"(.*):([0-9]{1,5})", re.DOTALL)
ROOT = "."
DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Key:
    """What a server block is for."""

    transport: str
    """`dns`, or another that svcproxy does not serve."""
    zone: str
    """A zone, a CIDR, or `.`."""
    port: int


def key(text: str) -> Key:
    """A key of a server block, such as `.:53` or `tls://example.org`."""
    match = _TRANSPORT.fullmatch(text)
    transport, rest = (match[1], match[2]) if match else ("dns", text)
    match = _PORT.fullmatch(rest)
    name, port = (match[1], int(match[2])) if match else (rest, DNS_PORT)
    return Key(transport, zone(name), port)


def zone(text: str) -> str:
    """A zone in lower case without its final dot, a CIDR, or `.` for all names."""
    return ROOT if text in (ROOT, "") else syntax.zone_or_cidr(text)


def reverse_zone(text: str) -> str:
    """The zone itself; for a CIDR on an octet or nibble, the zone of its addresses."""
    if "/" not in text:
        return text
    network = ip_network(text)
    step = 8 if isinstance(network, IPv4Network) else 4
    if network.prefixlen % step or not network.prefixlen:
        raise ValueError(f"{text} is not the zone of whole {'octets' if step == 8 else 'hexadecimal digits'}")
    labels = network.network_address.reverse_pointer.split(".")
    return ".".join(labels[-2 - network.prefixlen // step :])


def within(name: str, parent: str) -> bool:
    """Whether a zone is in another, or the same."""
    return parent == ROOT or name == parent or name.endswith(f".{parent}")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where names are forwarded to: one of the two."""

    address: str = ""
    """ADDRESS:PORT."""
    file: str = ""
    """A resolv.conf."""


def upstream(text: str) -> Upstream:
    """A TO of `forward`."""
    if text.startswith("/"):
        return Upstream(file=text)
    match = _TRANSPORT.fullmatch(text)
    if match and match[1] != "dns":
        raise ValueError(f"{text}: svcproxy speaks plain DNS to upstreams, nothing over TLS or HTTPS")
    address = match[2] if match else text
    if "%" in address:
        raise ValueError(f"{text}: an address with a zone is taken from a resolv.conf alone")
    try:
        return Upstream(address=syntax.resolver_address(address))
    except ValueError:
        raise ValueError(f"{text}: upstreams are given by address") from None
