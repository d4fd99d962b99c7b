# SPDX-License-Identifier: Apache-2.0
"""What each end refuses to hear, in every phase."""

import msgspec
import pytest

from svcproxy.errors import FeedError
from svcproxy.feed.codec import NAMES, PROTOCOL_VERSION, encode_frame
from svcproxy.feed.frames import (
    Ack,
    AgentFrame,
    ClientFrame,
    Delta,
    Hello,
    Ping,
    Pong,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SourceState,
    Welcome,
)
from svcproxy.feed.subscriber import ACCEPTED, Phase
from tests.feed.world import LIVE, Agent, Wire, record

NONE = msgspec.Raw(NAMES.encode([]))
MANY = msgspec.Raw(NAMES.encode([record(number) for number in range(200)]))
WELCOME = Welcome("e", 7, False)

WAY_TO: dict[Phase, list[AgentFrame]] = {
    Phase.GREETING: [],
    Phase.WAITING: [WELCOME],
    Phase.SNAPSHOT: [WELCOME, SnapshotBegin(7)],
    Phase.LIVE: [WELCOME, SnapshotBegin(7), SnapshotEnd(7)],
}
FRAMES: list[AgentFrame] = [
    WELCOME,
    SnapshotBegin(8),
    SnapshotChunk(NONE),
    SnapshotEnd(7),
    Delta(8, False, NONE, NONE),
    SourceState(True, False),
    Ping(),
]


def wire_in(phase: Phase, *more: AgentFrame) -> Wire:
    wire = Wire()
    wire.subscriber.connected()
    assert wire.feed(b"".join(map(encode_frame, [*WAY_TO[phase], *more]))) is None
    assert wire.is_in(phase)
    return wire


def test_every_phase_is_in_the_table() -> None:
    assert ACCEPTED.keys() == set(Phase)
    assert WAY_TO.keys() | {Phase.OFFLINE} == set(Phase)
    assert {type(frame) for frame in FRAMES} == {*frozenset().union(*ACCEPTED.values())}


@pytest.mark.parametrize("phase", WAY_TO, ids=lambda phase: phase.value)
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_is_taken_in_its_phases_alone(phase: Phase, frame: AgentFrame) -> None:
    refusal = wire_in(phase).feed(encode_frame(frame))
    assert (refusal is None) == (type(frame) in ACCEPTED[phase])


@pytest.mark.parametrize(
    ("phase", "before", "frame"),
    [
        pytest.param(Phase.GREETING, [], Welcome("e", 7, True), id="resumed though nothing is held"),
        pytest.param(Phase.LIVE, [], Delta(9, False, NONE, NONE), id="a revision left out"),
        pytest.param(Phase.LIVE, [], Delta(7, False, NONE, NONE), id="a revision repeated"),
        pytest.param(Phase.SNAPSHOT, [], SnapshotEnd(8), id="a snapshot of another revision"),
        pytest.param(Phase.LIVE, [Delta(8, True, NONE, NONE)], SourceState(), id="something else within a change"),
        pytest.param(Phase.LIVE, [], Delta(8, False, MANY, MANY), id="more records than a frame may carry"),
    ],
)
def test_a_subscriber_refuses(phase: Phase, before: list[AgentFrame], frame: AgentFrame) -> None:
    assert isinstance(wire_in(phase, *before).feed(encode_frame(frame)), FeedError)


def test_a_snapshot_may_begin_within_a_change() -> None:
    wire = wire_in(Phase.LIVE, Delta(8, True, NONE, NONE))
    assert wire.feed(encode_frame(SnapshotBegin(9)) + encode_frame(SnapshotEnd(9))) is None
    assert wire.subscriber.state.revision == 9


def test_a_sweep_cut_off_is_finished_before_the_next_connection() -> None:
    agent, wire = Agent(), Wire()
    agent.change(added=[record("a")])
    agent.publisher.source_changed(LIVE)
    wire.connect(agent)
    wire.answer()
    wire.pull(1 << 20)
    wire.deliver(len(wire.down))
    while not wire.is_in(Phase.LIVE):
        assert wire.subscriber.step()
    wire.subscriber.disconnected()
    with pytest.raises(ValueError, match="offline"):
        wire.subscriber.connected()
    while wire.subscriber.step():
        pass
    assert wire.subscriber.state.complete


HELLO = Hello(PROTOCOL_VERSION, "names", "", 0, False, "dns-0", 42)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([Ack(0)], id="Ack before Hello"),
        pytest.param([Pong()], id="Pong before Hello"),
        pytest.param([HELLO, HELLO], id="second Hello"),
        pytest.param([HELLO, Ack(1)], id="Ack of what was not sent"),
        pytest.param([msgspec.structs.replace(HELLO, version=PROTOCOL_VERSION - 1)], id="other protocol version"),
        pytest.param([msgspec.structs.replace(HELLO, topic="routes")], id="other topic"),
        pytest.param([msgspec.structs.replace(HELLO, name="x" * 257)], id="name too long"),
    ],
)
def test_a_publisher_refuses(frames: list[ClientFrame]) -> None:
    subscription = Agent().publisher.subscribe(lambda: None)
    with pytest.raises(FeedError):
        subscription.receive(b"".join(map(encode_frame, frames)), 0.0)


@pytest.mark.parametrize(
    ("epoch", "revision"),
    [
        pytest.param("another", 0, id="another epoch"),
        pytest.param("epoch-0", 1, id="a revision to come"),
        pytest.param("epoch-0", -1, id="a revision before the first"),
    ],
)
def test_positions_that_cannot_be_resumed_from_are_no_error(epoch: str, revision: int) -> None:
    agent = Agent()
    subscription = agent.publisher.subscribe(lambda: None)
    subscription.receive(encode_frame(msgspec.structs.replace(HELLO, epoch=epoch, revision=revision)), 0.0)
    assert subscription.pull().startswith(encode_frame(Welcome("epoch-0", 0, False)))


def test_nothing_is_said_before_hello() -> None:
    agent = Agent()
    agent.change(added=[record("a")])
    subscription = agent.publisher.subscribe(lambda: None)
    subscription.ping()
    assert subscription.pull() == b""
    assert agent.publisher.subscribers() == []


def test_subscribers_are_woken_by_what_is_published_until_they_leave() -> None:
    agent, woken = Agent(), list[str]()
    subscription = agent.publisher.subscribe(lambda: woken.append("woken"))
    agent.change(added=[record("a")])
    agent.publisher.source_changed(LIVE)
    agent.publisher.source_changed(LIVE)
    agent.publisher.unsubscribe(subscription)
    agent.change(added=[record("b")])
    assert len(woken) == 2
