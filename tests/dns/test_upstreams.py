# SPDX-License-Identifier: Apache-2.0
"""Whom to ask: policies, health, stub domains, resolv.conf."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import UpstreamPolicy
from svcproxy_dns.upstreams import PROBE_MAX, PROBE_MIN, UPSTREAMS_MAX, Upstream, Upstreams, parse_resolv_conf
from svcproxy_dns.wire import encode_name

A, B, C = "192.0.2.1:53", "192.0.2.2:53", "[2001:db8::3]:5353"


def made(policy: UpstreamPolicy = UpstreamPolicy.SEQUENTIAL, own: tuple[str, ...] = ()) -> Upstreams:
    return Upstreams(policy, random.Random(7), own)


def order(upstreams: Upstreams, now: float = 0.0, name: str = "www.example.com") -> list[str]:
    return [each.address for each in upstreams.group(encode_name(name)).plan(now).order]


def named(upstreams: Upstreams, address: str) -> Upstream:
    return next(each for each in upstreams if each.address == address)


def test_sequential_asks_the_first_listed_first() -> None:
    upstreams = made()
    upstreams.replace([A, B, C], {})
    assert [order(upstreams) for _ in range(3)] == [[A, B, C]] * 3


def test_round_robin_asks_each_in_turn() -> None:
    upstreams = made(UpstreamPolicy.ROUND_ROBIN)
    upstreams.replace([A, B, C], {})
    assert [order(upstreams)[0] for _ in range(6)] == [B, C, A] * 2


def test_random_asks_any() -> None:
    upstreams = made(UpstreamPolicy.RANDOM)
    upstreams.replace([A, B, C], {})
    firsts = [order(upstreams)[0] for _ in range(300)]
    assert all(60 < firsts.count(each) < 140 for each in (A, B, C))


def test_b17_whoever_leaves_one_query_unanswered_is_asked_last() -> None:
    upstreams = made()
    upstreams.replace([A, B], {})
    named(upstreams, A).unanswered(10.0)
    assert order(upstreams, 10.1) == [B, A]
    named(upstreams, A).answered()
    assert order(upstreams, 10.2) == [A, B]


def test_a_suspect_gets_a_copy_now_and_then() -> None:
    upstreams = made()
    upstreams.replace([A, B], {})
    named(upstreams, A).unanswered(0.0)
    group = upstreams.group(b"\0")
    copies = []
    for tenth in range(1000):
        if group.plan(tenth / 10).probe is not None:
            copies.append(tenth / 10)
    gaps = [later - earlier for earlier, later in pairwise(copies)]
    assert copies[0] == pytest.approx(PROBE_MIN)
    assert gaps[:3] == pytest.approx([1.0, 2.0, 4.0])
    assert max(gaps) == pytest.approx(PROBE_MAX)


def test_where_all_are_suspect_they_are_asked_all_the_same() -> None:
    upstreams = made()
    upstreams.replace([A, B], {})
    for each in upstreams:
        each.unanswered(0.0)
    plan = upstreams.group(b"\0").plan(100.0)
    assert ([each.address for each in plan.order], plan.probe) == ([A, B], None)
    assert upstreams.group(b"\0").broken


def test_whoever_loops_is_not_asked() -> None:
    upstreams = made()
    upstreams.replace([A, B], {})
    named(upstreams, A).looping = True
    assert order(upstreams) == [B]
    named(upstreams, B).looping = True
    assert order(upstreams) == []


def test_this_server_is_left_out() -> None:
    upstreams = made(own=("192.0.2.1:53", "10.96.0.10:53"))
    assert upstreams.replace([A, B], {"corp.example": [A]}) == [A, A]
    assert order(upstreams) == [B]
    assert order(upstreams, name="x.corp.example") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("example", A, id="none"),
        pytest.param("corp.example", B, id="the zone itself"),
        pytest.param("a.b.corp.example", B, id="below"),
        pytest.param("x.eu.corp.example", C, id="the longest"),
        pytest.param("xcorp.example", A, id="not at a label"),
    ],
)
def test_a_stub_domain_has_upstreams_of_its_own(name: str, expected: str) -> None:
    upstreams = made()
    upstreams.replace([A], {"corp.example": [B], "eu.corp.example": [C]})
    assert order(upstreams, name=name) == [expected]


def test_health_outlives_a_change_of_the_list() -> None:
    upstreams = made()
    upstreams.replace([A, B], {})
    named(upstreams, A).unanswered(0.0)
    upstreams.replace([A, C], {"corp.example": [A]})
    assert order(upstreams, 0.1) == [C, A]
    assert named(upstreams, A).suspect
    assert [each.address for each in upstreams] == [A, C]


def test_without_upstreams_by_intention_names_are_refused_by_accident_not() -> None:
    upstreams = made()
    assert not upstreams.group(b"\0").refuses
    upstreams.replace((), {})
    assert not upstreams.group(b"\0").refuses
    upstreams.replace(None, {"corp.example": [B]})
    assert upstreams.group(b"\0").refuses
    assert not upstreams.group(encode_name("corp.example")).refuses


@pytest.mark.parametrize(
    ("text", "found", "problems"),
    [
        pytest.param("nameserver 192.0.2.1\n", ["192.0.2.1:53"], 0, id="one"),
        pytest.param("# no\n;no\nsearch a b\noptions ndots:5\n\n", [], 0, id="none"),
        pytest.param("nameserver 2001:DB8:0::1", ["[2001:db8::1]:53"], 0, id="IPv6"),
        pytest.param("nameserver fe80::1%eth0", ["[fe80::1%eth0]:53"], 0, id="IPv6 with a zone"),
        pytest.param("nameserver 192.0.2.1\nnameserver 192.0.2.1\n", ["192.0.2.1:53"], 0, id="twice"),
        pytest.param("\tnameserver\t192.0.2.1 # comment", ["192.0.2.1:53"], 0, id="blanks"),
        pytest.param("nameserver\nnameserver dns.example\nnameserver 192.0.2.2", ["192.0.2.2:53"], 2, id="nonsense"),
        pytest.param(
            "\n".join(f"nameserver 192.0.2.{low}" for low in range(1, 18)),
            [f"192.0.2.{low}:53" for low in range(1, 1 + UPSTREAMS_MAX)],
            2,
            id="too many",
        ),
    ],
)
def test_resolv_conf(text: str, found: list[str], problems: int) -> None:
    upstreams, wrong = parse_resolv_conf(text)
    assert (upstreams, len(wrong)) == (found, problems)


@given(st.text(max_size=200), st.sampled_from(["", "nameserver ", "nameserver 1.1.1.1\n", "nameserver fe80::1%"]))
def test_any_resolv_conf_is_read(noise: str, front: str) -> None:
    for address in parse_resolv_conf(front + noise)[0]:
        assert Upstream(address).port == 53


def test_an_upstream_knows_host_and_port() -> None:
    assert (Upstream(C).host, Upstream(C).port) == ("2001:db8::3", 5353)
    assert (Upstream("[fe80::1%lo]:53").host, Upstream("[fe80::1%lo]:53").zone) == ("fe80::1", "lo")
