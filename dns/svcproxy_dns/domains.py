# SPDX-License-Identifier: Apache-2.0
"""The zones that are answered: cluster domains, which all hold the same names, and zones of addresses. Pure."""

from collections.abc import Sequence

from svcproxy_dns.addresses import IPV4_ZONE, IPV6_ZONE, reverse_zones
from svcproxy_dns.wire import encode_name


class Domain:
    """One zone."""

    __slots__ = ("depth", "labels", "reverse", "wire")

    def __init__(self, name: str) -> None:
        self.labels = name.lower().strip(".").split(".")
        self.depth = len(self.labels)
        self.reverse = tuple(self.labels[-2:]) in (IPV4_ZONE, IPV6_ZONE)
        """Whether its names are addresses."""
        self.wire = encode_name(".".join(self.labels))


class Domains:
    """Finds the zone of a name. The first cluster domain is the one that addresses point to."""

    def __init__(self, zones: Sequence[str]) -> None:
        """`zones`: names in any case, and CIDRs that stand for their reverse zones; one cluster domain at least."""
        names = [name for zone in zones for name in (reverse_zones(zone) if "/" in zone else (zone,))]
        domains = [Domain(name) for name in dict.fromkeys(names)]
        self.primary = next(domain for domain in domains if not domain.reverse)
        self._by_end: dict[str, list[Domain]] = {}
        """By the last label, the longest first."""
        for domain in sorted(domains, key=lambda domain: -domain.depth):
            self._by_end.setdefault(domain.labels[-1], []).append(domain)

    def find(self, labels: list[str]) -> Domain | None:
        """The longest zone that a name in lower case is in, None if it is in none."""
        if labels:
            for domain in self._by_end.get(labels[-1], ()):
                if labels[-domain.depth :] == domain.labels:
                    return domain
        return None
