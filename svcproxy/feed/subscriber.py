# SPDX-License-Identifier: Apache-2.0
"""A worker's end of a feed: frames in, calls on a sink and acknowledgements out. Performs no I/O.

Work is done in slices of a frame or a few, one per `step`, so that whoever drives this can serve others in between.
Nothing is ever taken out of the sink but by a delta or at the end of a whole snapshot: a lost connection, an agent that
starts anew and a snapshot cut short leave in place what was known.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from svcproxy.errors import FeedError
from svcproxy.feed.codec import (
    CHUNK_RECORDS,
    FRAME_LIMIT,
    PROTOCOL_VERSION,
    SNAPSHOT_RECORDS,
    FrameReader,
    Topic,
    decode_agent_frame,
    encode_frame,
)
from svcproxy.feed.frames import (
    Ack,
    AgentFrame,
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

SLICE_RECORDS: Final = SNAPSHOT_RECORDS
"""A step ends with the frame that reaches this many records."""
SWEEP_RECORDS: Final = SNAPSHOT_RECORDS
"""Records removed in one step at the end of a snapshot."""
SLICE_FRAMES: Final = 64
"""Frames taken in one step, however few records they hold."""

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Sink(Protocol[R_contra]):
    """Receives the records of a topic; `svcproxy.names.records.RecordSink` states the contract for DNS.

    A change that came in several frames is several calls of `change`, additions first.
    """

    def begin_snapshot(self) -> None:
        """A full snapshot follows: records not added from now on are swept at its end."""

    def change(self, added: Sequence[R_contra], removed: Sequence[R_contra]) -> None:
        """Take records in and out. Adding the known and removing the unknown are fine."""

    def sweep(self, batch: int) -> Iterator[int]:
        """Remove what the snapshot did not bring, at most `batch` records between two yields of the number removed."""
        ...


class Phase(enum.Enum):
    """Where the conversation is."""

    OFFLINE = "offline"
    """No connection."""
    GREETING = "greeting"
    """Hello is on its way."""
    WAITING = "waiting"
    """Welcomed; the agent has no set to give yet."""
    SNAPSHOT = "snapshot"
    """Chunks are coming in."""
    LIVE = "live"
    """Deltas are coming in."""


ACCEPTED: Final[Mapping[Phase, frozenset[type]]] = {
    Phase.OFFLINE: frozenset(),
    Phase.GREETING: frozenset({Welcome}),
    Phase.WAITING: frozenset({SnapshotBegin, SourceState, Ping}),
    Phase.SNAPSHOT: frozenset({SnapshotBegin, SnapshotChunk, SnapshotEnd, Delta, Ping}),
    Phase.LIVE: frozenset({SnapshotBegin, Delta, SourceState, Ping}),
}
"""The frames that the agent may send in each phase."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """What a worker knows of its feed."""

    phase: Phase
    epoch: str
    """Epoch of the position held; empty while there is none to resume from."""
    revision: int
    """Revision of the position held."""
    complete: bool
    """Whether a whole set has been taken in since start. Until then absence means nothing: DNS answers SERVFAIL."""
    source: SourceState
    """What the agent said last of its source."""

    @property
    def connected(self) -> bool:
        """Whether the agent has answered on the present connection."""
        return self.phase not in (Phase.OFFLINE, Phase.GREETING)

    @property
    def stale(self) -> bool:
        """Whether the set held may be behind the source."""
        return self.phase is not Phase.LIVE or self.source.stale or not self.source.synced


class Subscriber(Generic[R]):
    """Keeps one sink in step with a published set, over any number of connections. One owner.

    A connection is `connected`, then `receive` and `step` in turn until `step` returns False, then `outgoing` to be
    sent; at its end `disconnected`.
    """

    def __init__(self, topic: Topic[R], sink: Sink[R], name: str, pid: int) -> None:
        """`name`, `pid`: how the agent shall call this worker in its status."""
        self._topic: Final = topic
        self._sink: Final = sink
        self._name: Final = name
        self._pid: Final = pid
        self._reader = FrameReader(FRAME_LIMIT)
        self._phase = Phase.OFFLINE
        self._epoch = ""
        """Of the present connection."""
        self._held_epoch = ""
        self._revision = 0
        self._partial = False
        """Within a change of several frames."""
        self._complete = False
        self._source = SourceState()
        self._sweep: Iterator[int] | None = None
        self._ack_due = False
        self._pong_due = False

    @property
    def state(self) -> FeedState:
        """The present state; a new value whenever it differs."""
        return FeedState(self._phase, self._held_epoch, self._revision, self._complete, self._source)

    def connected(self) -> bytes:
        """A new connection stands; returns the Hello to send. Whatever was unfinished has to be stepped out before."""
        if self._phase is not Phase.OFFLINE or self._sweep is not None:
            raise ValueError(f"connected while {self._phase.value}")
        self._phase = Phase.GREETING
        self._reader = FrameReader(FRAME_LIMIT)
        self._partial = self._ack_due = self._pong_due = False
        hello = Hello(
            version=PROTOCOL_VERSION,
            topic=self._topic.name,
            epoch=self._held_epoch,
            revision=self._revision if self._held_epoch else 0,
            holding=self._complete,
            name=self._name,
            pid=self._pid,
        )
        return encode_frame(hello)

    def disconnected(self) -> None:
        """The connection is gone. Octets received and not stepped through are forgotten; a sweep goes on."""
        self._phase = Phase.OFFLINE

    def receive(self, octets: bytes) -> None:
        """Append what was read; `step` makes something of it."""
        self._reader.feed(octets)

    def step(self) -> bool:
        """Do one slice of the work at hand; returns whether there may be more. Raises `FeedError`: the connection must
        be dropped then, and the sink keeps what it has."""
        if self._sweep is not None:
            return self._sweep_on()
        if self._phase is Phase.OFFLINE:
            return False
        records = 0
        for _ in range(SLICE_FRAMES):
            if (payload := self._reader.next_payload()) is None:
                return False
            records += self._take(decode_agent_frame(payload))
            if records >= SLICE_RECORDS or self._sweep is not None:
                break
        return True

    def outgoing(self) -> bytes:
        """What is to be sent now, empty if nothing."""
        octets = b""
        if self._phase is Phase.OFFLINE:
            return octets
        if self._pong_due:
            octets += encode_frame(Pong())
        if self._ack_due:
            octets += encode_frame(Ack(self._revision))
        self._pong_due = self._ack_due = False
        return octets

    def _take(self, frame: AgentFrame) -> int:
        """Handle a frame; returns the number of records in it."""
        if type(frame) not in ACCEPTED[self._phase]:
            raise FeedError(f"{type(frame).__name__} while {self._phase.value}")
        if self._partial and not isinstance(frame, Delta | SnapshotBegin | Ping):
            raise FeedError(f"{type(frame).__name__} within a change")
        match frame:
            case Delta():
                return self._delta(frame)
            case SnapshotChunk():
                records = self._topic.decode(frame.records)
                self._sink.change(records, ())
                return len(records)
            case SnapshotBegin():
                self._begin(frame.revision)
            case SnapshotEnd():
                self._end(frame.revision)
            case Welcome():
                self._welcome(frame)
            case SourceState():
                self._source = frame
            case Ping():
                self._pong_due = True
        return 0

    def _welcome(self, frame: Welcome) -> None:
        if frame.resumed:
            if frame.epoch != self._held_epoch or frame.revision < self._revision:
                raise FeedError("resumed from a position that is not held")
            self._phase = Phase.LIVE
        else:
            self._phase = Phase.WAITING
        self._epoch = frame.epoch
        self._source = SourceState()

    def _begin(self, revision: int) -> None:
        self._sink.begin_snapshot()
        self._phase = Phase.SNAPSHOT
        self._held_epoch = ""
        self._revision = revision
        self._partial = False

    def _end(self, revision: int) -> None:
        if revision != self._revision:
            raise FeedError(f"snapshot ends at revision {revision}, deltas led to {self._revision}")
        self._phase = Phase.LIVE
        self._sweep = self._sink.sweep(SWEEP_RECORDS)

    def _sweep_on(self) -> bool:
        assert self._sweep is not None
        if next(self._sweep, None) is None:
            self._sweep = None
            self._complete = True
            self._held_epoch = self._epoch
            self._ack_due = True
        return True

    def _delta(self, frame: Delta) -> int:
        if frame.revision != self._revision + 1:
            raise FeedError(f"revision {frame.revision} after {self._revision}")
        added, removed = self._topic.decode(frame.added), self._topic.decode(frame.removed)
        if len(added) + len(removed) > CHUNK_RECORDS:
            raise FeedError(f"{len(added) + len(removed)} records in one frame, at most {CHUNK_RECORDS} are allowed")
        self._sink.change(added, removed)
        self._partial = frame.more
        if not frame.more:
            self._revision = frame.revision
            self._ack_due = self._phase is Phase.LIVE
        return len(added) + len(removed)
