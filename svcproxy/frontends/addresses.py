# SPDX-License-Identifier: Apache-2.0
"""IP addresses and CIDRs in canonical text form. Pure; memos are bounded.

The text of an address is its identity everywhere in svcproxy, so that every spelling has to become the same text once,
where it enters. IPv4 written the usual way is recognised without being parsed: almost every address of a cluster is.
"""

import ipaddress
import re
from functools import lru_cache

from svcproxy.model.meta import Family, family_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ADDRESS_MEMO = 16384
"""Spellings remembered, other than plain IPv4."""
NETWORK_MEMO = 4096
"""CIDRs remembered as parsed."""

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_plain_ipv4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}").fullmatch
_cidr = re.compile(r"[0-9a-fA-F:.]+/[0-9]{1,3}").fullmatch


def canonical(text: str) -> str | None:
    """The address as every part of svcproxy spells it (RFC 5952 for IPv6); None if it is not one.

    An IPv4-mapped IPv6 address is the IPv4 address, as in Kubernetes. Zone identifiers are refused.
    """
    return text if _plain_ipv4(text) is not None else _parse_address(text)


def canonical_of(text: str, family: Family) -> str | None:
    """The canonical address if `text` is one of that family, else None."""
    ip = canonical(text)
    return ip if ip is not None and family_of(ip) is family else None


def network(cidr: str) -> Network | None:
    """The parsed `address/length`, host bits ignored; None if it is not one, a bare address included."""
    return _parse_network(cidr)


def contains(cidr: str, ip: str) -> bool:
    """Whether a canonical address is inside; False for what is not a CIDR or of the other family."""
    parsed = _parse_network(cidr)
    return parsed is not None and ipaddress.ip_address(ip) in parsed


def is_loopback(ip: str) -> bool:
    """Whether a canonical address is in 127.0.0.0/8 or is ::1."""
    return ip.startswith("127.") or ip == "::1"


def host_network(ip: str) -> str:
    """The CIDR of one canonical address."""
    return f"{ip}/128" if ":" in ip else f"{ip}/32"


@lru_cache(maxsize=ADDRESS_MEMO)
def _parse_address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


@lru_cache(maxsize=NETWORK_MEMO)
def _parse_network(cidr: str) -> Network | None:
    if _cidr(cidr) is None:
        return None
    try:
        return ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        return None
