# SPDX-License-Identifier: Apache-2.0
"""The reducer without a socket: rows for each rule, and a cluster that does its worst, as a property."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svcproxy.errors import ApiGone
from svcproxy.kube import decoding
from svcproxy.kube.decoding import Applied, Bookmark, Deleted, Page, Refused, RefusedObject, WatchEvent
from svcproxy.kube.reflector import (
    RESTORED_AFTER,
    RESTORED_AFTER_ALONE,
    UNPAGED_AFTER,
    List,
    Reflector,
    Step,
    Watch,
    newer,
    older,
)
from svcproxy.kube.resources import ServerBehind
from svcproxy.kube.source import InvalidObject
from svcproxy.model import NamespacedName, Service
from svcproxy.model.service import ServiceMeta, ServiceSpec


def key(name: str) -> NamespacedName:
    return NamespacedName("ns", name)


def service(name: str, mark: int = 0) -> Service:
    """A Service whose content tells the version at which it was written."""
    return Service(ServiceMeta(name=name, namespace="ns"), ServiceSpec(external_name=str(mark)))


def bad(name: str | None) -> RefusedObject:
    found = key(name) if name else None
    return RefusedObject(InvalidObject("Service", str(found or ""), "broken"), found)


def listed(*objects: Service, version: str = "10", refused: tuple[RefusedObject, ...] = ()) -> Reflector[Service]:
    """A reflector that has just taken in a complete list."""
    reflector = Reflector(Service)
    reflector.page(Page(objects, version, refused=refused))
    return reflector


def action(reflector: Reflector[Service]) -> object:
    """What is to be done next, as an object of any type, so that comparing does not narrow it."""
    return reflector.action


def test_the_first_list_is_a_consistent_read_and_says_so_when_complete() -> None:
    reflector = Reflector(Service, page_size=2)
    assert action(reflector) == List(limit=2)
    first = reflector.page(Page([service("a"), service("b")], "10", "token"))
    assert first.changes.applied == (service("a"), service("b")), "objects do not wait for the last page"
    assert (first.synced, reflector.synced) == (False, False)
    assert action(reflector) == List(continue_token="token", limit=2)
    last = reflector.page(Page([service("c")], "10"))
    assert (last.synced, reflector.synced) == (True, True)
    assert action(reflector) == Watch("10")


def test_objects_known_before_give_a_delta() -> None:
    reflector = Reflector(Service, known=[service("a"), service("b"), service("c")], version="7", page_size=2)
    assert action(reflector) == List("7", "NotOlderThan", limit=2)
    step = reflector.page(Page([service("a"), service("b", 8)], "9"))
    assert step.changes.applied == (service("b", 8),)
    assert step.changes.removed == (key("c"),)


def test_after_410_the_list_is_not_older_than_what_is_held() -> None:
    reflector = listed(service("a"))
    reflector.events([Applied(service("a", 14), "14")])
    reflector.expired()
    assert action(reflector) == List("14", "NotOlderThan", limit=500)
    with pytest.raises(ServerBehind):
        reflector.page(Page([service("a")], "13"))
    assert reflector.held[key("a")] == service("a", 14)
    assert not reflector.page(Page([service("a", 14)], "14")).changes


def test_a_list_that_expires_begins_anew_and_at_last_unpaged() -> None:
    reflector = Reflector(Service, page_size=1)
    for number in range(UNPAGED_AFTER):
        assert action(reflector) == (List(limit=1) if number == 0 else List("10", "NotOlderThan", limit=1))
        reflector.page(Page([service("a")], "10", "token"))
        reflector.expired()
    assert action(reflector) == List("10", "NotOlderThan", limit=0)
    assert reflector.page(Page([service("a")], "11")).synced


def test_objects_of_an_abandoned_list_are_the_floor_of_the_next() -> None:
    reflector = Reflector(Service, known=[service("a", 5)], version="5")
    reflector.page(Page([service("a", 20)], "20", "token"))
    reflector.expired()
    assert (reflector.floor, action(reflector)) == ("20", List("20", "NotOlderThan", limit=500))


def test_pages_of_two_lists_do_not_mix() -> None:
    reflector = Reflector(Service)
    reflector.page(Page([service("a")], "10", "token"))
    with pytest.raises(ApiGone):
        reflector.page(Page([service("b")], "11"))
    assert action(reflector) == List("10", "NotOlderThan", limit=500)
    assert key("b") not in reflector.held


@pytest.mark.parametrize(
    ("refused", "removed"),
    [
        pytest.param((), (key("a"), key("b")), id="complete list"),
        pytest.param((bad("a"),), (key("b"),), id="an invalid object is there, though not usable"),
        pytest.param((bad(None),), (), id="an invalid object without a name may be any"),
    ],
)
def test_what_a_list_removes(refused: tuple[RefusedObject, ...], removed: tuple[NamespacedName, ...]) -> None:
    reflector = listed(service("a"), service("b"))
    reflector.expired()
    step = reflector.page(Page([service("c")], "12", refused=refused))
    assert step.changes.removed == removed
    assert step.invalid == tuple(item.report for item in refused)


@pytest.mark.parametrize(
    ("events", "applied", "removed", "version"),
    [
        pytest.param([Applied(service("b", 11), "11")], [service("b", 11)], [], "11", id="added"),
        pytest.param([Applied(service("a", 11), "11")], [service("a", 11)], [], "11", id="modified"),
        pytest.param([Applied(service("a"), "11")], [], [], "11", id="nothing that matters changed"),
        pytest.param([Deleted(key("a"), "11")], [], [key("a")], "11", id="deleted"),
        pytest.param([Deleted(key("z"), "11")], [], [], "11", id="unknown deleted"),
        pytest.param([Bookmark("15")], [], [], "15", id="bookmark"),
        pytest.param([Refused(bad("a"), "11")], [], [], "11", id="invalid: the last good version stays"),
        pytest.param([Refused(bad("a"), "")], [], [], "10", id="invalid, version not readable"),
        pytest.param([Applied(service("a", 11), "11"), Applied(service("a", 12), "12")], [service("a", 12)], [], "12",
                     id="twice in one read"),
        pytest.param([Deleted(key("a"), "11"), Applied(service("a", 12), "12")], [service("a", 12)], [], "12",
                     id="replaced in one read"),
        pytest.param([Applied(service("b", 11), "11"), Deleted(key("b"), "12")], [], [], "12",
                     id="came and went in one read"),
        pytest.param([Applied(service("a", 9), "9")], [], [], "10", id="event of the past"),
        pytest.param([Deleted(key("a"), "10")], [], [], "10", id="event repeated"),
    ],
)  # fmt: skip
def test_events(
    events: list[WatchEvent[Service]], applied: list[Service], removed: list[NamespacedName], version: str
) -> None:
    reflector = listed(service("a"))
    step = reflector.events(events)
    assert (list(step.changes.applied), list(step.changes.removed)) == (applied, removed)
    assert action(reflector) == Watch(version)
    assert step.stale == sum(older(event.version, "11") and event.version != "" for event in events
                             if not isinstance(event, Bookmark | decoding.Status))  # fmt: skip


def test_an_event_about_nobody_ends_the_watch() -> None:
    reflector = listed(service("a"))
    step = reflector.events([Applied(service("b", 11), "11"), Refused(bad(None), "12")])
    assert step.changes.applied == (service("b", 11),)
    assert action(reflector) == List("12", "NotOlderThan", limit=500)


def test_a_bookmark_of_the_past_shows_a_server_that_is_behind() -> None:
    reflector = listed(service("a"))
    assert reflector.events([Bookmark("4")]).behind
    assert reflector.floor == "10"


@pytest.mark.parametrize(
    ("said_so", "seconds", "consistent"),
    [
        pytest.param("a", RESTORED_AFTER, False, id="one of two"),
        pytest.param("ab", RESTORED_AFTER - 1, False, id="all, not long enough"),
        pytest.param("ab", RESTORED_AFTER, True, id="all, long enough"),
        pytest.param("a", RESTORED_AFTER_ALONE, True, id="one, the other mute for long"),
    ],
)
def test_a_restored_etcd_is_believed_after_a_while(said_so: str, seconds: float, consistent: bool) -> None:
    reflector = listed(service("a"), service("b"), version="100")
    for server in said_so:
        reflector.behind(server, ["a", "b"], 1000.0)
    reflector.behind(said_so[0], ["a", "b"], 1000.0 + seconds)
    assert action(reflector) == (List(limit=500) if consistent else List("100", "NotOlderThan", limit=500))
    if consistent:
        step = reflector.page(Page([service("a", 40)], "50"))
        assert (step.changes.applied, step.changes.removed) == ((service("a", 40),), (key("b"),))
        assert (reflector.floor, action(reflector)) == ("50", Watch("50"))
    else:
        with pytest.raises(ServerBehind):
            reflector.page(Page([service("a", 40)], "50"))


def test_a_fresh_list_ends_the_suspicion() -> None:
    reflector = listed(service("a"), version="100")
    reflector.behind("a", ["a"], 0.0)
    reflector.page(Page([service("a")], "101"))
    reflector.behind("a", ["a"], RESTORED_AFTER + 1)
    assert action(reflector) == List("101", "NotOlderThan", limit=500)


def test_pages_too_large_are_halved_down_to_one() -> None:
    reflector = Reflector(Service, page_size=5)
    answers = [(reflector.too_large(), action(reflector)) for _ in range(4)]
    assert answers == [(True, List(limit=2)), (True, List(limit=1)), (False, List(limit=1)), (False, List(limit=1))]


@pytest.mark.parametrize(
    ("left", "right", "is_older", "is_newer"),
    [
        pytest.param("9", "10", True, False, id="as numbers, not as text"),
        pytest.param("10", "9", False, True, id="newer"),
        pytest.param("10", "10", False, False, id="equal"),
        pytest.param("abc", "10", False, True, id="opaque: cannot be called older"),
        pytest.param("abc", "abc", False, False, id="opaque and equal"),
        pytest.param("", "10", False, True, id="unknown"),
        pytest.param("9" * 5000, "10", False, True, id="a number that is none"),
        pytest.param("１０", "9", False, True, id="digits of another script"),
    ],
)
def test_versions_compare(left: str, right: str, is_older: bool, is_newer: bool) -> None:
    assert (older(left, right), newer(left, right)) == (is_older, is_newer)


STEADY = ("s0", "s1", "s2")
"""These exist throughout: whatever happens, they must never come out as removed."""
FLEETING = ("f0", "f1")


@dataclass
class Simulation:
    """A cluster with two API servers that lag and fail, and what a follower made of it."""

    history: list[tuple[int, str, str]] = field(default_factory=list)
    """(version, what, name); what is `put`, `spoil` or `delete`."""
    version: int = 10
    compacted: int = 0
    lag: list[int] = field(default_factory=lambda: [0, 0])
    """How far each server is behind."""
    listings: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    reflector: Reflector[Service] = field(default_factory=lambda: Reflector(Service, page_size=2))
    seen: dict[NamespacedName, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in STEADY:
            self.write("put", name)

    def write(self, what: str, name: str) -> None:
        if what == "delete" and (name in STEADY or name not in self.state(self.version)):
            return
        self.version += 1
        self.history.append((self.version, what, name))

    def state(self, version: int) -> dict[str, tuple[str, int]]:
        """By name: what it is and since which version."""
        state: dict[str, tuple[str, int]] = {}
        for at, what, name in self.history:
            if at <= version:
                if what == "delete":
                    state.pop(name)
                else:
                    state[name] = (what, at)
        return state

    def take(self, step: Step[Service]) -> None:
        """What came out must be sound."""
        for obj in step.changes.applied:
            mark = int(obj.spec.external_name or "0")
            assert mark > self.seen.get(obj.key, 0), "never back to an older state"
            self.seen[obj.key] = mark
        for gone in step.changes.removed:
            assert gone.name not in STEADY
        assert not {obj.key for obj in step.changes.applied} & set(step.changes.removed)

    def ask(self, server: int, count: int, repeat: int, sloppy: bool) -> None:
        """Let the follower ask `server`, which answers at most `count` events.

        `repeat`: sends one event again, the how manieth last. `sloppy`: lists what it has, however old.
        """
        action, reached = self.reflector.action, self.version - self.lag[server]
        if isinstance(action, Watch):
            self.watch(server, int(action.version), reached, count, repeat)
        elif action.continue_token:
            self.page(action.continue_token, action.limit)
        elif action.version and int(action.version) > reached and not sloppy:
            self.reflector.behind(str(server), ["0", "1"], 0.0)
        else:
            version = reached if action.version else self.version
            state = self.state(version)
            self.listings[str(version)] = [(name, *state[name]) for name in sorted(state)]
            self.page(f"{version}:0", action.limit)

    def page(self, token: str, limit: int) -> None:
        version, _, start = token.partition(":")
        if version not in self.listings:
            self.reflector.expired()
            return
        entries = self.listings[version]
        end = int(start) + limit if limit else len(entries)
        chosen = entries[int(start) : end]
        objects = [service(name, at) for name, what, at in chosen if what == "put"]
        refused = tuple(bad(name) for name, what, _ in chosen if what == "spoil")
        try:
            token = f"{version}:{end}" if end < len(entries) else ""
            self.take(self.reflector.page(Page(objects, version, token, refused)))
        except ServerBehind:
            self.reflector.behind("0", ["0", "1"], 0.0)

    def watch(self, server: int, since: int, reached: int, count: int, repeat: int) -> None:
        if since < self.compacted:
            self.reflector.expired()
            return
        fresh = [entry for entry in self.history if since < entry[0] <= reached][:count]
        past = [entry for entry in self.history if entry[0] <= since]
        events: list[WatchEvent[Service]] = []
        for at, what, name in (past[-repeat : len(past) - repeat + 1] if repeat else []) + fresh:
            if what == "put":
                events.append(Applied(service(name, at), str(at)))
            elif what == "spoil":
                events.append(Refused(bad(name), str(at)))
            else:
                events.append(Deleted(key(name), str(at)))
        if len(fresh) < count:
            events.append(Bookmark(str(reached)))
        step = self.reflector.events(events)
        self.take(step)
        if step.behind:
            self.reflector.behind(str(server), ["0", "1"], 0.0)

    def settle(self) -> None:
        """No more trouble: the follower catches up."""
        self.lag = [0, 0]
        for _ in range(100):
            self.ask(0, 1000, 0, sloppy=False)
            if self.reflector.action == Watch(str(self.version)):
                return
        raise AssertionError("the follower never catches up")

    def trouble(self, rng: Random) -> None:
        """One thing happens; half of the time the follower asks."""
        steps: dict[Callable[[], None], int] = {
            lambda: self.ask(rng.randrange(2), rng.randrange(5), rng.randrange(5), sloppy=rng.random() < 0.5): 24,
            lambda: self.write("put", rng.choice(STEADY + FLEETING)): 10,
            lambda: self.write("spoil", rng.choice(STEADY + FLEETING)): 3,
            lambda: self.write("delete", rng.choice(FLEETING)): 3,
            lambda: self.lag.__setitem__(rng.randrange(2), rng.randrange(7)): 3,
            self.compact: 1,
            self.listings.clear: 1,
            self.reflector.expired: 1,
            self.be_reborn: 1,
        }
        rng.choices([*steps], [*steps.values()])[0]()

    def compact(self) -> None:
        self.compacted = self.version

    def be_reborn(self) -> None:
        """The follower starts anew from what it has saved."""
        old = self.reflector
        self.reflector = Reflector(Service, known=old.held.values(), version=old.floor, page_size=2)


@settings(max_examples=200)
@given(seed=st.integers(0, 1 << 32), length=st.integers(1, 80))
def test_whatever_happens_the_end_is_the_servers_and_nothing_steady_ever_goes(seed: int, length: int) -> None:
    rng, world = Random(seed), Simulation()
    for _ in range(length):
        world.trouble(rng)
    world.settle()
    end = world.state(world.version)
    held = {name.name: int(obj.spec.external_name or "0") for name, obj in world.reflector.held.items()}
    assert {name: at for name, at in held.items() if end[name][0] == "put"} == {
        name: at for name, (what, at) in end.items() if what == "put"
    }
    spoiled = {name: at for name, (what, at) in end.items() if what == "spoil"}
    assert all(at < spoiled[name] for name, at in held.items() if name in spoiled), "a last good version, or none"
