# SPDX-License-Identifier: Apache-2.0
"""CPU time of one answer that is not kept yet, and of one that is: `python bench/dns/render.py`. See README.md."""

import random
import struct
import time
from collections.abc import Callable

from svcproxy.model.meta import Protocol
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, Record, ServiceRecord
from svcproxy_dns.answers import Answers
from svcproxy_dns.contents import Schema
from svcproxy_dns.domains import Domains
from svcproxy_dns.rendered import Rendered
from svcproxy_dns.wire import RRType, encode_name
from svcproxy_dns.zone import Zone

ZONES = ("cluster.local", "in-addr.arpa", "ip6.arpa")
ROUNDS, CALLS = 30, 2000
WEB = "shop.svc.cluster.local"
PORTS = (NamedPort("http", Protocol.TCP, 80), NamedPort("https", Protocol.TCP, 443))
RECORDS: list[Record] = [
    NamespaceRecord("shop"),
    ServiceRecord("shop", "web", ("10.96.10.1",), PORTS),
    ServiceRecord("shop", "dual", ("10.96.10.2", "fd00:96::2"), PORTS),
    ServiceRecord("shop", "db", ports=PORTS[:1]),
    *(EndpointRecord("shop", "db", f"10.244.1.{low}", f"db-{low}", ports=PORTS[:1]) for low in range(3)),
    EndpointRecord("shop", "db", "fd00:244::1", "db-0", ports=PORTS[:1]),
]
QUESTIONS = [
    ("A", f"web.{WEB}", RRType.A),
    ("AAAA", f"dual.{WEB}", RRType.AAAA),
    ("A, three endpoints", f"db.{WEB}", RRType.A),
    ("A, one endpoint by name", f"db-1.db.{WEB}", RRType.A),
    ("SRV of a port", f"_http._tcp.web.{WEB}", RRType.SRV),
    ("SRV of a port, two families", f"_http._tcp.dual.{WEB}", RRType.SRV),
    ("SRV, three endpoints", f"_http._tcp.db.{WEB}", RRType.SRV),
    ("PTR", "2.1.244.10.in-addr.arpa", RRType.PTR),
    ("PTR, IPv6", f"1.{'0.' * 23}4.4.2.0.0.0.d.f.ip6.arpa", RRType.PTR),
    ("NODATA", f"web.{WEB}", RRType.AAAA),
    ("NXDOMAIN", f"nope.{WEB}", RRType.A),
    ("NXDOMAIN by search list", f"www.example.com.{WEB}", RRType.A),
]


EDNS = b"\0\0\x29\x04\xd0" + bytes(6)
COOKIE = EDNS[:-2] + b"\0\x0c\0\x0a\0\x08" + bytes(range(8))


def query(name: str, rrtype: RRType, opt: bytes) -> bytes:
    """As glibc asks, and with EDNS."""
    header = struct.pack(">6H", 1, 0x0100, 1, 0, 0, int(bool(opt)))
    return header + encode_name(name) + struct.pack(">2H", rrtype, 1) + opt


def best(call: Callable[[bytes, int], object], message: bytes) -> float:
    """Microseconds of CPU per call, the least of several rounds."""
    least = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            call(message, 0)
        least = min(least, (time.process_time() - began) / CALLS)
    return least * 1e6


def main() -> None:
    """Print a table."""
    zone = Zone(Schema(), ttl=30, rng=random.Random(1))
    zone.begin_snapshot()
    zone.change(RECORDS, ())
    for _ in zone.sweep(1000):
        pass
    rendered = Rendered()
    answers = Answers(zone, Domains(ZONES), rendered, 1)
    forgetful = Answers(zone, Domains(ZONES), Rendered(entries=0), 1)
    print(f"{'':30} {'anew':>8} {'kept':>8} {'EDNS':>9} {'cookie':>9}   µs")
    for what, name, rrtype in QUESTIONS:
        plain, edns, cookie = (query(name, rrtype, opt) for opt in (b"", EDNS, COOKIE))
        answers.respond(plain, 0)
        kept = plain[2:] in rendered.answers
        times = [best(answers.respond, message) for message in (plain, edns, cookie)] if kept else []
        print(f"{what:30} {best(forgetful.respond, plain):8.1f}", *(f"{each:9.2f}" for each in times))


if __name__ == "__main__":
    main()
