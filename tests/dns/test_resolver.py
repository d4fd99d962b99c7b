# SPDX-License-Identifier: Apache-2.0
"""Clients, the cache and flights, in virtual time: who waits for what, and what they get when it does not come."""

import random
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import UpstreamPolicy
from svcproxy_dns import resolver
from svcproxy_dns.cache import Cache, CacheLimits, Kind
from svcproxy_dns.elsewhere import Alias
from svcproxy_dns.forwarding import Ask, Drop, Sample, Timing
from svcproxy_dns.rendered import TCP
from svcproxy_dns.resolver import Bounds, Flight, Resolver
from svcproxy_dns.upstreams import Upstreams
from svcproxy_dns.wire import Query, parse_query

UDP = 0
CLIENT = "10.244.1.5"


@dataclass
class Asking:
    """A client's query, and the response once there is one."""

    responses: list[dns.message.Message] = field(default_factory=list)

    @property
    def rcode(self) -> str:
        (response,) = self.responses
        return dns.rcode.to_text(response.rcode())

    @property
    def addresses(self) -> list[str]:
        return [str(rdata) for response in self.responses for rrset in response.answer for rdata in rrset]

    @property
    def ttl(self) -> int:
        return self.responses[0].answer[0].ttl


class Node:
    """A resolver, and its upstreams played by the test."""

    def __init__(self, *upstreams: str, bounds: Bounds | None = None, cache: CacheLimits | None = None) -> None:
        self.now = 1000.0
        self.samples: list[Sample] = []
        rng = random.Random(7)
        self.core = Resolver(
            Upstreams(UpstreamPolicy.SEQUENTIAL, rng),
            Cache(cache or CacheLimits()),
            rng,
            bounds=bounds or Bounds(),
            timing=Timing(),
            observe=self.samples.append,
        )
        self.core.upstreams.replace(upstreams or ("192.0.2.1:53",), {})
        self.open: dict[tuple[int, int], tuple[Flight, Ask]] = {}
        """By flight and attempt."""
        self.asked: list[str] = []
        self.flights: list[Flight] = []

    def ask(
        self,
        qname: str = "www.example.com",
        *,
        client: str = CLIENT,
        aliases: tuple[Alias, ...] = (),
        qtype: str = "A",
        transport: int = UDP,
        dnssec: bool = False,
    ) -> Asking:
        query = parse_query(dns.message.make_query(qname, qtype, want_dnssec=dnssec).to_wire())
        assert isinstance(query, Query)
        asking = Asking()
        found = self.core.lookup(query, b"\0\7", transport, aliases, self.now)
        if isinstance(found, bytes):
            asking.responses.append(dns.message.from_wire(b"\0\7" + found))
            return asking
        admitted = self.core.admit(
            found, client, lambda octets: asking.responses.append(dns.message.from_wire(octets)), self.now
        )
        if admitted is not None:
            self.take(*admitted)
        return asking

    def take(self, flight: Flight, steps: list[Ask | Drop]) -> None:
        if flight not in self.flights:
            self.flights.append(flight)
        for step in steps:
            match step:
                case Ask():
                    self.open[id(flight), step.attempt] = flight, step
                    self.asked.append(dns.message.from_wire(step.message).question[0].name.to_text(True))
                case Drop():
                    del self.open[id(flight), step.attempt]

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while pending := [each for each in self.flights if not each.over and each.wake_at <= until]:
            flight = min(pending, key=lambda each: each.wake_at)
            self.now = max(self.now, flight.wake_at)
            self.take(flight, self.core.woken(flight, self.now))
        self.now = until

    def reply(self, address: str | None = "192.0.2.53", rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> None:
        """Answer everything that is open."""
        while self.open:
            flight, ask = next(iter(self.open.values()))
            response = dns.message.make_response(dns.message.from_wire(ask.message))
            response.set_rcode(rcode)
            name = response.question[0].name
            if address is not None and rcode == dns.rcode.NOERROR:
                response.answer.append(dns.rrset.from_text(name, 300, "IN", "A", address))
            elif rcode in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
                response.authority.append(dns.rrset.from_text(name, 300, "IN", "SOA", "a. b. 1 2 3 4 60"))
            self.take(flight, self.core.received(flight, ask.attempt, response.to_wire(), self.now))


def test_the_same_question_is_asked_once() -> None:
    node = Node()
    asked = [
        node.ask(name, client=f"10.0.0.{low}") for low in range(5) for name in ("www.example.com", "WWW.example.com")
    ]
    assert node.asked == ["www.example.com"]
    node.reply()
    assert {tuple(each.addresses) for each in asked} == {("192.0.2.53",)}
    assert (node.core.flights, node.core.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({}, {"qtype": "AAAA"}, id="type"),
        pytest.param({}, {"dnssec": True}, id="DO"),
        pytest.param({}, {"qname": "example.com"}, id="name"),
    ],
)
def test_another_question_is_another_question(first: dict[str, object], second: dict[str, object]) -> None:
    node = Node()
    node.ask(**first)  # type: ignore[arg-type]
    node.ask(**second)  # type: ignore[arg-type]
    assert len(node.asked) == 2


# --- bounds


def test_m25_flights_are_bounded_but_joining_one_is_not() -> None:
    node = Node(bounds=Bounds(concurrent=2))
    kept = [node.ask(f"n{n}.example.com", client=f"10.0.0.{n}") for n in range(2)]
    assert node.ask("n2.example.com").rcode == "REFUSED"
    joined = node.ask("n1.example.com")
    assert joined.responses == []
    assert node.core.rejected == 1
    node.reply()
    assert [each.rcode for each in (*kept, joined)] == ["NOERROR"] * 3
    assert node.ask("n2.example.com").responses == [], "there is room again"


def test_what_one_client_waits_for_is_bounded_whatever_it_asks() -> None:
    node = Node(bounds=Bounds(per_client=3))
    flood = [node.ask(f"n{n % 4}.example.com", client="10.0.0.1") for n in range(50)]
    assert [each.rcode for each in flood[3:]] == ["REFUSED"] * 47
    other = node.ask("www.example.com", client="10.0.0.2")
    node.reply()
    assert other.rcode == "NOERROR"
    assert node.ask("n9.example.com", client="10.0.0.1").responses == [], "it has its share again"


def test_all_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "WAITING_MAX", 5)
    node = Node()
    asked = [node.ask(client=f"10.0.0.{low}") for low in range(7)]
    assert [each.rcode for each in asked[5:]] == ["REFUSED"] * 2


def test_a_refused_client_gets_what_is_stale() -> None:
    node = Node(bounds=Bounds(concurrent=1))
    node.ask()
    node.reply()
    node.wait(60)
    node.ask("other.example.com")
    assert node.ask().addresses == ["192.0.2.53"]
    assert node.core.stale == 1


# --- stale


def expired(node: Node) -> None:
    node.ask()
    node.reply()
    node.wait(31)


def test_an_expired_answer_is_refreshed_before_it_is_given() -> None:
    node = Node()
    expired(node)
    asking = node.ask()
    assert asking.responses == []
    node.reply("192.0.2.99")
    assert asking.addresses == ["192.0.2.99"]
    assert node.core.stale == 0


def test_what_is_stale_is_given_when_upstreams_take_long_and_the_refresh_goes_on() -> None:
    """RFC 8767 §5: the client is answered after 1.8 s."""
    node = Node()
    expired(node)
    asking = node.ask()
    node.wait(1.7)
    assert asking.responses == []
    node.wait(0.2)
    assert (asking.addresses, asking.ttl) == (["192.0.2.53"], 30)
    assert node.ask().addresses == ["192.0.2.53"], "who comes later does not wait"
    node.reply("192.0.2.99")
    assert node.ask().addresses == ["192.0.2.99"]
    assert len(asking.responses) == 1


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_what_is_stale_is_given_when_upstreams_fail_and_they_are_left_alone_for_a_while(rcode: dns.rcode.Rcode) -> None:
    node = Node()
    expired(node)
    asking = node.ask()
    node.reply(rcode=rcode)
    assert asking.addresses == ["192.0.2.53"]
    asked = len(node.asked)
    node.wait(29)
    assert node.ask().addresses == ["192.0.2.53"]
    assert len(node.asked) == asked
    node.wait(2)
    node.ask()
    assert len(node.asked) == asked + 1


def test_a_denial_is_no_failure() -> None:
    """RFC 8767 §4: the name is gone, so is what was known."""
    node = Node()
    expired(node)
    asking = node.ask()
    node.reply(None, dns.rcode.NXDOMAIN)
    assert asking.rcode == "NXDOMAIN"
    assert node.ask().rcode == "NXDOMAIN"


def test_beyond_its_time_nothing_is_given() -> None:
    node = Node(cache=CacheLimits(stale_max=100))
    expired(node)
    node.wait(100)
    asking = node.ask()
    node.reply(rcode=dns.rcode.SERVFAIL)
    assert asking.rcode == "SERVFAIL"


def test_what_is_stale_may_be_forbidden() -> None:
    node = Node(cache=CacheLimits(stale_max=0))
    expired(node)
    asking = node.ask()
    node.wait(5)
    assert asking.rcode == "SERVFAIL"


# --- failures


def test_m18_a_failure_is_kept_for_5_seconds() -> None:
    node = Node()
    node.ask()
    node.reply(rcode=dns.rcode.SERVFAIL)
    node.wait(4.9)
    assert node.ask().rcode == "SERVFAIL"
    assert len(node.asked) == 1
    node.wait(0.2)
    node.ask()
    assert len(node.asked) == 2


def test_silence_is_remembered_for_a_second() -> None:
    node = Node()
    first = node.ask()
    node.wait(4)
    assert first.rcode == "SERVFAIL"
    asked = len(node.asked)
    node.wait(0.9)
    assert node.ask().rcode == "SERVFAIL"
    assert len(node.asked) == asked
    node.wait(0.2)
    assert node.ask().responses == []


def test_without_upstreams_it_is_servfail_and_without_intention_refused() -> None:
    node = Node()
    node.core.upstreams.replace((), {})
    assert node.ask().rcode == "SERVFAIL"
    node.core.upstreams.replace(None, {})
    assert node.ask().rcode == "REFUSED"
    assert node.core.broken == 1


@pytest.mark.parametrize("qtype", ["AXFR", "IXFR", "MAILB", "TKEY", "OPT"])
def test_what_is_no_data_is_not_asked_for(qtype: str) -> None:
    node = Node()
    assert node.ask(qtype=qtype).rcode == "REFUSED"
    assert node.asked == []


def test_any_is_passed_on() -> None:
    node = Node()
    node.ask(qtype="ANY")
    assert len(node.asked) == 1


# --- aliases of ours


ALIASES = (Alias("web.example.org", 7),)


def test_an_alias_of_ours_comes_before_what_it_leads_to() -> None:
    node = Node()
    asking = node.ask("ext.shop.svc.cluster.local", aliases=ALIASES)
    assert node.asked == ["web.example.org"]
    node.reply()
    (response,) = asking.responses
    assert [rrset.to_text() for rrset in response.answer] == [
        "ext.shop.svc.cluster.local. 7 IN CNAME web.example.org.",
        "web.example.org. 7 IN A 192.0.2.53",
    ]
    assert response.flags & dns.flags.AA
    assert node.ask("web.example.org").addresses == ["192.0.2.53"], "it is kept by its own name"
    assert node.asked == ["web.example.org"]


def test_a44_an_alias_to_what_does_not_exist_says_so() -> None:
    """RFC 6604 §3: the code is that of the last name."""
    node = Node()
    asking = node.ask("extnx.shop.svc.cluster.local", aliases=ALIASES)
    node.reply(None, dns.rcode.NXDOMAIN)
    assert (asking.rcode, asking.addresses) == ("NXDOMAIN", ["web.example.org."])


def test_an_alias_to_what_is_as_long_as_a_message_can_be_is_servfail() -> None:
    node = Node()
    asking = node.ask("ext.shop.svc.cluster.local", aliases=ALIASES, qtype="TXT", transport=TCP)
    ((flight, ask),) = node.open.values()
    response = dns.message.make_response(dns.message.from_wire(ask.message))
    texts = [f"{number:03}{'x' * 240}" for number in range(255)] + ["y" * 177]
    response.answer.append(dns.rrset.from_text("web.example.org.", 300, "IN", "TXT", *texts))
    node.take(flight, node.core.received(flight, ask.attempt, response.to_wire(max_size=65535), node.now))
    assert (asking.rcode, asking.responses[0].answer) == ("SERVFAIL", [])
    (direct,) = node.ask("web.example.org", qtype="TXT", transport=TCP).responses
    assert len(direct.answer[0]) == 256


def test_b10_an_alias_to_what_fails_is_servfail() -> None:
    node = Node()
    asking = node.ask("ext.shop.svc.cluster.local", aliases=ALIASES)
    node.reply(rcode=dns.rcode.SERVFAIL)
    assert (asking.rcode, asking.addresses) == ("SERVFAIL", [])


# --- loops


def test_an_upstream_that_hands_questions_back_is_left_alone() -> None:
    node = Node("192.0.2.1:53", "192.0.2.2:53")
    checks = node.core.check_loops(node.now, everybody=True)
    for flight, steps in checks:
        node.take(flight, steps)
    token = dns.message.from_wire(next(step.message for step in checks[0][1] if isinstance(step, Ask))).question[0]
    assert node.ask(token.name.to_text(), client="127.0.0.1", dnssec=True).rcode == "REFUSED"
    assert [each.looping for each in node.core.upstreams] == [True, False]
    node.wait(5)
    node.ask()
    ((_, ask),) = node.open.values()
    assert ask.upstream.address == "192.0.2.2:53"


def test_only_we_know_the_name_that_finds_loops_out() -> None:
    node = Node()
    names = set()
    for _ in range(3):
        for flight, steps in node.core.check_loops(node.now, everybody=True):
            node.take(flight, steps)
        names.add(node.asked[-1])
        node.wait(5)
    assert len(names) == 3
    assert node.ask(names.pop()).responses == [], "an old one means nothing"
    assert not any(each.looping for each in node.core.upstreams)


@pytest.mark.parametrize(
    ("replies", "looping"), [pytest.param(True, False, id="replies"), pytest.param(False, True, id="is silent")]
)
def test_a_loop_ends_when_the_upstream_answers_without_handing_back(replies: bool, looping: bool) -> None:
    node = Node()
    (upstream,) = node.core.upstreams
    upstream.looping = True
    assert node.ask().rcode == "SERVFAIL"
    for flight, steps in node.core.check_loops(node.now):
        node.take(flight, steps)
    if replies:
        node.reply(None, dns.rcode.NXDOMAIN)
    node.wait(5)
    assert upstream.looping == looping


def test_a_question_that_another_asks_while_it_is_lost_makes_upstreams_suspect_of_looping() -> None:
    node = Node()
    node.ask(client="10.0.0.1")
    node.wait(5)
    assert node.core.check_loops(node.now) == []
    node.ask("x.example.com", client="10.0.0.1")
    node.ask("x.example.com", client="127.0.0.1")
    node.wait(5)
    assert len(node.core.check_loops(node.now)) == 1


# --- what is counted


def test_what_is_counted() -> None:
    node = Node()
    node.ask()
    node.reply()
    node.ask(transport=TCP)
    node.ask("nx.example.com")
    node.reply(None, dns.rcode.NXDOMAIN)
    assert (node.core.hits, node.core.misses) == (1, 2)
    assert node.core.cache.stores[Kind.SUCCESS].hits == 1
    assert node.core.responses == {
        ("A", "NOERROR", "forward"): [1, 0, 0, 0],
        ("A", "NOERROR", "cache"): [0, 0, 1, 0],
        ("A", "NXDOMAIN", "forward"): [1, 0, 0, 0],
    }
    assert [(each.upstream.address, each.rcode) for each in node.samples] == [("192.0.2.1:53", 0), ("192.0.2.1:53", 3)]


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "answer", "deny", "fail", "wait"]), st.integers(0, 3), st.integers(0, 2)
    ),
    max_size=60,
)


@given(_STEPS)
def test_every_client_gets_one_response_and_bounds_hold(script: list[tuple[str, int, int]]) -> None:
    node = Node(bounds=Bounds(concurrent=2, per_client=3), cache=CacheLimits(stale_max=60))
    asked: list[Asking] = []
    for what, number, who in script:
        match what:
            case "ask":
                asked.append(node.ask(f"n{number}.example.com", client=f"10.0.0.{who}"))
            case "answer":
                node.reply()
            case "deny":
                node.reply(None, dns.rcode.NXDOMAIN)
            case "fail":
                node.reply(rcode=dns.rcode.SERVFAIL)
            case _:
                node.wait([0.3, 2.0, 10.0, 50.0][number])
        assert node.core.flights <= 2
        assert node.core.waiting == sum(not each.responses for each in asked) <= 9
    node.wait(4.1)
    assert {len(each.responses) for each in asked} <= {1}
    assert (node.core.flights, node.core.waiting) == (0, 0)
    assert not node.open
