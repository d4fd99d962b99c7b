# SPDX-License-Identifier: Apache-2.0
"""The query log: what is chosen, and how it is written. The lines are those of CoreDNS 1.14.7, but for the sizes."""

import random
from collections.abc import Callable

import dns.message
import dns.name
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import DnsQueryLogConfig, QueryClass
from svcproxy.names.records import EndpointRecord, NodePodRecord, Record
from svcproxy_dns.elsewhere import Deliver
from svcproxy_dns.query_log import Entry, QueryLog, class_of, spelled
from svcproxy_dns.rendered import TCP
from tests.dns.world import UDP, Client, records, synced_zone, take

CLIENT = ("10.244.1.5", 50759)
ALL = DnsQueryLogConfig(classes=(QueryClass.ALL,))


def log_of(
    config: DnsQueryLogConfig, clock: Callable[[], float] = lambda: 2.0, pod: tuple[str, str] | None = None
) -> tuple[QueryLog, list[Entry]]:
    entries: list[Entry] = []
    return QueryLog(config, lambda _: pod, entries.append, clock, random.Random(1)), entries


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(synced_zone(records()))


def logged(client: Client, query: dns.message.Message, transport: int = UDP, pod: tuple[str, str] | None = None) -> str:
    log, entries = log_of(ALL, clock=lambda: 2.000085, pod=pod)
    message = query.to_wire()
    response = client.core.respond(message, transport)
    assert isinstance(response, bytes)
    log.answered(message, response, CLIENT, transport, 2.0)
    (entry,) = entries
    return entry.line()


def query_of(qname: str, qtype: str = "A", **options: object) -> dns.message.Message:
    return dns.message.make_query(qname, qtype, id=29008, **options)  # type: ignore[arg-type]


WEB = "web.shop.svc.cluster.local."


@pytest.mark.parametrize(
    ("query", "transport", "line"),
    [
        pytest.param(
            query_of(WEB), UDP, f'29008 "A IN {WEB} udp 44 false 512" NOERROR qr,aa,rd 60 0.000085s', id="spec §4.4"
        ),
        pytest.param(
            query_of(WEB.title(), "AAAA", payload=1232, want_dnssec=True),
            UDP,
            f'29008 "AAAA IN {WEB} udp 55 true 1232" NOERROR qr,aa,rd 109 0.000085s',
            id="EDNS; names in lower case",
        ),
        pytest.param(
            query_of("nope.shop.svc.cluster.local.", "TYPE65280"),
            TCP,
            '29008 "TYPE65280 IN nope.shop.svc.cluster.local. tcp 45 false 65535" NXDOMAIN qr,aa,rd 99 0.000085s',
            id="TCP",
        ),
        pytest.param(
            query_of("example.com.", "CAA"),
            UDP,
            '29008 "CAA IN example.com. udp 29 false 512" REFUSED qr,rd 29 0.000085s',
            id="refused",
        ),
        pytest.param(
            query_of(".", "NS", use_edns=1),
            UDP,
            '29008 "NS IN . udp 28 false 1232" BADVERS qr,rd 28 0.000085s',
            id="BADVERS",
        ),
        pytest.param(
            dns.message.make_query(WEB, "A", "CH", id=29008),
            UDP,
            f'29008 "A CH {WEB} udp 44 false 512" REFUSED qr,rd 44 0.000085s',
            id="another class",
        ),
        pytest.param(
            query_of(r"a\" NOERROR\010[INFO]\255.web~".replace("~", ".shop.svc.cluster.local.")),
            UDP,
            r'29008 "A IN a\"\ noerror\010[info]\255.web.shop.svc.cluster.local. udp 63 false 512" NXDOMAIN qr,aa,rd '
            "117 0.000085s",
            id="hostile",
        ),
    ],
)
def test_lines(client: Client, query: dns.message.Message, transport: int, line: str) -> None:
    assert logged(client, query, transport) == f"[INFO] 10.244.1.5:50759 - {line}"


def test_the_pod_is_named_at_the_end(client: Client) -> None:
    assert logged(client, query_of(WEB), pod=("shop", "web-1")).endswith(" 0.000085s shop/web-1")


def test_ipv6_clients_are_in_brackets(client: Client) -> None:
    log, entries = log_of(ALL)
    message = query_of(WEB).to_wire()
    response = client.core.respond(message, UDP)
    assert isinstance(response, bytes)
    log.answered(message, response, ("fd00::5", 53, 0, 0), UDP, 2.0)
    assert entries[0].line().startswith("[INFO] [fd00::5]:53 - 29008 ")


@given(labels=st.lists(st.binary(min_size=1, max_size=63), max_size=3))
def test_whatever_is_asked_is_one_line_of_printable_ascii_that_names_it(labels: list[bytes]) -> None:
    text = spelled([label.decode("latin-1") for label in labels])
    assert text.isascii()
    assert text.isprintable()
    assert dns.name.from_text(text) == dns.name.Name([*labels, b""])


@pytest.mark.parametrize(
    ("qname", "qtype", "expected"),
    [
        pytest.param(WEB, "A", QueryClass.SUCCESS, id="success"),
        pytest.param(WEB, "MX", QueryClass.DENIAL, id="NODATA"),
        pytest.param("nope.shop.svc.cluster.local.", "A", QueryClass.DENIAL, id="NXDOMAIN"),
        pytest.param(
            "ghost.shop.svc.cluster.local.", "A", QueryClass.ERROR, id="NXDOMAIN after a CNAME: CoreDNS says so"
        ),
        pytest.param("example.com.", "A", QueryClass.ERROR, id="REFUSED"),
    ],
)
def test_classes(client: Client, qname: str, qtype: str, expected: QueryClass) -> None:
    message = query_of(qname, qtype).to_wire()
    response = client.core.respond(message, UDP)
    assert isinstance(response, bytes)
    assert class_of(response) is expected
    for wanted in (QueryClass.SUCCESS, QueryClass.DENIAL, QueryClass.ERROR):
        log, entries = log_of(DnsQueryLogConfig(classes=(wanted,)))
        log.answered(message, response, CLIENT, UDP, 2.0)
        assert bool(entries) is (wanted is expected)


def test_a_referral_is_a_success() -> None:
    message = dns.message.make_response(query_of("www.example.com."))
    message.authority.append(dns.rrset.from_text("example.com.", 30, "IN", "NS", "ns.example.com."))
    assert class_of(message.to_wire()) is QueryClass.SUCCESS


def exchange(client: Client) -> tuple[bytes, bytes]:
    message = query_of(WEB).to_wire()
    response = client.core.respond(message, UDP)
    assert isinstance(response, bytes)
    return message, response


def test_one_of_so_many_is_logged(client: Client) -> None:
    log, entries = log_of(DnsQueryLogConfig(classes=(QueryClass.ALL,), one_in=10, lines_max=100_000))
    message, response = exchange(client)
    for _ in range(10_000):
        log.answered(message, response, CLIENT, UDP, 2.0)
    assert 850 < len(entries) < 1150
    assert log.over == 0


def test_more_than_so_many_in_a_second_are_left_out_and_counted(client: Client) -> None:
    now = 7.0
    log, entries = log_of(DnsQueryLogConfig(classes=(QueryClass.ALL,), lines_max=5), clock=lambda: now)
    for _ in range(8):
        log.answered(*exchange(client), CLIENT, UDP, now)
    assert (len(entries), log.lines, log.over) == (5, 5, 3)
    now = 8.5
    log.answered(*exchange(client), CLIENT, UDP, now)
    assert (len(entries), log.over) == (6, 3)


def test_messages_that_cannot_be_read_are_not_logged() -> None:
    log, entries = log_of(ALL)
    log.answered(b"\0\1" + bytes(10), b"\0\1\x80\1" + bytes(8), CLIENT, UDP, 2.0)
    assert not entries


def test_a_response_that_comes_later_is_logged_when_it_has_been_sent() -> None:
    happened: list[str] = []

    class Found:
        def begin(self, client: str, deliver: Deliver) -> None:
            happened.append(client)
            deliver(dns.message.make_response(query_of(WEB)).to_wire())

    log = QueryLog(ALL, lambda _: None, lambda _: happened.append("logged"), lambda: 2.0, random.Random(1))
    log.follow(Found(), query_of(WEB).to_wire(), CLIENT, UDP, 1.0).begin("c", lambda _: happened.append("sent"))
    assert happened == ["c", "sent", "logged"]


PODS: list[Record] = [
    NodePodRecord("shop", "10.244.9.1", "client"),
    NodePodRecord("shop", "10.244.9.2", "other"),
    NodePodRecord("shop", "10.244.1.5", "not-what-the-slice-says"),
]


def test_who_has_an_address_is_known_by_the_pods_of_the_node_then_by_slices() -> None:
    zone = synced_zone([*records(), EndpointRecord("shop", "web", "10.244.7.7", pod="web-7"), *PODS])
    assert zone.pod_of("10.244.9.1") == ("shop", "client")
    assert zone.pod_of("10.244.7.7") == ("shop", "web-7")
    assert zone.pod_of("10.244.1.5") == ("shop", "not-what-the-slice-says")
    assert zone.pod_of("10.244.1.6") is None
    assert zone.count(NodePodRecord) == 3


def test_pods_of_the_node_come_and_go_without_a_change_of_the_zone() -> None:
    zone = synced_zone([*records(), *PODS])
    revision = zone.revision
    zone.change([NodePodRecord("shop", "10.244.9.1", "next")], [PODS[0], PODS[1]])
    assert zone.pod_of("10.244.9.1") == ("shop", "next")
    assert zone.pod_of("10.244.9.2") is None
    zone.change((), [PODS[0]])
    assert zone.pod_of("10.244.9.1") == ("shop", "next"), "the address is another's by now"
    take(zone, records())
    assert zone.pod_of("10.244.9.1") is None
    assert zone.revision == revision
