# SPDX-License-Identifier: Apache-2.0
"""What the administrator decides about frontends: where NodePorts are open, and which external IPs are served. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from svcproxy.errors import ConfigError, Problem
from svcproxy.frontends.addresses import Network, contains, is_loopback, network
from svcproxy.frontends.node import NodeView
from svcproxy.model.meta import Family, family_of


class AddressKeyword(StrEnum):
    """Words that stand for addresses in `node_port_addresses`; each speaks for both families."""

    PRIMARY = "primary"
    """The Node object's address of each family. A family without one takes no NodePorts."""
    LOCALHOST = "localhost"
    """The loopback addresses."""
    ALL = "all"
    """Every address the kernel calls local but the loopback ones."""


@dataclass(frozen=True, slots=True)
class FrontendOptions:
    """Checked when made: raises `ConfigError` that names every entry that cannot be used."""

    node_port_addresses: tuple[str, ...] = (AddressKeyword.PRIMARY.value,)
    """CIDRs of this node's addresses that take NodePorts, or `primary`, `localhost`, `all`, freely mixed. A CIDR of
    length 0 means `all` of its family. A family that no entry speaks for is `all` too, as in kube-proxy, and `warnings`
    says so. Empty means `primary`."""
    external_ips: bool = True
    """Whether `spec.externalIPs` of Services are served at all."""
    external_ip_cidrs: tuple[str, ...] = ()
    """CIDRs that external IPs must be in to be served (CVE-2020-8554); empty allows every address."""
    _keywords: frozenset[str] = field(init=False, repr=False, compare=False)
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [
            Problem(f"not a CIDR nor one of {', '.join(AddressKeyword)}: {entry!r}", path=f"node_port_addresses[{i}]")
            for i, entry in enumerate(self.node_port_addresses)
            if entry not in set(AddressKeyword) and network(entry) is None
        ]
        problems += [
            Problem(f"not a CIDR: {entry!r}", path=f"external_ip_cidrs[{i}]")
            for i, entry in enumerate(self.external_ip_cidrs)
            if network(entry) is None
        ]
        if problems:
            raise ConfigError(problems)
        entries = self.node_port_addresses or (AddressKeyword.PRIMARY.value,)
        object.__setattr__(self, "_keywords", frozenset(e for e in entries if e in set(AddressKeyword)))
        object.__setattr__(self, "_networks", tuple(n for n in map(network, entries) if n is not None))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the administrator may not have meant, for people."""
        return tuple(
            f"node_port_addresses has no {family.label} entry: NodePorts are open on every {family.label} address"
            for family in Family
            if not self._keywords and not self._of(family)
        )

    def selected(self, node: NodeView) -> frozenset[str]:
        """The addresses of the node that take NodePorts."""
        return frozenset(
            ip
            for family in Family
            for ip in self._selected_of(family, [ip for ip in node.addresses if family_of(ip) is family], node)
        )

    def serves_external_ip(self, ip: str) -> bool:
        """Whether a canonical external IP may be served."""
        return self.external_ips and (
            not self.external_ip_cidrs or any(contains(cidr, ip) for cidr in self.external_ip_cidrs)
        )

    def _of(self, family: Family) -> Sequence[Network]:
        return [n for n in self._networks if n.version == family]

    def _selected_of(self, family: Family, local: Sequence[str], node: NodeView) -> Iterable[str]:
        networks = self._of(family)
        everything = (
            AddressKeyword.ALL in self._keywords
            or any(n.prefixlen == 0 for n in networks)
            or not (networks or self._keywords)
        )
        for ip in local:
            if (
                (everything and not is_loopback(ip))
                or (AddressKeyword.LOCALHOST in self._keywords and is_loopback(ip))
                or (AddressKeyword.PRIMARY in self._keywords and ip in node.primary_addresses)
                or any(n.prefixlen and contains(str(n), ip) for n in networks)
            ):
                yield ip
