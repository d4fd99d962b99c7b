# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the user-space data plane: pools, choices, places, sessions, counters, and what a delta affects."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.dataplane.tracking import TrackedTable
from svcproxy.dataplane.userspace.balancer import Balancer, Choice
from svcproxy.dataplane.userspace.counters import CounterBook
from svcproxy.dataplane.userspace.places import Place, claimants, places_of
from svcproxy.dataplane.userspace.pool import BackendPool
from svcproxy.dataplane.userspace.sessions import SessionTable
from svcproxy.frontends.decision import SourceKind, lookup
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKey, FrontendKind, NodePort, Refusal, Scope
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.dataplane_conformance import cluster_ip, grow, service_port, shrink

TCP, UDP = Protocol.TCP, Protocol.UDP
BACKENDS = [Backend("10.244.0.1", port) for port in range(1, 8)]
A, B, C = BACKENDS[:3]
WEB = cluster_ip(Address("10.96.0.1", TCP, 80), service_port(0))


@given(steps=st.lists(st.tuples(st.booleans(), st.sampled_from(BACKENDS))), tried=st.sets(st.sampled_from(BACKENDS)))
def test_a_pool_is_a_set_that_draws_each_untried_backend_alike(
    steps: list[tuple[bool, Backend]], tried: set[Backend]
) -> None:
    pool, model = BackendPool(), set[Backend]()
    for appears, backend in steps:
        (pool.add if appears else pool.discard)(backend)
        (model.add if appears else model.discard)(backend)
        assert set(pool) == model
        assert len(pool) == len(model)
        assert (backend in pool) == appears
    left = model - tried
    draws = iter([float(Fraction(2 * n + 1, 2 * len(left))) for n in range(len(left))])
    drawn = [pool.draw(draws.__next__, tried) for _ in left]
    assert sorted(backend for backend in drawn if backend is not None) == sorted(left)
    if not left:
        assert pool.draw(lambda: 0.5, tried) is None


def balancer(*backends: Backend, frontend: Frontend = WEB) -> Balancer:
    made = Balancer(lambda: 0.0)
    made.apply(FrontendDelta(frontends=(frontend,), backends=(grow(frontend, *backends),)))
    return made


def test_a_choice_is_made_among_the_untried() -> None:
    chooser = balancer(A, B)
    assert chooser.choose(WEB, "x", SourceKind.POD, 0.0) == Choice(WEB.backend_set(Scope.CLUSTER), A)
    assert chooser.choose(WEB, "x", SourceKind.POD, 0.0, [A]) == Choice(WEB.backend_set(Scope.CLUSTER), B)
    assert chooser.choose(WEB, "x", SourceKind.POD, 0.0, [A, B]) is Refusal.REJECT


def test_a_client_is_pinned_to_the_backend_that_worked() -> None:
    sticky = Frontend(WEB.key, WEB.service_port, WEB.kind, affinity_timeout=60)
    chooser = balancer(A, B, frontend=sticky)
    picks = [chooser.choose(sticky, "x", SourceKind.POD, 0.0, tried) for tried in ([], [A], [])]
    assert [choice.backend for choice in picks if isinstance(choice, Choice)] == [A, B, B]


@pytest.mark.parametrize("change", ["frontend removed", "affinity switched off"])
def test_affinity_ends_with_what_it_was_for(change: str) -> None:
    sticky = Frontend(WEB.key, WEB.service_port, WEB.kind, affinity_timeout=60)
    chooser = balancer(A, frontend=sticky)
    chooser.choose(sticky, "x", SourceKind.POD, 0.0)
    assert len(chooser.affinity) == 1
    removed = FrontendDelta(removed=(sticky.key,))
    chooser.apply(removed if change == "frontend removed" else FrontendDelta(frontends=(WEB,)))
    assert len(chooser.affinity) == 0


def test_a_backend_is_gone_when_it_is_in_neither_scope() -> None:
    chooser = balancer(A)
    chooser.apply(FrontendDelta(backends=(grow(WEB, A, scope=Scope.LOCAL),)))
    first, second = (FrontendDelta(backends=(shrink(WEB, A, scope=scope),)) for scope in Scope)
    chooser.apply(first)
    assert not list(chooser.gone(first))
    chooser.apply(second)
    assert {choice.backend_set.scope for choice in chooser.gone(second)} == set(Scope)


def test_one_backend_affects_the_frontends_of_its_service_port_alone() -> None:
    """In a table of many Services as in one of few."""
    tracked = TrackedTable()
    many = tuple(cluster_ip(Address(f"10.97.{n // 256}.{n % 256}", TCP, 80), service_port(n)) for n in range(2000))
    tracked.apply(FrontendDelta(frontends=many))
    assert tracked.apply(FrontendDelta(backends=(grow(many[77], A),))).frontends == (many[77].key,)


def test_a_service_port_is_orphaned_with_its_last_frontend() -> None:
    tracked = TrackedTable()
    other = Frontend(NodePort(Family.IPV6, TCP, 30080), WEB.service_port, FrontendKind.NODE_PORT)
    tracked.apply(FrontendDelta(frontends=(WEB, other)))
    assert not tracked.apply(FrontendDelta(removed=(WEB.key,))).orphaned
    assert tracked.apply(FrontendDelta(removed=(other.key,))).orphaned == (WEB.service_port,)
    assert not tracked.apply(FrontendDelta(removed=(other.key,))).orphaned


NODE_IPS = frozenset(("192.0.2.11", "fd00::11"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(Address("10.96.0.1", TCP, 80), ["tcp/10.96.0.1:80"], id="address"),
        pytest.param(Address("fd00::1", UDP, 53), ["udp/[fd00::1]:53"], id="IPv6 address"),
        pytest.param(NodePort(Family.IPV4, TCP, 30080), ["tcp/192.0.2.11:30080"], id="IPv4 node-port"),
        pytest.param(NodePort(Family.IPV6, UDP, 30053), ["udp/[fd00::11]:30053"], id="IPv6 node-port"),
    ],
)
def test_places(key: FrontendKey, expected: list[str]) -> None:
    assert [str(place) for place in places_of(key, NODE_IPS)] == expected


def test_the_first_claimant_is_whom_a_packet_is_for() -> None:
    node_port = Frontend(NodePort(Family.IPV4, TCP, 80), service_port(1), FrontendKind.NODE_PORT)
    table = FrontendTable(node_port_addresses=frozenset(("10.96.0.1", "10.96.0.2")))
    table.apply(FrontendDelta(frontends=(WEB, node_port)))
    for ip in ("10.96.0.1", "10.96.0.2", "10.96.0.3"):
        claims = claimants(Place(TCP, ip, 80), table.frontends, table.node_port_addresses)
        found = lookup(table, ip, TCP, 80)
        assert claims[:1] == (() if found is None else (found.key,))


class FakeSession:
    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.last_used = 0.0


def test_sessions_are_in_the_order_of_their_last_use() -> None:
    table: SessionTable[FakeSession] = SessionTable()
    choice = Choice(WEB.backend_set(Scope.CLUSTER), A)
    first, second = FakeSession(choice), FakeSession(choice)
    assert table.longest_idle() is None
    table.add(first, 1.0)
    table.add(second, 2.0)
    assert table.longest_idle() is first
    table.touch(first, 3.0)
    assert table.idle_since(2.0) == [second]
    assert set(table.going_to(choice)) == {first, second}
    table.remove(second)
    table.remove(second)
    assert table.all() == table.going_to(choice) == (first,)
    table.remove(first)
    assert len(table) == 0
    assert not table.going_to(choice)


def test_counters_of_a_removed_frontend_stay_in_the_totals() -> None:
    book = CounterBook()
    old = book.of(WEB.key)
    old.flows = old.active = 1
    book.retire(WEB.key)
    book.retire(WEB.key)
    book.of(WEB.key).flows = 2
    assert (book.totals().flows, book.totals().active) == (3, 1)
    old.active = 0
    old.octets_in = 5
    for _ in range(2):
        assert (book.totals().flows, book.totals().active, book.totals().octets_in) == (3, 0, 5)
    assert book.by_frontend[WEB.key].flows == 2
