# SPDX-License-Identifier: Apache-2.0
"""DNS labels and addresses in the one spelling that names are made of. Pure."""

import ipaddress
import re

from svcproxy.model.meta import Family

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123 §2.1 label in lower case, as Kubernetes demands of Services, namespaces and hostnames."""
_TARGET_LABEL = re.compile(r"[a-z0-9_](?:[-_a-z0-9]{0,61}[a-z0-9_])?")
"""A label of a name that others own: underscores are met in the wild."""
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_CANONICAL_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}", re.ASCII)
_NAME_MAX = 253
"""Octets of a name in text form without the final dot (RFC 1035 §2.3.4)."""


def is_label(text: str) -> bool:
    """Whether `text` can be the name of a Service, namespace or host."""
    return _LABEL.fullmatch(text) is not None


def canonical_ip(text: str, family: Family) -> str | None:
    """The address in canonical form (RFC 5952 for IPv6), None if it is not one of the family.

    An address that is canonical already is returned as the same object, so that callers share it.
    """
    if family is Family.IPV4:
        return text if _CANONICAL_IPV4.fullmatch(text) else None
    if "%" in text:
        return None
    try:
        canonical = str(ipaddress.IPv6Address(text))
    except ValueError:
        return None
    return text if canonical == text else canonical


def canonical_target(text: str) -> str | None:
    """An `externalName` in lower case without the final dot; None if it is no host name, or is an address."""
    name = text.lower().removesuffix(".")
    if not name or len(name) > _NAME_MAX or canonical_ip(name, Family.IPV4) is not None:
        return None
    return name if all(map(_TARGET_LABEL.fullmatch, name.split("."))) else None


def address_label(ip: str) -> str:
    """The label of an endpoint without a hostname, from its canonical address.

    Dots and colons become dashes; a label must not end with a dash, so `fd00:1::` gives `fd00-1--0`.
    """
    if ":" not in ip:
        return ip.replace(".", "-")
    label = ip.replace(":", "-")
    return label + "0" if label.endswith("-") else label


def labelled_addresses(label: str) -> tuple[str, str]:
    """The IPv4 and IPv6 texts that `address_label` could have made `label` of; whether they are addresses is open."""
    ipv6 = label.replace("-", ":")
    return label.replace("-", "."), ipv6[:-1] if ipv6.endswith("::0") else ipv6
