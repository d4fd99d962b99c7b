# SPDX-License-Identifier: Apache-2.0
"""The cache: how long it keeps what, and never more than its bounds."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.body import Body
from svcproxy_dns.cache import FAILURES_MAX, STALE_RECHECK, Cache, CacheLimits, Kind, Store
from svcproxy_dns.replies import Record
from svcproxy_dns.wire import Rcode

NAME = b"\1a\0"
ANSWER = Body(NAME, 0, [Record(NAME, 1, 0, bytes(4))])
DENIAL = Body(NAME, 3)
LIMITS = CacheLimits(ttl_min=5, ttl_max=30, denial_ttl_max=20, failure_ttl=5, stale_max=100)
KEY = b"key"


@pytest.fixture
def cache() -> Cache:
    return Cache(LIMITS)


@pytest.mark.parametrize(
    ("ttl", "denies", "kept"),
    [
        pytest.param(0, False, 5, id="M17: none"),
        pytest.param(7, False, 7, id="its own"),
        pytest.param(300, False, 30, id="M16: too long"),
        pytest.param(10, True, 10, id="B16: a denial"),
        pytest.param(900, True, 20, id="M23: a denial, too long"),
    ],
)
def test_a_response_is_kept_for_its_ttl_within_limits(cache: Cache, ttl: int, denies: bool, kept: int) -> None:
    assert cache.keep(KEY, ANSWER, ttl, denies=denies, now=1000) == kept
    found = cache.find(KEY, 1000 + kept - 0.1)
    assert found is not None
    assert (found.expires, found.stale_until) == (1000 + kept, 1000 + kept + 100)
    assert found.kind is (Kind.DENIAL if denies else Kind.SUCCESS)


def test_what_is_not_to_be_kept_is_not_and_ends_what_was(cache: Cache) -> None:
    cache.keep(KEY, ANSWER, 30, denies=False, now=0)
    cache.keep(KEY, ANSWER, None, denies=True, now=1)
    assert cache.find(KEY, 2) is None


def test_a_stale_response_is_found_for_a_while_and_then_gone(cache: Cache) -> None:
    cache.keep(KEY, ANSWER, 10, denies=False, now=0)
    assert cache.find(KEY, 109.9) is not None
    assert cache.find(KEY, 110) is None
    assert cache.stores[Kind.SUCCESS].octets == 0


def test_without_stale_responses_none_outlives_its_ttl() -> None:
    cache = Cache(CacheLimits(stale_max=0))
    cache.keep(KEY, ANSWER, 10, denies=False, now=0)
    assert cache.find(KEY, 10) is None


def test_the_newest_verdict_counts(cache: Cache) -> None:
    cache.keep(KEY, ANSWER, 10, denies=False, now=0)
    cache.keep(KEY, DENIAL, 10, denies=True, now=1)
    found = cache.find(KEY, 2)
    assert found is not None
    assert found.body is DENIAL
    cache.fail(KEY, Rcode.SERVFAIL, 5, 20)
    cache.keep(KEY, ANSWER, 10, denies=False, now=21)
    assert cache.find(KEY, 22) is not None
    assert len(cache.stores[Kind.FAILURE]) == len(cache.stores[Kind.DENIAL]) == 0


@pytest.mark.parametrize(("seconds", "kept"), [(1.0, 1.0), (60.0, 5.0), (float("inf"), 5.0)])
def test_a_failure_is_kept_for_a_moment(cache: Cache, seconds: float, kept: float) -> None:
    cache.fail(KEY, Rcode.SERVFAIL, seconds, 100)
    found = cache.find(KEY, 100 + kept - 0.01)
    assert found is not None
    assert (found.kind, found.body.rcode) == (Kind.FAILURE, Rcode.SERVFAIL)
    assert cache.find(KEY, 100 + kept) is None


def test_a_failure_hides_no_answer_and_puts_off_the_next_attempt(cache: Cache) -> None:
    cache.keep(KEY, ANSWER, 10, denies=False, now=0)
    cache.fail(KEY, Rcode.SERVFAIL, 0, 5)
    fresh = cache.find(KEY, 6)
    assert fresh is not None
    assert fresh.expires > 6
    cache.fail(KEY, Rcode.SERVFAIL, 5, 20)
    stale = cache.find(KEY, 21)
    assert stale is not None
    assert (stale.body, stale.retry_at) == (ANSWER, 20 + STALE_RECHECK)


def test_denials_and_failures_leave_answers_alone() -> None:
    cache = Cache(CacheLimits(entries=10))
    cache.keep(KEY, ANSWER, 30, denies=False, now=0)
    for number in range(2 * FAILURES_MAX):
        cache.keep(b"denied%d" % number, DENIAL, 30, denies=True, now=0)
        cache.fail(b"failed%d" % number, Rcode.SERVFAIL, 5, 0)
    assert cache.find(KEY, 1) is not None
    assert {kind: len(store) for kind, store in cache.stores.items()} == {
        Kind.SUCCESS: 1,
        Kind.DENIAL: 10,
        Kind.FAILURE: FAILURES_MAX,
    }
    assert cache.stores[Kind.DENIAL].evictions == 2 * FAILURES_MAX - 10


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = Cache(CacheLimits(entries=2))
    for key in (b"a", b"b"):
        cache.keep(key, ANSWER, 30, denies=False, now=0)
    cache.find(b"a", 1)
    cache.keep(b"c", ANSWER, 30, denies=False, now=2)
    assert [cache.find(key, 3) is not None for key in (b"a", b"b", b"c")] == [True, False, True]


_KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
_BODIES = st.integers(0, 40).map(lambda size: Body(NAME, 0, [Record(NAME, 16, 0, bytes(size))]))
_STEPS = st.one_of(
    st.tuples(st.just("keep"), _KEYS, _BODIES, st.one_of(st.none(), st.integers(0, 60)), st.booleans()),
    st.tuples(st.just("fail"), _KEYS, st.sampled_from([0.0, 1.0, 60.0])),
    st.tuples(st.just("find"), _KEYS),
)


@given(
    st.lists(st.tuples(st.floats(0, 30), _STEPS), max_size=60),
    st.integers(1, 5),
    st.integers(600, 3000),
    st.sampled_from([0.0, 50.0]),
)
def test_nothing_is_served_beyond_its_time_and_bounds_hold(
    script: list[tuple[float, tuple[object, ...]]], entries: int, octets: int, stale_max: float
) -> None:
    """Against a dictionary that remembers everything ever said about a key."""
    limits = CacheLimits(entries=entries, octets=octets, stale_max=stale_max)
    cache, now = Cache(limits), 0.0
    last: dict[bytes, tuple[Body | None, float]] = {}
    actions: dict[str, Callable[..., None]] = {}

    def keep(key: bytes, body: Body, ttl: int | None, denies: bool) -> None:
        lifetime = cache.keep(key, body, ttl, denies=denies, now=now)
        assert limits.ttl_min <= lifetime <= 30
        last[key] = (body, now + lifetime) if ttl is not None else (None, 0)

    def fail(key: bytes, seconds: float) -> None:
        cache.fail(key, Rcode.SERVFAIL, seconds, now)

    def find(key: bytes) -> None:
        found = cache.find(key, now)
        if found is None:
            return
        if found.kind is Kind.FAILURE:
            assert now < found.expires <= now + limits.failure_ttl
            return
        body, expires = last[key]
        assert (found.body, found.expires) == (body, expires)
        assert now < expires + stale_max

    actions.update(keep=keep, fail=fail, find=find)
    for pause, (name, *arguments) in script:
        now += pause
        actions[str(name)](*arguments)
        for store in cache.stores.values():
            assert len(store) <= max(entries, FAILURES_MAX)
            assert 0 <= store.octets <= octets
            assert (store.octets == 0) == (len(store) == 0)
        assert all(len(cache.stores[kind]) <= entries for kind in (Kind.SUCCESS, Kind.DENIAL))


def test_an_entry_larger_than_the_store_is_not_kept() -> None:
    store_cache = Cache(CacheLimits(octets=500))
    store_cache.keep(KEY, Body(NAME, 0, [Record(NAME, 16, 0, bytes(1000))]), 30, denies=False, now=0)
    assert store_cache.find(KEY, 1) is None
    assert len(Store(0, 0)) == 0
