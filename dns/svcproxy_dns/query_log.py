# SPDX-License-Identifier: Apache-2.0
"""The query log: a line for each response, or for one of so many, in CoreDNS' words. Pure.

    [INFO] CLIENT:PORT - ID "TYPE CLASS NAME PROTO SIZE DO BUFSIZE" RCODE FLAGS RSIZE DURATIONs NAMESPACE/POD

What is in quotes comes from the client: whatever it sends, a line stays one line, for octets of a name that are no
printable ASCII are written as `\\DDD` and special ones after a backslash (RFC 1035 §5.1). The Pod is left out where it
is not known. RSIZE is as sent, where CoreDNS has the size without compression. Messages that could not be read are not
logged, as in CoreDNS: they are counted.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from svcproxy.config import DnsQueryLogConfig, QueryClass
from svcproxy_dns.elsewhere import Deliver, Later
from svcproxy_dns.rendered import TCP
from svcproxy_dns.wire import (
    HEADER_OCTETS,
    TCP_MAX_OCTETS,
    UDP_DEFAULT_OCTETS,
    Query,
    Rcode,
    RRType,
    parse_query,
    skip_name,
)

TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 17: "RP",
    18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV", 35: "NAPTR", 36: "KX", 37: "CERT", 39: "DNAME",
    41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID",
    50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY",
    62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS", 99: "SPF", 108: "EUI48", 109: "EUI64", 249: "TKEY",
    250: "TSIG", 251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip
"""Types by number; others are TYPE and the number (RFC 3597 §5)."""
CLASSES = {1: "IN", 2: "CS", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_RCODES = {rcode.value: rcode.name for rcode in Rcode} | {
    6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
}  # fmt: skip
_FLAGS = (
    (0x8000, "qr"),
    (0x400, "aa"),
    (0x200, "tc"),
    (0x100, "rd"),
    (0x80, "ra"),
    (0x40, "z"),
    (0x20, "ad"),
    (0x10, "cd"),
)
_ESCAPES = {
    octet: f"\\{chr(octet)}" if chr(octet) in ".'@;()\"\\ " else f"\\{octet:03}"
    for octet in range(256)
    if chr(octet) in ".'@;()\"\\ " or not 0x20 < octet < 0x7F
}

Pod = tuple[str, str]
"""Namespace and name."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One response."""

    client: str
    port: int
    id: int
    type: str
    dns_class: str
    name: str
    proto: str
    size: int
    do: bool
    bufsize: int
    rcode: str
    flags: str
    rsize: int
    duration: float
    """Seconds."""
    pod: Pod | None

    def line(self) -> str:
        """As CoreDNS writes it, without the end of the line."""
        client = f"[{self.client}]" if ":" in self.client else self.client
        asked = (
            f"{self.type} {self.dns_class} {self.name} {self.proto} {self.size} {str(self.do).lower()} {self.bufsize}"
        )
        pod = f" {self.pod[0]}/{self.pod[1]}" if self.pod is not None else ""
        duration = f"{self.duration:.9f}".rstrip("0").rstrip(".")
        return (
            f'[INFO] {client}:{self.port} - {self.id} "{asked}" {self.rcode} {self.flags} {self.rsize} {duration}s{pod}'
        )

    def facts(self) -> dict[str, object]:
        """The same by name."""
        return {
            "client": self.client,
            "port": self.port,
            "id": self.id,
            "type": self.type,
            "class": self.dns_class,
            "name": self.name,
            "proto": self.proto,
            "size": self.size,
            "do": self.do,
            "bufsize": self.bufsize,
            "rcode": self.rcode,
            "flags": self.flags,
            "rsize": self.rsize,
            "duration": round(self.duration, 9),
        } | ({"namespace": self.pod[0], "pod": self.pod[1]} if self.pod is not None else {})


class QueryLog:
    """Chooses what is logged. Listeners call `answered`, or `follow` where the response comes later."""

    def __init__(
        self,
        config: DnsQueryLogConfig,
        pod_of: Callable[[str], Pod | None],
        write: Callable[[Entry], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`pod_of`: the Pod that has an address. `write` takes what is chosen and must not wait."""
        self.config = config
        self._every = QueryClass.ALL in config.classes
        self._pod_of = pod_of
        self._write = write
        self.clock = clock
        """Seconds, monotonic: the caller takes the time when it has read the query."""
        self._rng = rng
        self._second = 0
        self._in_second = 0
        self.lines = 0
        """Entries written."""
        self.over = 0
        """Entries left out because there were more than `lines_max` in a second."""

    def answered(self, message: bytes, response: bytes, client: Sequence[object], transport: int, began: float) -> None:
        """A response has been sent. `client` begins with address and port; `began`: when the query was read."""
        one_in = self.config.one_in
        if one_in > 1 and self._rng.random() * one_in >= 1:
            return
        if not self._every and class_of(response) not in self.config.classes:
            return
        query = parse_query(message)
        if not isinstance(query, Query):
            return
        now = self.clock()
        if int(now) != self._second:
            self._second, self._in_second = int(now), 0
        if self._in_second >= self.config.lines_max:
            self.over += 1
            return
        self._in_second += 1
        self.lines += 1
        address = str(client[0])
        self._write(
            _entry(
                query, message, response, address, client[1], transport, max(now - began, 0.0), self._pod_of(address)
            )
        )

    def follow(self, later: Later, message: bytes, client: Sequence[object], transport: int, began: float) -> Later:
        """What finds the response out, and tells the log."""
        return _Followed(self, later, message, client, transport, began)


class _Followed:
    """See `QueryLog.follow`."""

    def __init__(
        self, log: QueryLog, later: Later, message: bytes, client: Sequence[object], transport: int, began: float
    ) -> None:
        self._log, self._later = log, later
        self._message, self._client, self._transport, self._began = message, client, transport, began

    def begin(self, client: str, deliver: Deliver) -> None:
        """See `Later`."""

        def delivered(response: bytes) -> None:
            deliver(response)
            self._log.answered(self._message, response, self._client, self._transport, self._began)

        self._later.begin(client, delivered)


def class_of(response: bytes) -> QueryClass:
    """What CoreDNS' log plugin calls a response (plugin/pkg/response)."""
    rcode, answers, authorities = response[3] & 0xF, response[6:8] != b"\0\0", response[8:10] != b"\0\0"
    if rcode == Rcode.NXDOMAIN:
        return QueryClass.ERROR if answers else QueryClass.DENIAL
    if rcode != Rcode.NOERROR:
        return QueryClass.ERROR
    if answers or not authorities:
        return QueryClass.SUCCESS
    owner = skip_name(response, HEADER_OCTETS) + 4
    at = skip_name(response, owner)
    return QueryClass.DENIAL if response[at : at + 2] == RRType.SOA.to_bytes(2, "big") else QueryClass.SUCCESS


def _entry(
    query: Query,
    message: bytes,
    response: bytes,
    client: str,
    port: object,
    transport: int,
    duration: float,
    pod: Pod | None,
) -> Entry:
    flags = int.from_bytes(response[2:4], "big")
    rcode = int(Rcode.BADVERS) if query.edns_version and not flags & 0xF else flags & 0xF
    tcp = bool(transport & TCP)
    return Entry(
        client=client,
        port=int(str(port)),
        id=int.from_bytes(message[:2], "big"),
        type=TYPES.get(query.qtype, f"TYPE{query.qtype}"),
        dns_class=CLASSES.get(query.qclass, f"CLASS{query.qclass}"),
        name=spelled(query.labels),
        proto="tcp" if tcp else "udp",
        size=len(message),
        do=query.dnssec_ok,
        bufsize=TCP_MAX_OCTETS if tcp else max(query.opt_payload or 0, UDP_DEFAULT_OCTETS),
        rcode=_RCODES.get(rcode, str(rcode)),
        flags=_flags(flags & ~0xF),
        rsize=len(response),
        duration=duration,
        pod=pod,
    )


@lru_cache(1024)
def _flags(flags: int) -> str:
    return ",".join(name for bit, name in _FLAGS if flags & bit)


def spelled(labels: Sequence[str]) -> str:
    """A name of labels, each character an octet, in printable ASCII (RFC 1035 §5.1), with the final dot."""
    return "".join([f"{_escaped(label)}." for label in labels]) or "."


def _escaped(label: str) -> str:
    return label if label.isascii() and label.isalnum() else label.translate(_ESCAPES)
