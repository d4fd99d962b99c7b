# SPDX-License-Identifier: Apache-2.0
"""What a server replied, in a form that two of them can be compared in. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

_SECTIONS = ("answer", "authority", "additional")


class Record(NamedTuple):
    """A record in presentation form."""

    owner: str
    ttl: int
    rrtype: str
    rdata: str
    """Of a SOA without the serial, which is the time of a change."""

    @property
    def lower(self) -> Self:
        """In lower case."""
        return self._replace(owner=self.owner.lower(), rdata=self.rdata.lower())


Section = tuple[Record, ...]
"""In alphabetical order."""


class Edns(NamedTuple):
    """What an OPT says."""

    version: int
    payload: int
    dnssec: bool
    options: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply."""

    rcode: str
    opcode: str
    flags: frozenset[str]
    """Without QR, which is always set."""
    question: tuple[str, ...]
    answer: Section
    authority: Section
    additional: Section
    edns: Edns | None
    octets: int = field(compare=False)
    ordered: bool
    """Whether every CNAME comes before what it leads to."""

    def __str__(self) -> str:
        lines = [f"{self.rcode} {self.opcode} {' '.join(sorted(self.flags))} {self.octets} octets {self.edns}"]
        for name in ("question", *_SECTIONS):
            lines += [
                f"  {name:10} {' '.join(map(str, each)) if isinstance(each, Record) else each}"
                for each in getattr(self, name)
            ]
        return "\n    ".join(lines)

    @property
    def truncated(self) -> bool:
        """Whether there is more."""
        return "TC" in self.flags

    @property
    def nodata(self) -> bool:
        """Whether it says that the name exists without the type."""
        return self.rcode == "NOERROR" and not self.answer and [each.rrtype for each in self.authority] == ["SOA"]

    @property
    def nxdomain(self) -> bool:
        """Whether it says that the name does not exist."""
        return self.rcode == "NXDOMAIN" and not self.answer and [each.rrtype for each in self.authority] == ["SOA"]


def read(octets: bytes) -> Reply:
    """A reply from the wire. Raises `dns.exception.DNSException`."""
    message = dns.message.from_wire(octets, one_rr_per_rrset=True)
    assert message.flags & dns.flags.QR
    edns = None
    if message.edns >= 0:
        options = tuple(sorted(int(option.otype) for option in message.options))
        edns = Edns(message.edns, message.payload, bool(message.ednsflags & dns.flags.DO), options)
    aliases = [index for index, each in enumerate(message.answer) if each.rdtype == dns.rdatatype.CNAME]
    sections = [_section(getattr(message, name)) for name in _SECTIONS]
    return Reply(
        dns.rcode.to_text(message.rcode()),
        dns.opcode.to_text(message.opcode()),
        frozenset(dns.flags.to_text(dns.flags.Flag(message.flags & ~0x780F & ~dns.flags.QR)).split()),
        tuple(
            f"{each.name} {dns.rdataclass.to_text(each.rdclass)} {dns.rdatatype.to_text(each.rdtype)}"
            for each in message.question
        ),
        sections[0],
        sections[1],
        sections[2],
        edns,
        len(octets),
        aliases == list(range(len(aliases))),
    )


def _section(rrsets: list[dns.rrset.RRset]) -> Section:
    records = []
    for rrset in rrsets:
        for rdata in rrset:
            text = str(rdata)
            if rrset.rdtype == dns.rdatatype.SOA:
                first, second, _, rest = text.split(" ", 3)
                text = f"{first} {second} {rest}"
            records.append(Record(str(rrset.name), rrset.ttl, dns.rdatatype.to_text(rrset.rdtype), text))
    return tuple(sorted(records))
