# SPDX-License-Identifier: Apache-2.0
"""Endpoints that move between slices, written one after the other."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model import Changes, Endpoint, EndpointSlice, Namespace, NamespacedName, Object, Service, Store
from svcproxy.names import steady
from svcproxy.names.builder import NameBuilder, RecordDelta
from svcproxy.names.records import EndpointRecord, Record
from svcproxy.names.steady import PATIENCE, SteadyNames
from tests.names.test_builder import changes
from tests.names.world import endpoint, endpoint_slice, namespace, service

WEB = NamespacedName("shop", "web")


class Followed:
    """A store and its names, and the set that somebody has who follows them."""

    def __init__(self, *objects: Object) -> None:
        self.store = Store()
        for each in objects:
            self.store.apply(Changes(type(each), (each,)))
        self.builder = NameBuilder(self.store)
        self.names = SteadyNames(self.store, self.builder)
        self.known: set[Record] = set(self.builder.records())
        self.now = 100.0

    def take(self, delta: RecordDelta) -> None:
        assert self.known.isdisjoint(delta.added)
        assert self.known.issuperset(delta.removed)
        self.known = (self.known - set(delta.removed)) | set(delta.added)
        assert self.known == set(self.builder.records())

    def change(self, changes: Changes[Any]) -> None:
        self.take(self.names.update(self.store.apply(changes), self.now))

    def apply(self, *objects: Object) -> None:
        for each in objects:
            self.change(Changes(type(each), (each,)))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.names.expire(self.now))

    @property
    def ips(self) -> set[str]:
        return {record.ip for record in self.known if isinstance(record, EndpointRecord)}


def web(name: str, *endpoints: Endpoint, **fields: Any) -> EndpointSlice:
    return endpoint_slice(name, "web", *endpoints, **fields)


MOVING = endpoint("10.0.0.1", hostname="a")


@pytest.fixture
def followed() -> Followed:
    return Followed(*map(namespace, ("shop", "yard")), service("web", "None"), web("s1", MOVING), web("s2"))


def test_an_endpoint_in_no_slice_stays_for_a_while(followed: Followed) -> None:
    followed.apply(web("s1"))
    assert followed.ips == {"10.0.0.1"}
    assert followed.names.expiry == followed.now + PATIENCE
    followed.wait(PATIENCE * 0.9)
    assert followed.ips == {"10.0.0.1"}
    followed.wait(PATIENCE * 0.2)
    assert followed.ips == set()
    assert followed.names.expiry is None


def test_an_endpoint_that_comes_back_stays_for_good(followed: Followed) -> None:
    followed.apply(web("s1"), web("s2", MOVING))
    assert followed.names.held == 0
    followed.wait(PATIENCE * 2)
    assert followed.ips == {"10.0.0.1"}


def test_an_endpoint_that_comes_back_otherwise_is_as_it_is_said_now(followed: Followed) -> None:
    followed.apply(web("s1"), web("s2", endpoint("10.0.0.1", hostname="b")))
    assert [record.hostname for record in followed.known if isinstance(record, EndpointRecord)] == ["b"]


def test_a_change_in_place_leaves_nothing_behind(followed: Followed) -> None:
    followed.apply(web("s1", endpoint("10.0.0.1", hostname="b")))
    assert [record.hostname for record in followed.known if isinstance(record, EndpointRecord)] == ["b"]


NOT_READY = endpoint("10.0.0.1", hostname="a", ready=False)


@pytest.mark.parametrize(
    "objects",
    [
        pytest.param([web("s1", NOT_READY)], id="M28: in its slice"),
        pytest.param([web("s2", NOT_READY), web("s1")], id="in another slice, before"),
        pytest.param([web("s1"), web("s2", NOT_READY)], id="in another slice, after"),
        pytest.param([web("s1", NOT_READY), web("s1")], id="before it leaves"),
        pytest.param([web("s1"), web("s2", endpoint("10.0.0.1", ready=False))], id="with another hostname"),
    ],
)
def test_what_is_not_ready_goes_at_once(followed: Followed, objects: Sequence[EndpointSlice]) -> None:
    followed.apply(*objects)
    assert followed.ips == set()


def test_what_is_ready_somewhere_stays_whatever_another_slice_says(followed: Followed) -> None:
    followed.apply(web("s2", NOT_READY), web("s3", MOVING), web("s1"))
    assert followed.ips == {"10.0.0.1"}


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(Changes(Service, removed=(WEB,)), id="Service"),
        pytest.param(Changes(Namespace, removed=(namespace("shop").key,)), id="namespace"),
    ],
)
def test_what_is_held_goes_with_what_it_belongs_to(followed: Followed, gone: Changes[Any]) -> None:
    followed.apply(web("s1"))
    followed.change(gone)
    assert followed.ips == set()


@pytest.mark.parametrize("gone", ["Service", "namespace"])
def test_nothing_is_held_for_what_is_gone(followed: Followed, gone: str) -> None:
    kind, key = (Service, WEB) if gone == "Service" else (Namespace, namespace("shop").key)
    followed.change(Changes(kind, removed=(key,)))
    followed.apply(web("s1"))
    assert followed.ips == set()


def test_no_more_are_held_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "HELD_MAX", 3)
    followed = Followed(service("web", "None"), web("s1", *(endpoint(f"10.0.0.{low}") for low in range(5))))
    followed.apply(web("s1"))
    assert len(followed.ips) == followed.names.held == 3
    followed.wait(PATIENCE)
    assert followed.ips == set()


def test_what_left_first_goes_first(followed: Followed) -> None:
    followed.apply(web("s2", endpoint("10.0.0.2")), web("s1"))
    followed.wait(PATIENCE / 2)
    followed.apply(web("s2"))
    followed.wait(PATIENCE / 2)
    assert followed.ips == {"10.0.0.2"}
    followed.wait(PATIENCE / 2)
    assert followed.ips == set()


IPS = [f"10.0.0.{low}" for low in range(1, 5)]
SLICES = ["s1", "s2", "s3"]
placements = st.fixed_dictionaries({ip: st.sets(st.sampled_from(SLICES), min_size=1) for ip in IPS})


@given(placements, placements, st.permutations(SLICES), st.lists(st.floats(0, PATIENCE / 7), min_size=3, max_size=3))
def test_a_move_never_shows_an_instant_without_an_endpoint(
    before: dict[str, set[str]], after: dict[str, set[str]], order: list[str], pauses: list[float]
) -> None:
    """Whatever slices the endpoints are in before and after, one event for each slice, in any order."""

    def placed(where: dict[str, set[str]], name: str) -> EndpointSlice:
        return web(name, *(endpoint(ip) for ip in IPS if name in where[ip]))

    followed = Followed(service("web", "None"), *(placed(before, name) for name in SLICES))
    for name, pause in zip(order, pauses, strict=True):
        new = placed(after, name)
        if new.endpoints:
            followed.apply(new)
        else:
            followed.change(Changes(EndpointSlice, removed=(new.key,)))
        assert followed.ips == set(IPS)
        followed.wait(pause)
        assert followed.ips == set(IPS)
    assert followed.names.held == 0


@given(st.lists(st.tuples(changes(), st.floats(0, PATIENCE)), max_size=12))
def test_what_is_held_is_all_that_tells_them_from_names_made_from_scratch(
    history: list[tuple[Changes[Any], float]],
) -> None:
    followed = Followed()
    for step, pause in history:
        followed.change(step)
        scratch = set(NameBuilder(followed.store).records())
        assert followed.known >= scratch
        assert len(followed.known - scratch) == followed.names.held
        followed.wait(pause)
    followed.wait(PATIENCE)
    assert followed.known == set(NameBuilder(followed.store).records())
    assert followed.names.expiry is None
