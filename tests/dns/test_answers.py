# SPDX-License-Identifier: Apache-2.0
"""What is answered beyond the acceptance cases. `~` stands for `.shop.svc.cluster.local.`"""

import itertools
from collections import Counter

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from svcproxy.model.meta import Protocol
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, Record, ServiceRecord
from svcproxy_dns.rendered import TCP
from svcproxy_dns.wire import OPT_OCTETS
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
    expand,
    noerror,
    read,
    records,
    synced_zone,
)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(synced_zone(records()))


WEB = "web.shop.svc.cluster.local."
REVERSE_SOA = SOA.replace("cluster.local.", "in-addr.arpa.", 1)
REVERSE_SERVFAIL, REVERSE_NXDOMAIN = (Answer(rcode, authority=(REVERSE_SOA,)) for rcode in ("SERVFAIL", "NXDOMAIN"))
SRV_OF_WEB = noerror(*(f"web~ SRV 0 33 {port} web~" for port in (80, 443, 9000)), add=["web~ A 10.96.10.1"])


def test_a_target_that_does_not_exist_is_nxdomain_after_the_cname(client: Client) -> None:
    """RFC 6604 §3: the code is that of the last name."""
    target = "nope.shop.svc.cluster.local."
    expected = Answer("NXDOMAIN", frozenset({f"ghost.shop.svc.cluster.local. CNAME {target}"}), (SOA,))
    assert client.ask("ghost.shop.svc.cluster.local.", "A") == expected


def test_a_target_without_the_type_is_nodata_after_the_cname(client: Client) -> None:
    expected = Answer("NOERROR", frozenset({f"alias.shop.svc.cluster.local. CNAME {WEB}"}), (SOA,))
    assert client.ask("alias.shop.svc.cluster.local.", "AAAA") == expected


def test_m32_a_cname_comes_before_its_target(client: Client) -> None:
    """glibc needs it."""
    response = client.exchange(dns.message.make_query("alias.shop.svc.cluster.local.", "A"))
    assert [rrset.rdtype.name for rrset in response.answer] == ["CNAME", "A"]


def test_a_long_chain_ends_without_an_answer() -> None:
    links = [ServiceRecord("shop", f"l{n}", external_name=f"l{n + 1}.shop.svc.cluster.local") for n in range(20)]
    client = Client(synced_zone([*links, ServiceRecord("shop", "l20", ("10.96.0.1",))]))
    assert client.ask("l0.shop.svc.cluster.local.", "A") == NODATA
    assert client.ask("l12.shop.svc.cluster.local.", "A").records >= {"l20.shop.svc.cluster.local. A 10.96.0.1"}


@pytest.mark.parametrize(("name", "count"), [("_db._tcp.hl", 5), ("big", 200)])
def test_owners_of_additional_records_point_to_the_targets(client: Client, name: str, count: int) -> None:
    """Each is spelled out once: a response that fits is not cut."""
    query = dns.message.make_query(f"{name}.shop.svc.Cluster.Local.", "SRV")
    response = client.core.respond(query.to_wire(), TCP)
    assert isinstance(response, bytes)
    labels = {rrset.name.labels[0] for rrset in dns.message.from_wire(response).additional}
    assert len(labels) == count
    assert [label for label in labels if response.count(bytes([len(label)]) + label) != 1] == []


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


@pytest.mark.parametrize(
    ("payload", "transport", "limit", "complete"),
    [
        pytest.param(None, UDP, 512, False, id="M12: UDP without EDNS"),
        pytest.param(4096, UDP, 4096, False, id="M12: payload 4096"),
        pytest.param(None, TCP, 65535, True, id="M12: TCP"),
        pytest.param(4096, TCP, 65535, True, id="M12: TCP with EDNS"),
    ],
)
def test_large_answers_with_additional_records(
    client: Client, payload: int | None, transport: int, limit: int, complete: bool
) -> None:
    """What does not fit is cut record by record from the end, the additional section first."""
    asked = dns.message.make_query("big.shop.svc.cluster.local.", "SRV")
    if payload is not None:
        asked.use_edns(0, payload=payload)
    for _ in range(2):
        response = client.core.respond(asked.to_wire(), transport)
        assert isinstance(response, bytes)
        assert len(response) <= limit
        message = dns.message.from_wire(response)
        services, glue = sum(map(len, message.answer)), sum(map(len, message.additional))
        assert (services, glue) == (200, 200) if complete else (services < 200 and not glue)
        assert bool(message.flags & dns.flags.TC) != complete


def test_additional_records_go_before_answers() -> None:
    held: list[Record] = [ServiceRecord("shop", "hl"), *(endpoint_with_port(low) for low in range(8))]
    client = Client(synced_zone(held))
    found: dict[tuple[int, int], None] = {}
    for payload in range(512, 900):
        message = client.exchange(
            dns.message.make_query("hl.shop.svc.cluster.local.", "SRV", use_edns=0, payload=payload)
        )
        counts = sum(map(len, message.answer)), sum(map(len, message.additional))
        assert bool(message.flags & dns.flags.TC) == (counts != (8, 8))
        found[counts] = None
    assert list(found) == sorted(found), "more octets, more records"
    assert {(8, glue) for glue in range(9)} >= found.keys()
    assert len(found) > 2


def endpoint_with_port(low: int) -> EndpointRecord:
    return EndpointRecord("shop", "hl", f"10.0.0.{low}", ports=(NamedPort("db", Protocol.TCP, 5432),))


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
        pytest.param("cluster.local.", "SOA", noerror(SOA.replace("30 IN ", "", 1)), id="M26: SOA"),
        pytest.param("5.1.244.10.in-addr.arpa.", "PTR", REVERSE_SERVFAIL, id="B15: PTR of an endpoint"),
        pytest.param("9.9.9.10.in-addr.arpa.", "PTR", REVERSE_SERVFAIL, id="B15: PTR of what may become one"),
        pytest.param(
            "1.10.96.10.in-addr.arpa.",
            "PTR",
            noerror("1.10.96.10.in-addr.arpa. PTR web~"),
            id="PTR of a ClusterIP is known whole",
        ),
        pytest.param("10.in-addr.arpa.", "PTR", REVERSE_NXDOMAIN, id="no record can make it exist: no address"),
        pytest.param("web~", "SRV", SRV_OF_WEB, id="SRV of a ClusterIP is known whole"),
        pytest.param("hl~", "SRV", SERVFAIL, id="SRV of a part of the endpoints is no answer"),
        pytest.param("foo.cluster.local.", "A", NXDOMAIN, id="no record can make it exist"),
        pytest.param("a.b.c.web~", "A", NXDOMAIN, id="no record can make it exist: too many labels"),
        pytest.param("www.example.com.", "A", REFUSED, id="another zone"),
    ],
)
def test_answers_while_never_synced(qname: str, qtype: str, expected: Answer) -> None:
    zone = empty_zone()
    zone.begin_snapshot()
    zone.change(records(), ())
    assert Client(zone).ask(qname.replace("~", SHOP), qtype) == expand(expected)


# Changes


def test_m27_m28_a_change_is_in_force_with_the_next_query() -> None:
    """With every answer kept that can be."""
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
    assert client.ask("1.0.0.10.in-addr.arpa.", "PTR") == noerror(f"1.0.0.10.in-addr.arpa. PTR {below}")
    client.zone.change((), [first])
    assert client.ask(below, "A") == NXDOMAIN
    assert client.ask("1.0.0.10.in-addr.arpa.", "PTR") == REVERSE_NXDOMAIN
    client.zone.change((), [second, ServiceRecord("shop", "hl", ("10.96.0.1",))])
    assert client.ask(name, "A") == client.ask(name, "AAAA") == NXDOMAIN
    assert client.ask("shop.svc.cluster.local.", "A") == NODATA
    client.zone.change((), [NamespaceRecord("shop")])
    assert client.ask("shop.svc.cluster.local.", "A") == NXDOMAIN
    client.zone.change([headless, second], ())
    assert client.ask(name, "A") == noerror(f"{name} A 10.0.0.2"), "back again, the namespace implied"
    assert client.ask("shop.svc.cluster.local.", "A") == NODATA


def test_b20_both_families_agree_on_existence_at_every_step() -> None:
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


def test_one_kept_answer_serves_whatever_options_a_query_has() -> None:
    client = Client(synced_zone(records()))
    for cookie in (bytes(8), b"another!", b""):
        options: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, cookie)] if cookie else []
        response = client.exchange(dns.message.make_query(WEB, "A", use_edns=0, options=options))
        assert addresses(response) == ["10.96.10.1"]
        assert (response.edns, response.options) == (0, ()), "B19: an option is not reflected"
        assert client.core.rendered == 1


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(b"\0\0\x29\x04\xd0\0\0\0\0\0\1", id="options longer than the message"),
        pytest.param(b"\0\0\x29\x04\xd0\0\0\0\0", id="no length of the options"),
        pytest.param(b"\0\0\x29\x04", id="cut"),
        pytest.param(b"", id="no OPT where one is announced"),
    ],
)
def test_a_cut_opt_is_refused_though_the_question_is_kept(end: bytes) -> None:
    client = Client(synced_zone(records()))
    whole = dns.message.make_query(WEB, "A", use_edns=0, payload=1232).to_wire()
    client.exchange(whole)
    assert client.exchange(whole[:-OPT_OCTETS] + end).rcode() == dns.rcode.FORMERR


def test_a_change_is_seen_by_every_spelling_of_a_query() -> None:
    """A query whose OPT was kept with it too."""
    zone = synced_zone(records())
    client = Client(zone)
    query = dns.message.make_query(WEB, "A", use_edns=0)
    for _ in range(3):
        assert addresses(client.exchange(query)) == ["10.96.10.1"]
    old = next(each for each in records() if isinstance(each, ServiceRecord) and each.name == "web")
    zone.change([ServiceRecord("shop", "web", ("10.96.10.77",), old.ports)], [old])
    for rendered in (2, 2, 2):
        assert addresses(client.exchange(query)) == ["10.96.10.77"]
        assert client.core.rendered == rendered


def test_sizes_and_do_are_counted_however_the_answer_came_about() -> None:
    client = Client(synced_zone(records()))
    queries = [
        dns.message.make_query(name, "A", use_edns=0 if edns else -1, want_dnssec=dnssec)
        for name in (WEB, "hl.shop.svc.cluster.local.", "nope.shop.svc.cluster.local.", "www.example.com.")
        for edns, dnssec in ((False, False), (True, False), (True, True))
    ]
    expected: tuple[Counter[int], Counter[int]] = Counter(), Counter()
    for query in queries * 3:
        wire = query.to_wire()
        response = client.core.respond(wire, 1)
        assert isinstance(response, bytes)
        expected[0][len(wire)] += 1
        expected[1][len(response)] += 1
    counts = client.core.counts
    assert (Counter(counts.requests[UDP]), Counter(counts.responses[UDP])) == expected
    assert counts.dnssec_ok == 12
    assert not counts.requests[TCP]


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
