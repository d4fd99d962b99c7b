# SPDX-License-Identifier: Apache-2.0
"""A question, CoreDNS' reply, and what svcproxy should make of it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import dns.flags

from tests.e2e.dns_differential.cluster import ZONE, RandomNames
from tests.e2e.dns_differential.questions import Question
from tests.e2e.dns_differential.replies import Record, Reply

ADDRESSES: Final = ("A", "AAAA")
KEPT: Final = 30
"""Seconds for which either server keeps what the upstream says, at most."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question and CoreDNS' reply, as far as rules have not changed it yet."""

    question: Question
    world: RandomNames
    reply: Reply
    ours: Reply
    """svcproxy's, for what is left to it."""
    absent: bool = False
    """Asked for a SOA: whether CoreDNS says that there is no such name if asked for A."""
    has_pointer: bool = False
    """Asked about an address: whether svcproxy says that something in the cluster has it."""
    lower: Reply | None = None
    """Asked about the server: CoreDNS' reply if the name is spelled in lower case."""
    target: Reply | None = None
    """Asked about an ExternalName Service: svcproxy's reply about its target."""
    minimum: int = 60
    """Seconds for which the upstream's denials hold at most."""

    @property
    def left(self) -> list[str] | None:
        """Lower-case labels left of the cluster's zone, None outside."""
        labels = self.question.labels
        return labels[:-2] if labels[-2:] == ZONE.split(".") else None

    @property
    def reverse(self) -> bool:
        """Whether the name is in a zone of addresses."""
        return self.question.labels[-2:] in (["in-addr", "arpa"], ["ip6", "arpa"])

    @property
    def zone(self) -> str:
        """The zone as asked, if the name is in one."""
        return ".".join(self.question.name.split(".")[-3:])

    @property
    def service(self) -> tuple[str, str] | None:
        """Namespace and name of the Service that the name is of or below, existing or not."""
        left = self.left
        return (left[-2], left[-3]) if left and len(left) > 2 and left[-1] == "svc" else None

    @property
    def alias(self) -> str | None:
        """The target of the ExternalName Service of this very name, with the final dot."""
        key = self.service
        if key is None or len(self.question.labels) != 5 or key not in self.world.services:
            return None
        target = self.world.services[key]["spec"].get("externalName")
        return None if target is None else f"{target.removesuffix('.')}."

    @property
    def echoed(self) -> frozenset[str]:
        """Flags that come back as asked."""
        return frozenset(dns.flags.to_text(self.question.flags & (dns.flags.RD | dns.flags.CD)).split())

    def empty(self, rcode: str, *flags: str) -> Reply:
        """Without records."""
        return replace(
            self.reply,
            rcode=rcode,
            flags=self.echoed | set(flags),
            answer=(),
            authority=(),
            additional=(),
            ordered=True,
        )

    def nodata(self) -> Reply:
        """The name exists in its zone without the type."""
        zone = self.zone
        names = f"{ZONE}." if self.reverse else zone
        soa = Record(zone, 30, "SOA", f"ns.dns.{names} hostmaster.{names} 7200 1800 86400 30")
        return replace(self.empty("NOERROR", "AA"), authority=(soa,))

    def nxdomain(self) -> Reply:
        """The name does not exist in its zone."""
        return replace(self.nodata(), rcode="NXDOMAIN")

    def denied(self) -> Reply:
        """The upstream says that the name does not exist."""
        times = f"7200 900 1209600 {self.minimum}"
        soa = Record(".", min(KEPT, self.minimum), "SOA", f"ns.example.com. hostmaster.example.com. {times}")
        return replace(self.empty("NXDOMAIN", "RA"), authority=(soa,))


Wanted = Callable[[Case], Reply | None]
"""svcproxy's reply; None if there is nothing to say about the case."""
