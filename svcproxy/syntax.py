# SPDX-License-Identifier: Apache-2.0
"""The text forms that configuration and manifests share: addresses, CIDRs, names, URLs. Pure.

Each function returns the canonical form of what it is given, or raises ValueError with a message for people that shows
the text and says what is expected.
"""

import ipaddress
import re
from urllib.parse import urlsplit

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN_MAX = 253
_INTERFACE = re.compile(r"[!#-)+-.0-9;-\[\]-~]{1,15}")

NODE_PORT_KEYWORDS = ("primary", "localhost", "all")


def ip_address(text: str) -> str:
    """An IP address without zone; IPv6 as RFC 5952 writes it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, an address without one is expected")
    return str(address)


def cidr(text: str) -> str:
    """A network as ADDRESS/LENGTH; bits beyond the length are cleared."""
    address, slash, length = text.partition("/")
    if not slash or not length.isdecimal() or not length.isascii():
        raise ValueError(f"{text!r} is not a CIDR such as 10.0.0.0/8")
    try:
        return str(ipaddress.ip_network(f"{ip_address(address)}/{length}", strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is not a CIDR such as 10.0.0.0/8") from None


def node_port_addresses(text: str) -> str:
    """A CIDR or one of the keywords of kube-proxy's nodePortAddresses."""
    if text in NODE_PORT_KEYWORDS:
        return text
    try:
        return cidr(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a CIDR nor one of {', '.join(NODE_PORT_KEYWORDS)}") from None


def intercepted_address(text: str) -> str:
    """An IP address that can be made to stand on the node for a while: unicast, of no interface and no loopback."""
    canonical = ip_address(text)
    address = ipaddress.ip_address(canonical)
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    of_an_interface = address.version == 6 and address.is_link_local
    never = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved
    if never or mapped or of_an_interface or canonical.startswith("0."):
        raise ValueError(
            f"{text!r} cannot be intercepted: a ClusterIP, an address of 169.254.0.0/16 or a ULA is expected"
        )
    return canonical


def listen_address(text: str) -> str:
    """ADDRESS:PORT to bind, IPv6 in brackets. Port 0 lets the kernel choose one."""
    return _address_port(text, default=None)


def resolver_address(text: str) -> str:
    """ADDRESS or ADDRESS:PORT of a DNS server, IPv6 with a port in brackets; the port is 53 if none is given."""
    return _address_port(text, default=53)


def stub_domains(value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Zones, in canonical form, with the resolvers of each."""
    found: dict[str, tuple[str, ...]] = {}
    for text, addresses in value.items():
        name = zone(text)
        if name in found:
            raise ValueError(f"{name} is there twice")
        if not addresses:
            raise ValueError(f"{name} has no upstreams")
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{name} has an upstream twice")
        found[name] = addresses
    return found


def _address_port(text: str, default: int | None) -> str:
    expected = "ADDRESS:PORT" if default is None else "ADDRESS or ADDRESS:PORT"
    problem = ValueError(f"{text!r} is not {expected} with an IP address, IPv6 in brackets")
    if match := re.fullmatch(r"(?:\[([^\]]+:[^\]]*)\]|([^:\[\]]+)):([0-9]{1,5})", text):
        host, port = match[1] or match[2], int(match[3])
    elif default is not None:
        host, port = text.removeprefix("[").removesuffix("]"), default
    else:
        raise problem
    if port > 65535:
        raise ValueError(f"{text!r}: the port is over 65535")
    try:
        host = ip_address(host)
    except ValueError:
        raise problem from None
    return join_address(host, port)


def join_address(host: str, port: int) -> str:
    """ADDRESS:PORT, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Address and port of an ADDRESS:PORT that has been checked."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def dns_label(text: str) -> str:
    """An RFC 1123 label: 1 to 63 of a-z, 0-9 and '-', with '-' neither first nor last."""
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a DNS label: at most 63 of a-z, 0-9 and '-', beginning and ending without '-'"
        )
    return text


def dns_subdomain(text: str) -> str:
    """RFC 1123 labels joined by dots, at most 253 characters: the name of a Node, a Pod, an EndpointSlice."""
    if len(text) > _SUBDOMAIN_MAX or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError(
            f"{text!r} is not a DNS name: labels of a-z, 0-9 and '-' joined by dots, at most 253 characters"
        )
    return text


def zone(text: str) -> str:
    """The name of a DNS zone, in lower case and without the final dot."""
    return dns_subdomain(text.lower().removesuffix("."))


def zone_or_cidr(text: str) -> str:
    """The name of a DNS zone, or a CIDR that stands for its reverse zones."""
    return cidr(text) if "/" in text else zone(text)


def is_reverse(text: str) -> bool:
    """Whether what `zone_or_cidr` returned is a zone of addresses."""
    return "/" in text or text.endswith((".in-addr.arpa", ".ip6.arpa")) or text in {"in-addr.arpa", "ip6.arpa"}


def node_name(text: str) -> str:
    """The name of a Node; upper case is lowered as the kubelet does with host names."""
    return dns_subdomain(text.strip().lower())


def interface_name(text: str) -> str:
    """The name of a network interface, or how it begins: 1 to 15 visible ASCII characters.

    No '/' and ':', which the kernel refuses; no '*', quote and backslash, which nft gives a meaning of their own.
    """
    if not _INTERFACE.fullmatch(text) or text in {".", ".."}:
        raise ValueError(
            f'{text!r} is not the name of a network interface: 1 to 15 characters, no blank and none of / : * \\ "'
        )
    return text


def api_server_url(text: str) -> str:
    """The URL of an API server: http or https, a host, perhaps a port and a path. The final slash is dropped."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"{text!r} is not a URL") from None
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise ValueError(f"{text!r} is not a URL such as https://10.0.0.1:6443")
    if url.username is not None or url.query or url.fragment or re.search(r"\s", text):
        raise ValueError(f"{text!r} has more than scheme, host, port and path; credentials belong into the kubeconfig")
    return text.rstrip("/")


def path(text: str) -> str:
    """The path of a file or directory."""
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return text
