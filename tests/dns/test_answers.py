# SPDX-License-Identifier: Apache-2.0
"""What is answered, by name and type. `~` stands for `.shop.svc.cluster.local.`"""

import itertools

import dns.edns
import dns.flags
import dns.message
import pytest

from svcproxy.names.records import EndpointRecord, NamespaceRecord, Record, ServiceRecord
from svcproxy_dns.rendered import TCP
from svcproxy_dns.zone import PodNames
from tests.dns.world import (
    NODATA,
    NXDOMAIN,
    REFUSED,
    SERIAL,
    SERVFAIL,
    SHOP,
    SOA,
    UDP,
    Answer,
    Client,
    addresses,
    empty_zone,
    noerror,
    read,
    records,
    synced_zone,
    take,
)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(synced_zone(records()))


WEB = "web.shop.svc.cluster.local."


@pytest.mark.parametrize(
    ("qname", "qtype", "expected"),
    [
        pytest.param("web~", "A", noerror("web~ A 10.96.10.1"), id="A1: ClusterIP"),
        pytest.param("web~", "AAAA", NODATA, id="A2: NODATA, not NXDOMAIN"),
        pytest.param("v6~", "A", NODATA, id="A3: IPv6 only"),
        pytest.param("v6~", "AAAA", noerror("v6~ AAAA fd00:96::3"), id="A4: IPv6 only"),
        pytest.param("dual~", "AAAA", noerror("dual~ AAAA fd00:96::2"), id="A5: dual stack"),
        pytest.param("dual~", "A", noerror("dual~ A 10.96.10.2"), id="A5: dual stack, the other family"),
        pytest.param("idle~", "A", noerror("idle~ A 10.96.10.5"), id="A7: no slices at all"),
        pytest.param("lb~", "A", noerror("lb~ A 10.96.10.9"), id="A8: the cluster IP of a LoadBalancer"),
        pytest.param("_https._udp.web~", "SRV", NXDOMAIN, id="A11: port of another protocol"),
        pytest.param("_grpc._tcp.web~", "SRV", NXDOMAIN, id="A12: no such port"),
        pytest.param("noports~", "SRV", NODATA, id="A13: Service without ports"),
        pytest.param("web-a.web~", "A", noerror("web-a.web~ A 10.244.1.5"), id="A14: endpoint of a ClusterIP Service"),
        pytest.param("10-244-1-6.web~", "A", noerror("10-244-1-6.web~ A 10.244.1.6"), id="A15: endpoint by address"),
        pytest.param("10-244-1-5.web~", "A", NXDOMAIN, id="A16: it has a hostname, so no dashed name"),
        pytest.param("10-244-1-7.web~", "A", NXDOMAIN, id="A17: not ready"),
        pytest.param("nope~", "A", NXDOMAIN, id="A19: unknown Service"),
        pytest.param("nope~", "HTTPS", NXDOMAIN, id="A20: unknown Service, any type"),
        pytest.param("web~", "HTTPS", NODATA, id="A21: HTTPS"),
        pytest.param("web~", "MX", NODATA, id="A22: MX"),
        pytest.param("web~", "ANY", NODATA, id="A23: ANY"),
        pytest.param(
            "hl~",
            "A",
            noerror(*(f"hl~ A 10.244.2.{low}" for low in (1, 2, 3, 5))),
            id="A24: headless: ready or null, each address once",
        ),
        pytest.param(
            "hl~", "AAAA", noerror("hl~ AAAA fd00:244::1", "hl~ AAAA fd00:244:0:0:1::"), id="A25: headless, IPv6"
        ),
        pytest.param("db-0.hl~", "A", noerror("db-0.hl~ A 10.244.2.1"), id="A27: endpoint by hostname"),
        pytest.param("db-0.hl~", "AAAA", noerror("db-0.hl~ AAAA fd00:244::1"), id="A28: same name, other family"),
        pytest.param("db-1.hl~", "AAAA", NODATA, id="A29: the name exists in the other family"),
        pytest.param("db-9.hl~", "A", NXDOMAIN, id="A30: serving is not ready"),
        pytest.param(
            "fd00-244-0-0-1--0.hl~",
            "AAAA",
            noerror("fd00-244-0-0-1--0.hl~ AAAA fd00:244:0:0:1::"),
            id="A31: trailing :: is --0",
        ),
        pytest.param("down~", "A", NXDOMAIN, id="A32: headless, nothing ready"),
        pytest.param("down~", "SRV", NXDOMAIN, id="A33: headless, nothing ready, any type"),
        pytest.param("bare~", "A", noerror("bare~ A 10.244.4.1", "bare~ A 10.244.4.2"), id="A34: headless, no ports"),
        pytest.param("bare~", "SRV", NODATA, id="A35: headless, no ports"),
        pytest.param("p-0.pnr~", "A", noerror("p-0.pnr~ A 10.244.5.1"), id="A36: ready as the slice says"),
        pytest.param("ext~", "A", noerror("ext~ CNAME www.example.com."), id="A37: ExternalName, nobody to ask"),
        pytest.param("ext~", "CNAME", noerror("ext~ CNAME www.example.com."), id="A38: the CNAME alone"),
        pytest.param("ext~", "SRV", NODATA, id="A39: ExternalName has no SRV"),
        pytest.param("_http._tcp.extp~", "SRV", NXDOMAIN, id="A40: nor have its ports"),
        pytest.param("sub.ext~", "A", NXDOMAIN, id="A41: nothing below an ExternalName"),
        pytest.param(
            "alias~", "A", noerror(f"alias~ CNAME {WEB}", f"{WEB} A 10.96.10.1"), id="A42: followed within the zone"
        ),
        pytest.param("ghost~", "CNAME", noerror("ghost~ CNAME nope~"), id="A43: CNAME to what does not exist"),
        pytest.param("self~", "A", NODATA, id="A45: CNAME to itself"),
        pytest.param("ring-a~", "A", NODATA, id="A45: CNAMEs in a ring"),
        pytest.param("ipname~", "A", NXDOMAIN, id="A46: ExternalName that is an address"),
        pytest.param("cluster.local.", "A", NODATA, id="A47: apex"),
        pytest.param("svc.cluster.local.", "A", NODATA, id="A48: svc"),
        pytest.param("pod.cluster.local.", "AAAA", NODATA, id="A49: pod"),
        pytest.param("shop.svc.cluster.local.", "A", NODATA, id="A50: namespace"),
        pytest.param("empty.svc.cluster.local.", "SRV", NODATA, id="A51: namespace without objects"),
        pytest.param("shop.pod.cluster.local.", "A", NODATA, id="A52: namespace of pods"),
        pytest.param("nons.svc.cluster.local.", "A", NXDOMAIN, id="A53: no such namespace"),
        pytest.param("web.nons.svc.cluster.local.", "A", NXDOMAIN, id="A54: nor anything in it"),
        pytest.param("nons.pod.cluster.local.", "A", NXDOMAIN, id="A55: nor its pods"),
        pytest.param("foo.cluster.local.", "NS", NXDOMAIN, id="A56: foreign label"),
        pytest.param("shop.cluster.local.", "A", NXDOMAIN, id="A57: namespace without svc"),
        pytest.param("a.b.c.web~", "A", NXDOMAIN, id="A58: too many labels"),
        pytest.param("*~", "A", NXDOMAIN, id="A59: wildcards are nothing special"),
        pytest.param("*.*.svc.cluster.local.", "A", NXDOMAIN, id="A60: wildcards are nothing special"),
        pytest.param("cluster.local.", "SOA", noerror(SOA.replace("30 IN ", "", 1)), id="A61: SOA"),
        pytest.param(
            "ns.dns.cluster.local.", "A", noerror("ns.dns.cluster.local. A 10.96.0.10"), id="A63: the server itself"
        ),
        pytest.param("ns.dns.cluster.local.", "AAAA", NODATA, id="A63: the server itself, other family"),
        pytest.param(
            "10-1-2-3.shop.pod.cluster.local.",
            "A",
            noerror("10-1-2-3.shop.pod.cluster.local. A 10.1.2.3"),
            id="A65: pod by address",
        ),
        pytest.param("10-1-2-3.shop.pod.cluster.local.", "AAAA", NODATA, id="A65: pod by address, other family"),
        pytest.param(
            "fd00--9.shop.pod.cluster.local.",
            "AAAA",
            noerror("fd00--9.shop.pod.cluster.local. AAAA fd00::9"),
            id="A66: pod by IPv6 address",
        ),
        pytest.param("10-1-2-300.shop.pod.cluster.local.", "A", NXDOMAIN, id="A67: no address"),
        pytest.param("10-1-2-3.nons.pod.cluster.local.", "A", NXDOMAIN, id="A68: pod of no namespace"),
        pytest.param("cluster.local.", "AXFR", REFUSED, id="A76: transfer"),
        pytest.param("cluster.local.", "IXFR", REFUSED, id="A76: incremental transfer"),
        pytest.param("cluster.local.", "TXT", NODATA, id="B1: apex"),
        pytest.param("svc.cluster.local.", "TXT", NODATA, id="B1: svc"),
        pytest.param("shop.svc.cluster.local.", "TXT", NODATA, id="B1: namespace"),
        pytest.param("dns-version.cluster.local.", "A", NODATA, id="B2: dns-version"),
        pytest.param("x.dns-version.cluster.local.", "A", NXDOMAIN, id="B2: below dns-version"),
        pytest.param("dns.cluster.local.", "A", NODATA, id="B3: parent of the server's name"),
        pytest.param("ns.dns.cluster.local.", "TXT", NODATA, id="B3: the server's name"),
        pytest.param("x.dns.cluster.local.", "A", NXDOMAIN, id="B3: its sibling"),
        pytest.param("_tcp.web~", "A", NODATA, id="B4: parent of a port"),
        pytest.param("_tcp.web~", "SRV", NODATA, id="B4: parent of a port, SRV"),
        pytest.param("_udp.web~", "A", NXDOMAIN, id="B4: parent of no port"),
        pytest.param("_https._tcp.web~", "A", NODATA, id="a port's name holds no address"),
        pytest.param("_db._tcp.hl~", "A", NODATA, id="a port of headless endpoints"),
        pytest.param("_tcp.hl~", "A", NODATA, id="parent of a port of headless endpoints"),
        pytest.param("_tcp.noports~", "A", NXDOMAIN, id="protocol of a Service without ports"),
        pytest.param("_._tcp.web~", "SRV", NXDOMAIN, id="B6: the unnamed port has no name"),
        pytest.param("http.tcp.web~", "SRV", NXDOMAIN, id="B6: underscores are not optional"),
        pytest.param("nope~", "SOA", NXDOMAIN, id="B5: SOA of an unknown name"),
        pytest.param("web~", "SOA", NODATA, id="B5: SOA of a known name"),
        pytest.param("x.10-1-2-3.shop.pod.cluster.local.", "A", NXDOMAIN, id="B7: nothing below a pod"),
        pytest.param("ext~", "HTTPS", noerror("ext~ CNAME www.example.com."), id="B11: CNAME whatever is asked"),
        pytest.param("ext~", "TXT", noerror("ext~ CNAME www.example.com."), id="B11: CNAME whatever is asked"),
        pytest.param("soon~", "A", NODATA, id="B12: cluster IP still to come"),
        pytest.param("web-a.down~", "A", NXDOMAIN, id="nothing below what does not exist"),
        pytest.param("www.example.com.", "A", REFUSED, id="another zone"),
        pytest.param("xcluster.local.", "A", REFUSED, id="another zone with the same end"),
        pytest.param("local.", "A", REFUSED, id="the parent zone"),
        pytest.param(".", "NS", REFUSED, id="the root"),
        pytest.param("10\\.244\\.1\\.6.web~", "A", NXDOMAIN, id="dots inside a label are no address"),
        pytest.param("fd00:244::1.hl~", "AAAA", NXDOMAIN, id="colons inside a label are no address"),
        pytest.param("web\\.shop.svc.cluster.local.", "A", NXDOMAIN, id="a dot inside a label is no boundary"),
    ],
)
def test_answers(client: Client, qname: str, qtype: str, expected: Answer) -> None:
    expanded = Answer(
        expected.rcode, frozenset(each.replace("~", SHOP) for each in expected.records), expected.authority
    )
    assert client.ask(qname.replace("~", SHOP), qtype) == expanded


def test_a_target_that_does_not_exist_is_nxdomain_after_the_cname(client: Client) -> None:
    """RFC 6604 §3: the code is that of the last name."""
    target = "nope.shop.svc.cluster.local."
    expected = Answer("NXDOMAIN", frozenset({f"ghost.shop.svc.cluster.local. CNAME {target}"}), (SOA,))
    assert client.ask("ghost.shop.svc.cluster.local.", "A") == expected


def test_a_target_without_the_type_is_nodata_after_the_cname(client: Client) -> None:
    expected = Answer("NOERROR", frozenset({f"alias.shop.svc.cluster.local. CNAME {WEB}"}), (SOA,))
    assert client.ask("alias.shop.svc.cluster.local.", "AAAA") == expected


def test_a_cname_comes_before_its_target(client: Client) -> None:
    """M32; glibc needs it."""
    response = client.exchange(dns.message.make_query("alias.shop.svc.cluster.local.", "A"))
    assert [rrset.rdtype.name for rrset in response.answer] == ["CNAME", "A"]


def test_a_long_chain_ends_without_an_answer() -> None:
    links = [ServiceRecord("shop", f"l{n}", external_name=f"l{n + 1}.shop.svc.cluster.local") for n in range(20)]
    client = Client(synced_zone([*links, ServiceRecord("shop", "l20", ("10.96.0.1",))]))
    assert client.ask("l0.shop.svc.cluster.local.", "A") == NODATA
    assert client.ask("l12.shop.svc.cluster.local.", "A").records >= {"l20.shop.svc.cluster.local. A 10.96.0.1"}


@pytest.mark.parametrize("qname", ["WeB.sHoP.SvC.ClUsTeR.lOcAl.", "WEB.shop.svc.cluster.LOCAL."])
def test_case_is_echoed(client: Client, qname: str) -> None:
    """A74: question and owner as asked."""
    response = client.exchange(dns.message.make_query(qname, "A"))
    assert [str(rrset.name) for rrset in (*response.question, *response.answer)] == [qname, qname]
    negative = client.exchange(dns.message.make_query("x" + qname, "A"))
    assert [str(rrset.name) for rrset in negative.authority] == [qname.split(".", 3)[3]], "the zone as asked"
    assert addresses(response) == ["10.96.10.1"]


def test_flags_are_those_of_an_authority_without_recursion(client: Client) -> None:
    response = client.exchange(dns.message.make_query(WEB, "A"))
    assert response.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD
    assert [rrset.ttl for rrset in response.answer] == [30]


@pytest.mark.parametrize(
    ("payload", "transport", "limit", "count"),
    [
        pytest.param(None, UDP, 512, 29, id="M10: UDP without EDNS"),
        pytest.param(100, UDP, 512, 28, id="M2: a payload below 512 is 512"),
        pytest.param(1232, UDP, 1232, 73, id="M11: payload 1232"),
        pytest.param(4096, UDP, 4096, 200, id="M11: payload 4096"),
        pytest.param(65535, UDP, 4096, 200, id="payload above ours"),
        pytest.param(None, TCP, 65535, 200, id="M11: TCP"),
        pytest.param(1232, TCP, 65535, 200, id="TCP: the payload size is UDP's"),
    ],
)
@pytest.mark.parametrize("name", ["big", "bigalias"])
def test_large_answers(client: Client, name: str, payload: int | None, transport: int, limit: int, count: int) -> None:
    asked = dns.message.make_query(f"{name}.shop.svc.cluster.local.", "A")
    if payload is not None:
        asked.use_edns(0, payload=payload)
    query = asked.to_wire()
    for _ in range(3):
        response = client.core.respond(query, transport)
        assert isinstance(response, bytes)
        assert len(response) <= limit
        message = dns.message.from_wire(response)
        found = [address for address in addresses(message) if address.startswith("10.")]
        if name == "big":
            assert len(found) == len(set(found)) == count
        assert bool(message.flags & dns.flags.TC) == (len(found) < 200)


def test_every_address_comes_first() -> None:
    """M32, and evenly: each once in a round."""
    client = Client(synced_zone(records()))
    query = dns.message.make_query("hl.shop.svc.cluster.local.", "A")
    first = [addresses(client.exchange(query))[0] for _ in range(400)]
    assert {address: first.count(address) for address in first} == dict.fromkeys(first, 100)
    orders = {tuple(addresses(client.exchange(query))) for _ in range(200)}
    assert len(orders) > len(set(first)), "rotations of more than one order"


# Before the first snapshot is complete


@pytest.mark.parametrize(
    ("qname", "qtype", "expected"),
    [
        pytest.param("web~", "A", noerror("web~ A 10.96.10.1"), id="a ClusterIP is known whole"),
        pytest.param("hl~", "A", SERVFAIL, id="a part of the endpoints is no answer"),
        pytest.param("web-a.web~", "A", SERVFAIL, id="a part of the endpoints is no answer"),
        pytest.param("nope~", "A", SERVFAIL, id="M26: not known yet"),
        pytest.param("nons.svc.cluster.local.", "A", SERVFAIL, id="namespace not known yet"),
        pytest.param("1-2-3-4.nons.pod.cluster.local.", "A", SERVFAIL, id="namespace of a pod not known yet"),
        pytest.param("_x._tcp.web~", "SRV", SERVFAIL, id="a port not known yet"),
        pytest.param("ghost~", "A", SERVFAIL, id="the target not known yet"),
        pytest.param("svc.cluster.local.", "A", NODATA, id="M26: svc"),
        pytest.param("cluster.local.", "A", NODATA, id="M26: apex"),
        pytest.param("foo.cluster.local.", "A", NXDOMAIN, id="no record can make it exist"),
        pytest.param("a.b.c.web~", "A", NXDOMAIN, id="no record can make it exist: too many labels"),
        pytest.param("www.example.com.", "A", REFUSED, id="another zone"),
    ],
)
def test_answers_while_never_synced(qname: str, qtype: str, expected: Answer) -> None:
    zone = empty_zone()
    zone.begin_snapshot()
    zone.change(records(), ())
    expanded = Answer(
        expected.rcode, frozenset(each.replace("~", SHOP) for each in expected.records), expected.authority
    )
    assert Client(zone).ask(qname.replace("~", SHOP), qtype) == expanded


# Changes


def test_a_change_is_in_force_with_the_next_query() -> None:
    """M27 and M28, with every answer kept that can be."""
    client = Client(synced_zone([NamespaceRecord("shop")]))
    headless, first = ServiceRecord("shop", "hl"), EndpointRecord("shop", "hl", "10.0.0.1", "a")
    second = EndpointRecord("shop", "hl", "10.0.0.2")
    name, below = "hl.shop.svc.cluster.local.", "a.hl.shop.svc.cluster.local."
    assert client.ask(name, "A") == NXDOMAIN
    client.zone.change([headless, first], ())
    assert client.ask(name, "A") == noerror(f"{name} A 10.0.0.1")
    assert client.ask(below, "A") == noerror(f"{below} A 10.0.0.1")
    assert client.ask(name, "AAAA") == NODATA
    client.zone.change([second], ())
    assert client.ask(name, "A") == noerror(f"{name} A 10.0.0.1", f"{name} A 10.0.0.2")
    client.zone.change([ServiceRecord("shop", "hl", ("10.96.0.1",))], [headless])
    assert client.ask(name, "A") == noerror(f"{name} A 10.96.0.1")
    assert client.ask(below, "A") == noerror(f"{below} A 10.0.0.1")
    client.zone.change((), [first])
    assert client.ask(below, "A") == NXDOMAIN
    client.zone.change((), [second, ServiceRecord("shop", "hl", ("10.96.0.1",))])
    assert client.ask(name, "A") == client.ask(name, "AAAA") == NXDOMAIN
    assert client.ask("shop.svc.cluster.local.", "A") == NODATA
    client.zone.change((), [NamespaceRecord("shop")])
    assert client.ask("shop.svc.cluster.local.", "A") == NXDOMAIN
    client.zone.change([headless, second], ())
    assert client.ask(name, "A") == noerror(f"{name} A 10.0.0.2"), "back again, the namespace implied"
    assert client.ask("shop.svc.cluster.local.", "A") == NODATA


def test_both_families_agree_on_existence_at_every_step() -> None:
    """B20."""
    client = Client(synced_zone([NamespaceRecord("shop"), ServiceRecord("shop", "hl")]))
    name = "hl.shop.svc.cluster.local."
    steps = [EndpointRecord("shop", "hl", ip, "x") for ip in ("10.0.0.1", "fd00::1", "10.0.0.2")]
    for added, removed in [*zip(steps, itertools.repeat(None), strict=False), *((None, step) for step in steps)]:
        client.zone.change([added] if added else (), [removed] if removed else ())
        for qname in (name, f"x.{name}"):
            assert client.ask(qname, "A").rcode == client.ask(qname, "AAAA").rcode


def test_kept_negative_answers_carry_the_serial_in_force() -> None:
    client = Client(synced_zone(records()))
    query = dns.message.make_query(WEB, "AAAA")
    assert read(client.exchange(query)) == NODATA
    client.core.soa.serial = SERIAL + 7
    assert f" {SERIAL + 7} " in read(client.exchange(query)).authority[0]


def test_endpoints_named_after_pods() -> None:
    held: list[Record] = [
        ServiceRecord("shop", "hl"),
        EndpointRecord("shop", "hl", "10.0.0.1", pod="web-1"),
        EndpointRecord("shop", "hl", "10.0.0.2", "host", "web-2"),
        EndpointRecord("shop", "hl", "10.0.0.3", pod="dotted.name"),
    ]
    client = Client(synced_zone(held, endpoint_pod_names=True))
    found = {
        label: client.ask(f"{label}.hl.shop.svc.cluster.local.", "A").rcode
        for label in ("web-1", "10-0-0-1", "host", "web-2", "10-0-0-3")
    }
    assert [label for label, rcode in found.items() if rcode == "NOERROR"] == ["web-1", "host", "10-0-0-3"]


def test_pod_names_can_be_disabled() -> None:
    zone = empty_zone(pods=PodNames.DISABLED)
    take(zone, records())
    assert Client(zone).ask("10-1-2-3.shop.pod.cluster.local.", "A") == NXDOMAIN
    assert Client(zone).ask("shop.pod.cluster.local.", "A") == NXDOMAIN


# What is kept


@pytest.mark.parametrize(
    ("qname", "kept"),
    [
        pytest.param("web~", True, id="a name that exists"),
        pytest.param("nope~", False, id="a name that does not"),
        pytest.param("WEB~", False, id="another spelling"),
        pytest.param("10-1-2-3.shop.pod.cluster.local.", False, id="a pod: there is one for every address"),
        pytest.param("alias~", False, id="an alias: it depends on its target too"),
        pytest.param("www.example.com.", False, id="another zone"),
    ],
)
def test_only_answers_about_a_bounded_number_of_names_are_kept(qname: str, kept: bool) -> None:
    client = Client(synced_zone(records()))
    client.exchange(dns.message.make_query(qname.replace("~", SHOP), "A"))
    assert len(client.rendered.answers) == kept


def test_queries_with_options_are_not_kept() -> None:
    client = Client(synced_zone(records()))
    options: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, bytes(8))]
    response = client.exchange(dns.message.make_query(WEB, "A", use_edns=0, options=options))
    assert addresses(response) == ["10.96.10.1"]
    assert response.options == (), "B19: an option is not reflected"
    assert not client.rendered.answers


def test_counts() -> None:
    client = Client(synced_zone(records()))
    for _ in range(3):
        client.exchange(dns.message.make_query(WEB, "A"))
    client.exchange(dns.message.make_query(WEB, "A"), TCP | 1)
    client.exchange(dns.message.make_query("nope.shop.svc.cluster.local.", "AAAA"))
    client.exchange(dns.message.make_query(WEB, "TYPE1234"), 1)
    assert client.core.respond(b"short", UDP) is None
    assert client.core.respond(bytes(12), UDP) is not None
    assert client.core.tallies == {
        ("A", "NOERROR"): [3, 0, 0, 1],
        ("AAAA", "NXDOMAIN"): [1, 0, 0, 0],
        ("other", "NOERROR"): [0, 1, 0, 0],
        ("", "FORMERR"): [1, 0, 0, 0],
    }
    assert client.core.dropped == 1
    assert client.core.rendered == 4
