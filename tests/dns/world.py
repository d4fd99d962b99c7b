# SPDX-License-Identifier: Apache-2.0
"""The cluster that the acceptance cases ask about, from API objects to a worker's core, and dnspython as the client."""

import ipaddress
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import strategies as st

from svcproxy.model import AddressType, Changes, Object, Store
from svcproxy.model.meta import Protocol
from svcproxy.names.builder import NameBuilder
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, PodRecord, Record, ServiceRecord
from svcproxy_dns.answers import Answers
from svcproxy_dns.contents import Schema
from svcproxy_dns.domains import Domains
from svcproxy_dns.rendered import Rendered
from svcproxy_dns.zone import Zone
from tests.names.world import endpoint, endpoint_slice, external, namespace, port, service

UDP = 0
ZONES = ("cluster.local", "in-addr.arpa", "ip6.arpa")
DEFAULT = Schema()
SERVER = "10.244.0.20"
"""The address that the server is reached at."""
SERIAL = 1_800_000_000
SHOP = ".shop.svc.cluster.local."
SOA = f"cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 30"

_DB = [("db", 5432)]
OBJECTS: tuple[Object, ...] = (
    *map(namespace, ("default", "shop", "kube-system", "empty")),
    service(
        "kube-dns", "10.96.0.10", ports=[port(53, "dns", Protocol.UDP), port(53, "dns-tcp")], namespace="kube-system"
    ),
    endpoint_slice("kube-dns-1", "kube-dns", endpoint("10.244.0.20"), ports=[("dns-tcp", 53)], namespace="kube-system"),
    service("web", "10.96.10.1", ports=[port(80, "http"), port(443, "https"), port(9000)]),
    endpoint_slice(
        "web-1",
        "web",
        endpoint("10.244.1.5", hostname="web-a"),
        endpoint("10.244.1.6"),
        endpoint("10.244.1.7", ready=False),
        ports=[("http", 8080), ("https", 8443)],
    ),
    service("dual", "10.96.10.2", "fd00:96::2", ports=[port(80, "http")]),
    service("v6", "fd00:96::3", ports=[port(80, "http")]),
    service("noports", "10.96.10.4"),
    service("idle", "10.96.10.5", ports=[port(80, "http")]),
    service("lb", "10.96.10.9", ports=[port(80, "http")]),
    service("soon", ports=[port(80, "http")]),
    service("hl", "None", ports=[port(5432, "db")]),
    endpoint_slice(
        "hl-1",
        "hl",
        endpoint("10.244.2.1", hostname="db-0"),
        endpoint("10.244.2.2", hostname="db-1"),
        endpoint("10.244.2.3"),
        endpoint("10.244.2.4", hostname="db-9", ready=False, serving=True),
        endpoint("10.244.2.5", hostname="db-nil", ready=None),
        ports=_DB,
    ),
    endpoint_slice("hl-2", "hl", endpoint("10.244.2.1", hostname="db-0"), ports=_DB),
    endpoint_slice(
        "hl-3",
        "hl",
        endpoint("fd00:244::1", hostname="db-0"),
        endpoint("fd00:244:0:0:1::"),
        ports=_DB,
        kind=AddressType.IPV6,
    ),
    service("down", "None", ports=[port(5432, "db")]),
    endpoint_slice("down-1", "down", endpoint("10.244.3.1", ready=False), ports=_DB),
    service("bare", "None"),
    endpoint_slice("bare-1", "bare", endpoint("10.244.4.1", hostname="n0"), endpoint("10.244.4.2")),
    service("anyport", "None", ports=[port(5432, "db")]),
    endpoint_slice("anyport-1", "anyport", endpoint("10.244.6.1"), ports=[("db", None), ("http", 80)]),
    service("pnr", "None"),
    endpoint_slice("pnr-1", "pnr", endpoint("10.244.5.1", hostname="p-0", serving=False)),
    external("ext", "www.example.com"),
    external("extp", "www.example.com", [port(80, "http")]),
    external("alias", "web.shop.svc.cluster.local"),
    external("alias6", "Dual.shop.svc.cluster.local."),
    external("version", "dns-version.cluster.local"),
    external("apex", "cluster.local"),
    external("address", "1.10.96.10.in-addr.arpa"),
    external("ghost", "nope.shop.svc.cluster.local"),
    external("self", "self.shop.svc.cluster.local"),
    external("ring-a", "ring-b.shop.svc.cluster.local"),
    external("ring-b", "ring-a.shop.svc.cluster.local"),
    external("bigalias", "big.shop.svc.cluster.local"),
    external("ipname", "192.0.2.7"),
    service("big", "None", ports=[port(80, "p")]),
    *(
        endpoint_slice(
            f"big-{part}", "big", *(endpoint(f"10.245.{part}.{low}") for low in range(100)), ports=[("p", 80)]
        )
        for part in range(2)
    ),
)


def records() -> list[Record]:
    store = Store()
    for each in OBJECTS:
        store.apply(Changes(type(each), (each,)))
    return list(NameBuilder(store).records())


def empty_zone(schema: Schema = DEFAULT, server_addresses: Sequence[str] = (SERVER,)) -> Zone:
    return Zone(schema, ttl=30, rng=random.Random(7), server_addresses=server_addresses)


def synced_zone(held: Iterable[Record], schema: Schema = DEFAULT) -> Zone:
    zone = empty_zone(schema)
    take(zone, held)
    return zone


def take(zone: Zone, held: Iterable[Record]) -> None:
    zone.begin_snapshot()
    zone.change(list(held), ())
    for _ in zone.sweep(1000):
        pass


@dataclass(frozen=True)
class Answer:
    """What a client sees, in presentation form."""

    rcode: str
    records: frozenset[str] = frozenset()
    """OWNER TYPE RDATA"""
    authority: tuple[str, ...] = ()
    additional: frozenset[str] = frozenset()
    """OWNER TYPE RDATA, without OPT"""


def noerror(*found: str, add: Iterable[str] = ()) -> Answer:
    return Answer("NOERROR", frozenset(found), additional=frozenset(add))


def expand(answer: Answer) -> Answer:
    """`~` in records stands for the namespace that most of the objects are in."""
    records, additional = (
        frozenset(each.replace("~", SHOP) for each in section) for section in (answer.records, answer.additional)
    )
    return Answer(answer.rcode, records, answer.authority, additional)


NODATA = Answer("NOERROR", authority=(SOA,))
NXDOMAIN = Answer("NXDOMAIN", authority=(SOA,))
SERVFAIL = Answer("SERVFAIL", authority=(SOA,))
REFUSED = Answer("REFUSED")


class Client:
    """Asks a core, and reads its answers with dnspython."""

    def __init__(self, zone: Zone, zones: Sequence[str] = ZONES) -> None:
        self.zone = zone
        self.rendered = Rendered()
        self.core = Answers(zone, Domains(zones), self.rendered, SERIAL)

    def exchange(self, query: dns.message.Message | bytes, transport: int = UDP) -> dns.message.Message:
        wire = query if isinstance(query, bytes) else query.to_wire()
        response = self.core.respond(wire, transport)
        assert isinstance(response, bytes)
        return dns.message.from_wire(response)

    def ask(self, qname: str, qtype: str, transport: int = UDP) -> Answer:
        """The answer, the same four times: rendered and kept, without and with EDNS."""
        query = dns.message.make_query(qname, qtype)
        first, again = self.exchange(query, transport), self.exchange(query, transport)
        with_opt = dns.message.make_query(qname, qtype, use_edns=0, payload=4096)
        edns, edns_again = self.exchange(with_opt, transport), self.exchange(with_opt, transport)
        assert (first.edns, edns.edns, edns_again.edns) == (-1, 0, 0)
        assert read(first) == read(again)
        assert read(edns) == read(edns_again)
        if not first.flags & dns.flags.TC:
            assert read(edns) == read(first)
        return read(first)


def read(message: dns.message.Message) -> Answer:
    return Answer(
        dns.rcode.to_text(message.rcode()),
        frozenset(line for rrset in message.answer for line in lines(rrset)),
        tuple(line for rrset in message.authority for line in rrset.to_text().splitlines()),
        frozenset(line for rrset in message.additional for line in lines(rrset)),
    )


def lines(rrset: dns.rrset.RRset) -> Iterable[str]:
    for rdata in rrset:
        yield f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"


def addresses(message: dns.message.Message) -> list[str]:
    """The addresses of the answer in their order."""
    return [str(rdata) for rrset in message.answer for rdata in rrset]


_NAMESPACES = st.sampled_from(["shop", "yard"])
_NAMES = st.sampled_from(["web", "db"])
_CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "fd00::2")
_ENDPOINT_IPS = ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00:1::")
_PORTS = st.sampled_from([(), (NamedPort("http", Protocol.TCP, 80),), (NamedPort("dns", Protocol.UDP, 53),)])
record = st.one_of(
    st.builds(NamespaceRecord, _NAMESPACES),
    st.builds(
        ServiceRecord,
        _NAMESPACES,
        _NAMES,
        st.sampled_from([(), ("10.96.0.1",), _CLUSTER_IPS[1:]]),
        _PORTS,
    ),
    st.builds(ServiceRecord, _NAMESPACES, _NAMES, external_name=st.sampled_from(["a.example", "db.shop.svc.zone"])),
    st.builds(
        EndpointRecord,
        _NAMESPACES,
        _NAMES,
        st.sampled_from(_ENDPOINT_IPS),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["", "pod-1"]),
        _PORTS,
    ),
    st.builds(PodRecord, _NAMESPACES, st.sampled_from(_ENDPOINT_IPS)),
)
DOMAIN = "cluster.local"
PROBES: list[str] = [
    f"{left}{name}.{space}.svc.{DOMAIN}"
    for space in ("shop", "yard")
    for name in ("web", "db")
    for left in (
        "",
        "_http._tcp.",
        "_dns._udp.",
        "_tcp.",
        "_udp.",
        "a.",
        "b.",
        "pod-1.",
        "10-0-0-1.",
        "10-0-0-2.",
        "fd00--1.",
        "fd00-1--0.",
    )
]
PROBES += [
    f"{left}.{DOMAIN}"
    for left in (
        "shop.svc",
        "yard.svc",
        "shop.pod",
        "1-2-3-4.yard.pod",
        "10-0-0-1.shop.pod",
        "fd00--1.yard.pod",
        "svc",
        "pod",
        "ns.dns",
    )
]
PROBES += [
    DOMAIN,
    *(ipaddress.ip_address(ip).reverse_pointer for ip in (*_CLUSTER_IPS, *_ENDPOINT_IPS)),
]
"""Every name that these records can make, and some that always are."""
