# SPDX-License-Identifier: Apache-2.0
"""Addresses between text, octets and the names that PTR is asked about. Pure.

Texts are canonical (RFC 5952) as `svcproxy.names.labels.canonical_ip` makes them; they are not checked again.
"""

import re
import struct
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from svcproxy.model.meta import Family
from svcproxy.names.labels import canonical_ip

IPV4_ZONE = ("in-addr", "arpa")
IPV6_ZONE = ("ip6", "arpa")
_IPV4_LABELS = 4 + len(IPV4_ZONE)
_NIBBLES = 32
_IPV6_LABELS = _NIBBLES + len(IPV6_ZONE)
_GROUPS = struct.Struct(">8H")
_GROUPS_TEXT = ":".join(["%x"] * 8)
_ZEROS = re.compile(r"(?:^|:)0(?::0)+(?::|$)")
"""A run of groups with the colons around it."""


def pack_ip(ip: str) -> bytes:
    """A canonical address as octets."""
    if ":" not in ip:
        return bytes(map(int, ip.split(".")))
    if "." in ip:
        return bytes(10) + b"\xff\xff" + pack_ip(ip.rpartition(":")[2])
    left, shortened, right = ip.partition("::")
    groups = left.split(":") if left else []
    if shortened:
        tail = right.split(":") if right else []
        groups += ["0"] * (8 - len(groups) - len(tail)) + tail
    return bytes.fromhex("".join([group.rjust(4, "0") for group in groups]))


def reverse_address(labels: Sequence[str]) -> str | None:
    """The canonical address that a whole name below `in-addr.arpa` or `ip6.arpa` spells (RFC 1035 §3.5, RFC 3596 §2.5);
    None if it spells none. Labels are in lower case."""
    if len(labels) == _IPV4_LABELS and labels[4] == IPV4_ZONE[0]:
        return canonical_ip(".".join(labels[3::-1]), Family.IPV4)
    if len(labels) == _IPV6_LABELS and labels[_NIBBLES] == IPV6_ZONE[0]:
        nibbles = "".join(labels[31::-1])
        return _ipv6_text(nibbles) if len(nibbles) == _NIBBLES else None
    return None


def _ipv6_text(nibbles: str) -> str | None:
    """The canonical address of 32 hexadecimal digits; None if they are none."""
    try:
        text = _GROUPS_TEXT % _GROUPS.unpack(bytes.fromhex(nibbles))
    except (ValueError, struct.error):  # the latter for blanks, which `fromhex` passes over
        return None
    runs = list(_ZEROS.finditer(text))
    if not runs:
        return text
    start, end = max(runs, key=_groups).span()
    return f"{text[:start]}::{text[end:]}"


def _groups(run: re.Match[str]) -> int:
    return run[0].count("0")


def reverse_zones(cidr: str) -> list[str]:
    """The zones that hold the addresses of a CIDR: one, or as many as end on a label (RFC 2317 has no use here)."""
    network = ip_network(cidr)
    bits = 8 if isinstance(network, IPv4Network) else 4
    prefix = -(-network.prefixlen // bits) * bits
    return [_reverse_zone(each, prefix // bits) for each in network.subnets(new_prefix=prefix)]


def _reverse_zone(network: IPv4Network | IPv6Network, labels: int) -> str:
    name = network.network_address.reverse_pointer.split(".")
    return ".".join(name[len(name) - len(IPV4_ZONE) - labels :])
