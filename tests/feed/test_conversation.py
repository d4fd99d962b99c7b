# SPDX-License-Identifier: Apache-2.0
"""Publisher and subscribers together: whatever happens between them, they agree in the end and nothing flickers."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from svcproxy.feed.codec import NAMES
from svcproxy.feed.frames import SourceState
from svcproxy.feed.publisher import Publisher, SubscriptionState
from svcproxy.feed.subscriber import Phase
from svcproxy.names.records import Record
from tests.feed.world import LIVE, RESTORED, Agent, Wire, record

CORE = frozenset(record(f"core-{number}") for number in range(7))
"""Records that the cluster has throughout."""
OTHERS = [record(f"other-{number}") for number in range(9)]


class World:
    """A cluster, the agent that follows it, and two workers."""

    def __init__(self) -> None:
        self.cluster: set[Record] = set(CORE)
        self.agents = 0
        self.agent = self._next_agent()
        self.wires = [Wire("dns-0"), Wire("dns-1")]

    def _next_agent(self) -> Agent:
        self.agents += 1
        return Agent(f"epoch-{self.agents}")

    def restart(self) -> None:
        for wire in self.wires:
            wire.cut()
        self.agent = self._next_agent()

    def restore(self, state: set[Record]) -> None:
        if not self.agent.publisher.source.servable:
            self.agent.change(added=sorted(CORE | state, key=str))
            self.agent.publisher.source_changed(RESTORED)

    def list(self) -> None:
        held = set(self.agent.records)
        self.agent.change(added=sorted(self.cluster - held, key=str), removed=sorted(held - self.cluster, key=str))
        self.agent.publisher.source_changed(LIVE)

    def change(self, added: set[Record], removed: set[Record]) -> None:
        self.cluster |= added
        self.cluster -= removed
        if self.agent.publisher.source.synced:
            self.agent.change(added=sorted(added, key=str), removed=sorted(removed, key=str))

    def toggle(self, wire: Wire) -> None:
        if wire.subscription is None:
            wire.connect(self.agent)
        else:
            wire.cut()

    def check(self) -> None:
        for wire in self.wires:
            if wire.subscriber.state.complete:
                assert wire.sink.known.keys() >= CORE, "a record that existed throughout went missing"


records = st.sets(st.sampled_from(OTHERS), max_size=6)
which = st.integers(0, 1)


def connected(wire: int, act: Callable[[Wire], object]) -> Callable[[World], None]:
    def step(world: World) -> None:
        if world.wires[wire].subscription is not None:
            act(world.wires[wire])

    return step


events = st.one_of(
    st.builds(lambda new, old: lambda world: world.change(new, old - new), records, records),
    st.builds(lambda wire: connected(wire, Wire.pull), which),
    st.builds(lambda wire, rounds: connected(wire, lambda wire: wire.exchange(rounds)), which, st.integers(1, 12)),
    st.builds(lambda wire, size: connected(wire, lambda wire: wire.deliver(size)), which, st.integers(1, 200)),
    st.builds(lambda wire: connected(wire, lambda wire: wire.subscriber.step()), which),
    st.builds(lambda wire: connected(wire, Wire.answer), which),
    st.builds(lambda wire: connected(wire, Wire.settle), which),
    st.builds(lambda wire: lambda world: world.toggle(world.wires[wire]), which),
    st.just(World.list),
    st.just(World.restart),
    st.builds(lambda state: lambda world: world.restore(state), records),
)


@settings(max_examples=300, deadline=None)
@given(history=st.lists(events, max_size=80))
def test_whatever_happens_subscribers_converge_and_nothing_flickers(history: list[Callable[[World], None]]) -> None:
    world = World()
    for event in history:
        event(world)
        world.check()
    world.list()
    for wire in world.wires:
        if wire.subscription is None:
            wire.connect(world.agent)
        wire.settle()
        world.check()
        assert wire.sink.known.keys() == world.agent.records.keys() == world.cluster
        assert wire.is_in(Phase.LIVE)
        assert not wire.subscriber.state.stale
    assert [status.lag for status in world.agent.publisher.subscribers()] == [0, 0]


def agent_with(*names: str, source: SourceState = LIVE) -> Agent:
    agent = Agent()
    agent.change(added=[record(name) for name in names])
    agent.publisher.source_changed(source)
    return agent


def test_a_new_subscriber_gets_the_set() -> None:
    agent, wire = agent_with("a", "b", "c", "d", "e"), Wire()
    wire.connect(agent)
    wire.settle()
    assert wire.sink.known.keys() == agent.records.keys()
    assert wire.subscriber.state.complete
    assert wire.subscriber.state.revision == agent.publisher.revision


def test_a_delta_reaches_a_live_subscriber_as_one_change() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record("b")], removed=[record("a")])
    wire.settle()
    assert wire.sink.known.keys() == {record("b")}


def test_a_delta_during_a_snapshot_is_not_undone_by_a_later_chunk() -> None:
    agent, wire = agent_with(*"abcdefgh"), Wire()
    wire.connect(agent)
    wire.answer()
    while wire.subscription is not None and wire.subscription.state is not SubscriptionState.SNAPSHOT:
        wire.pull()
    agent.change(added=[record("new")], removed=[record("h"), record("a")])
    wire.settle()
    assert wire.sink.known.keys() == {record(name) for name in [*"bcdefg", "new"]}


def test_a_resumed_subscriber_gets_only_what_it_missed() -> None:
    agent, wire = agent_with(*"abcdef"), Wire()
    wire.connect(agent)
    wire.settle()
    wire.cut()
    agent.change(added=[record("g")])
    wire.connect(agent)
    wire.settle()
    assert wire.sink.known.keys() == agent.records.keys()
    assert wire.sink.generation == 1, "one snapshot in all"


def test_a_subscriber_that_fell_out_of_the_log_gets_a_new_snapshot_on_the_same_connection() -> None:
    agent, wire = agent_with("a", "stays"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(removed=[record("a")])
    for number in range(20):
        agent.change(added=[record(number)])
    wire.settle()
    assert wire.sink.known.keys() == agent.records.keys()
    assert wire.sink.generation == 2


def test_a_change_larger_than_the_log_is_sent_as_a_snapshot() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record(number) for number in range(100)])
    wire.settle()
    assert len(wire.sink.known) == 101
    assert wire.sink.generation == 2


def test_a_change_of_several_frames_counts_when_its_last_frame_is_in() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record(number) for number in range(7)], removed=[record("a")])
    before = wire.subscriber.state.revision
    for _ in range(4):
        wire.pull()
    wire.deliver(len(wire.down))
    while wire.subscriber.step():
        pass
    assert wire.subscriber.state.revision == before
    assert record("a") in wire.sink.known, "additions come first"
    wire.settle()
    assert wire.subscriber.state.revision == before + 1
    assert wire.sink.known.keys() == agent.records.keys()


@pytest.mark.parametrize(
    ("source", "empty_handed", "holding"),
    [
        pytest.param(SourceState(), False, False, id="still listing: nobody"),
        pytest.param(RESTORED, True, False, id="restored from disk: only who has nothing"),
        pytest.param(LIVE, True, True, id="listed: everybody"),
        pytest.param(SourceState(True, True, 5.0), True, True, id="listed and now out of reach: everybody"),
    ],
)
def test_who_is_given_a_snapshot_by_a_new_agent(source: SourceState, empty_handed: bool, holding: bool) -> None:
    veteran, novice = Wire(), Wire()
    veteran.connect(agent_with("old"))
    veteran.settle()
    veteran.cut()
    agent = Agent("another epoch")
    agent.change(added=[record("new")])
    agent.publisher.source_changed(source)
    for wire in (veteran, novice):
        wire.connect(agent)
        wire.settle()
    assert novice.subscriber.state.complete == empty_handed
    assert novice.sink.known.keys() == ({record("new")} if empty_handed else set())
    assert veteran.subscriber.state.complete
    assert veteran.sink.known.keys() == {record("new" if holding else "old")}
    assert veteran.subscriber.state.source == novice.subscriber.state.source == source


def test_the_state_of_the_source_arrives_after_what_was_published_before() -> None:
    agent, wire = agent_with("a", source=RESTORED), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record("b")])
    agent.publisher.source_changed(LIVE)
    while wire.subscriber.state.stale:
        assert wire.pull()
        wire.deliver(len(wire.down))
        while wire.subscriber.step():
            pass
    assert record("b") in wire.sink.known


def test_a_lost_connection_makes_the_state_stale_and_takes_nothing() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    before = wire.subscriber.state
    wire.cut()
    assert (before.stale, wire.subscriber.state.stale) == (False, True)
    assert wire.subscriber.state.complete
    assert wire.sink.known.keys() == {record("a")}


def test_acknowledgements_carry_the_time_since_publication() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.acknowledged.clear()
    agent.change(added=[record("b")], now=10.0)
    agent.change(added=[record("c")], now=11.0)
    wire.settle(now=11.5)
    assert [(entry.subscriber, entry.revision, entry.latencies) for entry in agent.acknowledged] == [
        ("dns-0", 3, ((2, 1.5), (3, 0.5)))
    ]
    (status,) = agent.publisher.subscribers()
    assert (status.name, status.pid, status.state, status.revision, status.lag, status.acknowledged_at) == (
        "dns-0",
        42,
        SubscriptionState.LIVE,
        3,
        0,
        11.5,
    )


def test_lag_counts_what_is_not_acknowledged() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record("b")])
    agent.change(added=[record("c")])
    assert [status.lag for status in agent.publisher.subscribers()] == [2]


def test_a_snapshot_cut_short_is_not_resumed_from() -> None:
    agent, wire = agent_with("a", "b", "c", "d"), Wire()
    wire.connect(agent)
    wire.settle()
    wire.cut()
    for number in range(10):
        agent.change(added=[record(number)], removed=[record("a")])
    wire.connect(agent)
    wire.exchange(3)
    assert wire.is_in(Phase.SNAPSHOT)
    wire.cut()
    assert wire.subscriber.state.epoch == ""
    wire.connect(agent)
    wire.settle()
    assert wire.sink.known.keys() == agent.records.keys()


def test_a_change_cut_short_is_sent_again_whole() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record(number) for number in range(7)])
    wire.exchange(2)
    assert 1 < len(wire.sink.known) < 8
    wire.cut()
    wire.connect(agent)
    wire.settle()
    assert wire.sink.known.keys() == agent.records.keys()
    assert wire.sink.generation == 1


def test_a_ping_is_answered_in_every_phase_after_the_welcome() -> None:
    agent, wire = agent_with("a", source=SourceState()), Wire()
    wire.connect(agent)
    wire.settle()
    assert wire.is_in(Phase.WAITING)
    assert wire.subscription is not None
    wire.subscription.ping()
    wire.pull()
    wire.deliver(len(wire.down))
    wire.subscriber.step()
    assert wire.subscriber.outgoing().endswith(b"pong")


def test_a_change_that_ends_unfinished_leaves_the_next_connection_free() -> None:
    agent, wire = agent_with("a"), Wire()
    wire.connect(agent)
    wire.settle()
    agent.change(added=[record(number) for number in range(7)])
    wire.exchange(2)
    wire.cut()
    successor = Agent("another epoch")
    wire.connect(successor)
    wire.settle()
    assert wire.is_in(Phase.WAITING)


def test_an_empty_change_is_no_revision() -> None:
    agent = agent_with("a")
    assert agent.publisher.publish([], [], 0.0) == agent.publisher.revision == 1


def test_a_slow_subscriber_costs_others_nothing() -> None:
    agent, slow, quick = agent_with("a"), Wire("slow"), Wire("quick")
    for wire in (slow, quick):
        wire.connect(agent)
        wire.settle()
    for number in range(100):
        agent.change(added=[record(number)])
        quick.settle()
    assert len(quick.sink.known) == 101
    assert quick.sink.generation == 1
    assert not slow.down


def test_chunks_may_not_exceed_what_a_frame_may_carry() -> None:
    with pytest.raises(ValueError, match="257"):
        Publisher(NAMES, "e", lambda: (), chunk_records=257)
