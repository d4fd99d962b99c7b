# SPDX-License-Identifier: Apache-2.0
"""Names outside the zone, through a worker with real sockets on both sides. What happened is asserted, not when."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from svcproxy.config import DnsCacheConfig, DnsConfig, DnsForwardConfig, UpstreamPolicy
from svcproxy_dns.cache import Cache, CacheLimits
from svcproxy_dns.channels import TURN_BATCH
from svcproxy_dns.forward_statistics import ForwardStatistics, ReplyTimes
from svcproxy_dns.forwarder import Forwarder
from svcproxy_dns.forwarding import Timing
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.resolver import Bounds, Flight, Resolver, Steps
from svcproxy_dns.upstreams import Upstreams
from svcproxy_dns.wire import Query, parse_query
from svcproxy_dns.worker import DnsWorker
from tests.dns.test_worker import fill
from tests.dns.upstream import BIG, Upstream, upstream
from tests.dns.world import addresses, lines, read

SEQUENTIAL = DnsForwardConfig(policy=UpstreamPolicy.SEQUENTIAL)


class Node:
    """A worker that serves, its upstreams, and a client."""

    def __init__(self, worker: DnsWorker, upstreams: list[Upstream]) -> None:
        self.worker = worker
        self.upstreams = upstreams
        self.host, self.port = worker.sockets()[0].getsockname()[:2]

    async def ask(
        self, qname: str, qtype: str = "A", *, tcp: bool = False, source: str | None = None, **options: int | bool
    ) -> dns.message.Message:
        query = dns.message.make_query(qname, qtype, **options)  # type: ignore[arg-type]  # flags of its own
        how = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await how(query, self.host, port=self.port, timeout=10, source=source)

    async def until(self, condition: Callable[[ForwardStatistics], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(self.forward):  # noqa: ASYNC110  # what is counted sets no event
                await asyncio.sleep(0.005)

    @property
    def forward(self) -> ForwardStatistics:
        found = self.worker.statistics().forward
        assert found is not None
        return found


@asynccontextmanager
async def node(
    count: int = 1,
    *,
    forward: DnsForwardConfig = SEQUENTIAL,
    cache: DnsCacheConfig | None = None,
    listen: str = "127.0.0.1:0",
    synced: bool = True,
) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(upstream()) for _ in range(count)]
        addresses = tuple(each.address for each in upstreams)
        worker = DnsWorker(
            DnsConfig(upstreams=addresses, forward=forward, cache=cache or DnsCacheConfig(), listen=(listen,))
        )
        if synced:
            fill(worker)
        await worker.start(bind_listeners([listen]))
        stack.callback(worker.close)
        worker.use_upstreams(addresses)
        yield Node(worker, upstreams)


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
async def test_m16_an_answer_is_forwarded_once_and_then_kept(tcp: bool) -> None:
    async with node() as world:
        first, again = [await world.ask("www.example.com", tcp=tcp) for _ in range(2)]
        assert addresses(first) == addresses(again) == ["192.0.2.53"]
        assert first.flags & dns.flags.RA
        assert again.flags & dns.flags.RA
        assert not first.flags & dns.flags.AA
        assert first.answer[0].ttl == 30
        assert 0 < again.answer[0].ttl <= 30
        assert world.upstreams[0].count("www.example.com") == 1


async def test_m17_a_ttl_of_zero_is_raised() -> None:
    async with node() as world:
        assert (await world.ask("ttl0.example.com")).answer[0].ttl == 5


async def test_m18_a_failure_is_remembered() -> None:
    async with node() as world:
        assert [(await world.ask("fail.example.com")).rcode() for _ in range(2)] == [dns.rcode.SERVFAIL] * 2
        assert world.upstreams[0].count("fail.example.com") == 1


async def test_m19_a_silent_upstream_is_servfail_and_holds_up_nothing_of_the_zone() -> None:
    async with node(forward=DnsForwardConfig(deadline=1.0)) as world:
        async with asyncio.TaskGroup() as group:
            dropped = group.create_task(world.ask("drop.example.com"), name="dropped")
            await world.until(lambda now: now.waiting > 0)
            assert addresses(await world.ask("web.shop.svc.cluster.local")) == ["10.96.10.1"]
            assert not dropped.done()
        assert dropped.result().rcode() == dns.rcode.SERVFAIL
        assert world.upstreams[0].count("drop.example.com") > 1


async def test_m20_b17_a_silent_upstream_costs_one_query_a_moment_and_no_other_anything() -> None:
    """The second answers before the first would have been asked again; after that the first is not waited for."""
    async with node(2) as world:
        silent, other = world.upstreams
        silent.silent = True
        async with asyncio.timeout(2):
            assert addresses(await world.ask("www.example.com")) == ["192.0.2.53"]
        assert silent.count("www.example.com") == other.count("www.example.com") == 1
        assert [each.suspect for each in world.forward.upstreams] == [True, False]
        assert addresses(await world.ask("tc.example.com")) == ["192.0.2.55"]
        assert silent.count("tc.example.com") == 0


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
async def test_m21_b18_what_is_cut_is_fetched_over_tcp(tcp: bool) -> None:
    async with node() as world:
        answer = await world.ask("tc.example.com", tcp=tcp)
        assert addresses(answer) == ["192.0.2.55"]
        assert not answer.flags & dns.flags.TC
        assert [each.tcp for each in world.upstreams[0].asked if each.name == "tc.example.com"] == [False, True]


async def test_b18_what_does_not_fit_the_client_is_cut_again() -> None:
    async with node() as world:
        small = await world.ask("big.example.com")
        assert small.flags & dns.flags.TC
        assert len(small.to_wire()) <= 512
        assert 0 < len(addresses(small)) < 200
        for whole in (await world.ask("big.example.com", payload=4096), await world.ask("big.example.com", tcp=True)):
            assert not whole.flags & dns.flags.TC
            assert sorted(addresses(whole)) == sorted(BIG)
        assert world.upstreams[0].count("big.example.com") == 2, "over UDP and over TCP, once"


async def test_m22_an_answer_to_another_question_is_formerr_and_not_kept() -> None:
    async with node() as world:
        assert [(await world.ask("wrongq.example.com")).rcode() for _ in range(2)] == [dns.rcode.FORMERR] * 2
        assert world.upstreams[0].count("wrongq.example.com") == 2


async def test_m23_a_denial_is_kept() -> None:
    async with node() as world:
        for _ in range(2):
            answer = await world.ask("nx.example.com")
            assert answer.rcode() == dns.rcode.NXDOMAIN
            assert 0 < answer.authority[0].ttl <= 30
        assert world.upstreams[0].count("nx.example.com") == 1


async def test_m24_a_denial_without_soa_is_not_kept() -> None:
    async with node() as world:
        for _ in range(2):
            answer = await world.ask("nosoa.example.com")
            assert (answer.rcode(), answer.authority) == (dns.rcode.NXDOMAIN, [])
        assert world.upstreams[0].count("nosoa.example.com") == 2


async def test_m25_what_is_over_the_bound_is_refused_at_once_and_counted() -> None:
    forward = DnsForwardConfig(concurrent_max=2, deadline=0.5)
    async with node(forward=forward) as world:
        world.upstreams[0].silent = True
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(world.ask(f"n{n}.example.com"), name=str(n)) for n in range(5)]
        codes = sorted(dns.rcode.to_text(each.result().rcode()) for each in asked)
        assert codes == ["REFUSED"] * 3 + ["SERVFAIL"] * 2
        assert world.forward.rejected == 3


async def test_a_client_that_floods_leaves_others_their_share() -> None:
    forward = DnsForwardConfig(per_client_max=3, deadline=0.5)
    async with node(forward=forward) as world:
        async with asyncio.TaskGroup() as group:
            flood = [
                group.create_task(world.ask(f"drop.n{n}.example.com", source="127.0.0.9"), name=str(n))
                for n in range(10)
            ]
            await world.until(lambda now: now.rejected == 7)
            assert addresses(await world.ask("www.example.com", source="127.0.0.8")) == ["192.0.2.53"]
        codes = [dns.rcode.to_text(each.result().rcode()) for each in flood]
        assert sorted(codes) == ["REFUSED"] * 7 + ["SERVFAIL"] * 3


async def test_b13_the_owner_is_spelled_as_asked() -> None:
    async with node() as world:
        for spelling in ("www.example.com.", "WwW.eXaMpLe.com.", "www.EXAMPLE.com."):
            answer = await world.ask(spelling)
            assert str(answer.answer[0].name) == spelling
        assert world.upstreams[0].count("www.example.com") == 1


async def test_b16_a_denial_is_kept_as_long_as_the_soa_says() -> None:
    async with node() as world:
        world.upstreams[0].minimum = 10
        assert (await world.ask("nx.example.com")).authority[0].ttl == 10


async def test_b10_an_external_name_whose_target_fails_is_servfail() -> None:
    async with node() as world:
        world.upstreams[0].rcode = dns.rcode.SERVFAIL
        assert (await world.ask("ext.shop.svc.cluster.local")).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize(
    ("qtype", "address"),
    [pytest.param("A", "192.0.2.53", id="A37"), pytest.param("AAAA", "2001:db8::53", id="A37: IPv6")],
)
async def test_a37_an_external_name_brings_the_addresses_of_its_target(qtype: str, address: str) -> None:
    async with node() as world:
        for _ in range(2):
            answer = await world.ask("ext.shop.svc.cluster.local", qtype)
            assert [line for rrset in answer.answer for line in lines(rrset)] == [
                "ext.shop.svc.cluster.local. CNAME www.example.com.",
                f"www.example.com. {qtype} {address}",
            ]
            assert all(rrset.ttl <= 30 for rrset in answer.answer)
            assert answer.flags & dns.flags.AA
        assert world.upstreams[0].count("www.example.com") == 1


async def test_b11_an_external_name_is_followed_for_every_type() -> None:
    async with node() as world:
        answer = await world.ask("ext.shop.svc.cluster.local", "TXT")
        assert [rrset.to_text() for rrset in answer.answer] == [
            "ext.shop.svc.cluster.local. 30 IN CNAME www.example.com."
        ]
        assert world.upstreams[0].count("www.example.com", "TXT") == 1


async def test_a73_a_pointer_that_is_not_ours() -> None:
    async with node() as world:
        answer = await world.ask("9.9.9.10.in-addr.arpa", "PTR")
        assert read(answer).records == {"9.9.9.10.in-addr.arpa. PTR host9.example.com."}
        assert (answer.flags & dns.flags.AA, bool(answer.flags & dns.flags.RA)) == (0, True)


async def test_addresses_are_not_asked_of_upstreams_before_the_cluster_is_known() -> None:
    """B15; and never those that the cluster has."""
    name = "9.9.9.10.in-addr.arpa"
    async with node(synced=False) as world:
        assert (await world.ask(name, "PTR")).rcode() == dns.rcode.SERVFAIL
        fill(world.worker)
        assert (await world.ask("1.10.96.10.in-addr.arpa", "PTR")).rcode() == dns.rcode.NOERROR
        assert not [asked for asked in world.upstreams[0].asked if asked.qtype == "PTR"]
        assert (await world.ask(name, "PTR")).rcode() == dns.rcode.NOERROR
        assert world.upstreams[0].count(name, "PTR") == 1


async def test_a_cname_precedes_what_it_leads_to() -> None:
    async with node() as world:
        answer = await world.ask("alias.example.com")
        assert [dns.rdatatype.to_text(rrset.rdtype) for rrset in answer.answer] == ["CNAME", "A"]


async def test_b19_options_of_clients_go_nowhere() -> None:
    async with node() as world:
        cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, bytes(8))
        query = dns.message.make_query("www.example.com", "A", use_edns=0, payload=1400, options=[cookie])
        for _ in range(2):
            answer = await dns.asyncquery.udp(query, world.host, port=world.port, timeout=10)
            assert (answer.edns, answer.payload, answer.options) == (0, 1400, ())
            assert addresses(answer) == ["192.0.2.53"]
        assert (await world.ask("www.example.com", use_edns=False)).edns == -1
        assert not any(each.options for each in world.upstreams[0].asked)


async def test_m26_other_names_are_answered_before_the_zone_is_known() -> None:
    async with node(synced=False) as world:
        assert (await world.ask("web.shop.svc.cluster.local")).rcode() == dns.rcode.SERVFAIL
        assert addresses(await world.ask("www.example.com")) == ["192.0.2.53"]


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        pytest.param("wrongid.example.com", "SERVFAIL", id="another ID"),
        pytest.param("othercase.example.com", "FORMERR", id="the name in another case"),
        pytest.param("otherport.example.com", "SERVFAIL", id="from another port"),
        pytest.param("garbage.example.com", "SERVFAIL", id="octets that are no message"),
        pytest.param("query.example.com", "SERVFAIL", id="the query itself"),
        pytest.param("referral.example.com", "SERVFAIL", id="a referral"),
    ],
)
async def test_what_is_no_answer_is_not_believed(name: str, rcode: str) -> None:
    async with node(forward=DnsForwardConfig(deadline=0.5)) as world:
        answer = await world.ask(name)
        assert (dns.rcode.to_text(answer.rcode()), answer.answer) == (rcode, [])


@pytest.mark.parametrize(
    ("name", "address"),
    [
        pytest.param("twice.example.com", "192.0.2.57", id="answers twice"),
        pytest.param("short.example.com", "192.0.2.58", id="octets missing over UDP"),
        pytest.param("plain.example.com", "192.0.2.59", id="does not know EDNS"),
        pytest.param("slow.example.com", "192.0.2.56", id="slow"),
        pytest.param("poison.example.com", "192.0.2.60", id="brings records of others"),
    ],
)
async def test_a_poor_upstream_is_made_the_best_of(name: str, address: str) -> None:
    async with node() as world:
        answer = await world.ask(name)
        assert read(answer).records == {f"{name}. A {address}"}
        assert answer.additional == []


async def test_an_upstream_without_edns_is_remembered() -> None:
    async with node() as world:
        await world.ask("plain.example.com")
        await world.ask("www.example.com")
        (asked,) = [each for each in world.upstreams[0].asked if each.name == "www.example.com"]
        assert not asked.edns


async def test_the_same_question_is_asked_once_for_all_who_wait() -> None:
    async with node() as world:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(world.ask(name, tcp=tcp), name=name)
                for name in ("slow.example.com", "SLOW.example.com")
                for tcp in (False, True)
                for _ in range(5)
            ]
        assert {tuple(addresses(each.result())) for each in asked} == {("192.0.2.56",)}
        assert world.upstreams[0].count("slow.example.com") == 2, "asked again once, for it is slow"


async def test_ports_and_ids_are_new_for_each_question() -> None:
    async with node() as world:
        for number in range(20):
            await world.ask(f"n{number}.example.com")
        asked = [each for each in world.upstreams[0].asked if each.name.endswith("example.com")]
        assert len({each.client[1] for each in asked}) > 15
        assert len({each.ident for each in asked}) > 15


async def test_names_are_spelled_at_random_if_wanted() -> None:
    async with node(forward=DnsForwardConfig(mixed_case=True)) as world:
        name = "averylongnamethatishardlyalllowercase.www.example.com"
        assert (await world.ask(name)).rcode() == dns.rcode.NXDOMAIN
        assert world.upstreams[0].count(name) == 1
        assert all(each.name != name for each in world.upstreams[0].asked)


async def test_an_unreachable_upstream_is_passed_over() -> None:
    async with node(2) as world:
        gone = "127.0.0.1:1"
        world.worker.use_upstreams([gone, world.upstreams[1].address])
        assert addresses(await world.ask("www.example.com")) == ["192.0.2.53"]
        assert [each.address for each in world.forward.upstreams if each.suspect] == [gone]


async def test_an_upstream_that_is_this_server_is_left_out() -> None:
    udp, tcp = bind_listeners(["127.0.0.1:0"])
    with udp, tcp:
        own = f"127.0.0.1:{udp.getsockname()[1]}"
    async with node(listen=own) as world:
        world.worker.use_upstreams([own, world.upstreams[0].address])
        assert addresses(await world.ask("www.example.com")) == ["192.0.2.53"]
        assert [each.address for each in world.forward.upstreams] == [world.upstreams[0].address]


async def test_sockets_are_bounded_and_the_first_answer_still_counts() -> None:
    """For want of a socket the question is not asked again; who has been asked is heard."""
    async with upstream() as slow:
        slow.delay = 1.0
        rng = random.SystemRandom()
        core = Resolver(
            Upstreams(UpstreamPolicy.SEQUENTIAL, rng), Cache(CacheLimits()), rng, bounds=Bounds(), timing=Timing()
        )
        core.upstreams.replace([slow.address], {})
        forwarder = Forwarder(core, ReplyTimes(), sockets_max=1)
        query = parse_query(dns.message.make_query("www.example.com", "A").to_wire())
        assert isinstance(query, Query)
        later = forwarder.resolve(query, b"ab", 0)
        assert not isinstance(later, bytes)
        delivered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        later.begin("10.0.0.1", delivered.set_result)
        try:
            assert addresses(dns.message.from_wire(await delivered)) == ["192.0.2.53"]
        finally:
            forwarder.close()
        assert slow.count("www.example.com") == 1
        assert not forwarder.statistics().upstreams[0].suspect


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
async def test_an_upstream_may_be_reached_over_ipv6(tcp: bool) -> None:
    async with node() as world, upstream("::1") as other:
        world.worker.use_upstreams([other.address])
        name = "tc.example.com" if tcp else "ttl0.example.com"
        assert (await world.ask(name)).answer
        assert [each.tcp for each in other.asked if each.name == name] == ([False, True] if tcp else [False])


@pytest.mark.parametrize(
    ("deadline", "rcode"),
    [pytest.param(4.8, "NXDOMAIN", id="answered"), pytest.param(0.6, "SERVFAIL", id="unanswered")],
)
async def test_of_many_questions_at_once_none_is_forgotten(deadline: float, rcode: str) -> None:
    """More than a turn of the loop deals with, also when they all time out together."""
    async with node(forward=DnsForwardConfig(deadline=deadline, per_client_max=300)) as world:
        world.upstreams[0].silent = rcode == "SERVFAIL"
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(world.ask(f"n{n}.example.com"), name=str(n)) for n in range(20 * TURN_BATCH)]
        assert {dns.rcode.to_text(each.result().rcode()) for each in asked} == {rcode}
        assert (world.forward.flights, world.forward.waiting) == (0, 0)


async def test_a_fault_in_taking_a_reply_in_costs_the_attempt_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    received, faults = Resolver.received, iter([True])

    def faulty(self: Resolver, flight: Flight, attempt: int, message: bytes, now: float) -> Steps:
        if next(faults, False):
            raise ZeroDivisionError
        return received(self, flight, attempt, message, now)

    async with node(2) as world:
        await world.until(lambda now: now.flights == 0)  # what looks for loops has landed
        monkeypatch.setattr(Resolver, "received", faulty)
        assert (await world.ask("www.example.com")).answer
        assert world.worker.statistics().panics == 1
        await world.until(lambda now: now.flights == 0)
