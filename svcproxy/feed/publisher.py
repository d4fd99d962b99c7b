# SPDX-License-Identifier: Apache-2.0
"""The agent's end of a feed: one published set, any number of subscriptions. Performs no I/O.

The set itself stays with whoever builds it; kept here is a bounded log of its latest changes, encoded once. A
subscription is a place in that log, and perhaps a snapshot under way: nothing is queued per subscriber, a slow one
costs no memory and holds nobody up. One that falls out of the log is given a new snapshot.

While a snapshot is under way its subscriber gets the changes too, in order, between the chunks. Chunks come from a list
made at the start; a record no longer in the set when its chunk is made is left out, for the delta that removed it may
have been sent already. So at the end the subscriber has the set as of the last delta sent, and a record that was there
throughout was never missing.

A subscriber that holds a whole set is given a snapshot only when lists have come from the source: what was restored
from disk, or is still being listed, never replaces what a worker knows.
"""

import enum
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from svcproxy.errors import FeedError
from svcproxy.feed.codec import (
    CHUNK_RECORDS,
    CLIENT_FRAME_LIMIT,
    NAME_LIMIT,
    PROTOCOL_VERSION,
    SNAPSHOT_RECORDS,
    FrameReader,
    Topic,
    decode_client_frame,
    encode_chunk,
    encode_delta,
    encode_frame,
)
from svcproxy.feed.frames import Ack, Hello, Ping, Pong, SnapshotBegin, SnapshotEnd, SourceState, Welcome

LOG_DELTAS: Final = 8192
"""Changes kept for those who are behind or come back."""
LOG_RECORDS: Final = 65536
"""Records in all changes kept; some 5 MB encoded. A larger change is cheaper as a snapshot and is not kept."""
TIMES_KEPT: Final = 8192
"""Revisions whose time of publication is remembered for `Acknowledged`."""
PULL_OCTETS: Final = 65536
"""Octets of one `pull`, about."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A subscriber has put every revision up to `revision` in force."""

    subscriber: str
    after: int
    """What it had before."""
    revision: int
    at: float
    """Monotonic seconds."""
    latencies: tuple[tuple[int, float], ...]
    """(revision, seconds from the time given to `publish`) of each that is new, as far as the times are remembered."""


class SubscriptionState(enum.Enum):
    """What a subscription is at."""

    GREETING = "greeting"
    """No Hello yet."""
    WAITING = "waiting"
    """There is no set yet that may be given to it."""
    SNAPSHOT = "snapshot"
    """Chunks are being sent."""
    LIVE = "live"
    """Deltas are being sent."""


@dataclass(frozen=True, slots=True)
class SubscriberStatus:
    """One subscriber, for status and metrics."""

    name: str
    pid: int
    state: SubscriptionState
    revision: int
    """Acknowledged last, or where the subscriber began."""
    lag: int
    """Revisions published and not acknowledged."""
    acknowledged_at: float | None
    """Monotonic seconds of the last acknowledgement, None before the first."""


@dataclass(slots=True)
class _Change:
    frames: tuple[bytes, ...]
    records: int


class Publisher(Generic[R]):
    """Publishes one topic. One owner; never blocks.

    Revisions count from 0, the set as it was when the publisher was made, by one per change.
    """

    def __init__(
        self,
        topic: Topic[R],
        epoch: str,
        records: Callable[[], Collection[R]],
        acknowledged: Callable[[Acknowledged], None] = lambda _: None,
        *,
        log_deltas: int = LOG_DELTAS,
        log_records: int = LOG_RECORDS,
        chunk_records: int = CHUNK_RECORDS,
    ) -> None:
        """`epoch`: another one for each publisher ever made. `records`: the live set, with fast membership; it may be
        ahead of `publish`, but only by changes that are published later."""
        if not 0 < chunk_records <= CHUNK_RECORDS:
            raise ValueError(f"chunks of {chunk_records} records, 1 to {CHUNK_RECORDS} are allowed")
        self.chunk_records: Final = chunk_records
        self._log_deltas_max: Final = log_deltas
        self._log_records_max: Final = log_records
        self.topic: Final = topic
        self.epoch: Final = epoch
        self.revision = 0
        self.source = SourceState()
        self.left_out = 0
        """Records too large for any frame, each time one was met."""
        self._records: Final = records
        self._acknowledged: Final = acknowledged
        self._log: Final[deque[_Change]] = deque()
        self._log_records = 0
        self._followed = False
        """Whether anybody can have a place in the log."""
        self._times: Final = [0.0] * TIMES_KEPT
        self._subscriptions: Final[dict[Subscription[R], None]] = {}

    def publish(self, added: Sequence[R], removed: Sequence[R], now: float) -> int:
        """Log a change of the set and return its revision; an empty one changes nothing.

        `now`: monotonic seconds from which the latency of acknowledgements is counted.
        """
        if not added and not removed:
            return self.revision
        self.revision += 1
        self._times[self.revision % TIMES_KEPT] = now
        if self._followed:
            self._append(added, removed)
        self._wake()
        return self.revision

    def source_changed(self, source: SourceState) -> None:
        """Tell subscribers how good the set is, once they have what was published before."""
        if source != self.source:
            self.source = source
            self._wake()

    def subscribe(self, wake: Callable[[], None]) -> "Subscription[R]":
        """A subscription for a new connection. `wake` is called whenever `pull` may have something new to say."""
        subscription = Subscription(self, wake)
        self._subscriptions[subscription] = None
        return subscription

    def unsubscribe(self, subscription: "Subscription[R]") -> None:
        """Forget a subscription whose connection ended."""
        self._subscriptions.pop(subscription, None)

    def subscribers(self) -> list[SubscriberStatus]:
        """Those that have introduced themselves, in the order they came."""
        return [entry.status() for entry in self._subscriptions if entry.state is not SubscriptionState.GREETING]

    @property
    def oldest(self) -> int:
        """The oldest revision that can be resumed from."""
        return self.revision - len(self._log)

    def frames_after(self, revision: int) -> tuple[bytes, ...]:
        """The frames that lead from `revision` to the next one; `oldest <= revision < self.revision`."""
        return self._log[revision - self.oldest].frames

    def current(self) -> Collection[R]:
        """The live set."""
        return self._records()

    def begin(self) -> list[R]:
        """The set as of `revision`, for a snapshot; from now on the log is kept."""
        self._followed = True
        return list(self._records())

    def acknowledged(self, subscriber: str, after: int, revision: int, now: float) -> None:
        """Report the revisions in `(after, revision]` as put in force."""
        first = max(after, self.revision - TIMES_KEPT) + 1
        latencies = tuple((each, now - self._times[each % TIMES_KEPT]) for each in range(first, revision + 1))
        self._acknowledged(Acknowledged(subscriber, after, revision, now, latencies))

    def _append(self, added: Sequence[R], removed: Sequence[R]) -> None:
        size = len(added) + len(removed)
        if size > self._log_records_max:
            self._log.clear()
            self._log_records = 0
            return
        encoded = encode_delta(self.topic, self.revision, added, removed, self.chunk_records)
        self.left_out += encoded.left_out
        self._log.append(_Change(encoded.frames, size))
        self._log_records += size
        while self._log_records > self._log_records_max or len(self._log) > self._log_deltas_max:
            self._log_records -= self._log.popleft().records

    def _wake(self) -> None:
        for subscription in self._subscriptions:
            subscription.wake()


class Subscription(Generic[R]):
    """One subscriber's connection: octets in through `receive`, octets out through `pull`."""

    def __init__(self, publisher: Publisher[R], wake: Callable[[], None]) -> None:
        self.wake: Final = wake
        self.state = SubscriptionState.GREETING
        self._publisher: Final = publisher
        self._reader: Final = FrameReader(CLIENT_FRAME_LIMIT)
        self._name = ""
        self._pid = 0
        self._holding = False
        self._acked = 0
        self._acked_at: float | None = None
        self._sent = 0
        """Revision of the last delta sent whole."""
        self._part = 0
        """Frames sent of the delta after `_sent`."""
        self._source_sent: SourceState | None = None
        self._urgent: Final[list[bytes]] = []
        """Frames that wait for nothing: the Welcome."""
        self._ping_due = False
        self._chunks: Iterator[Sequence[R]] | None = None

    def receive(self, octets: bytes, now: float) -> None:
        """Take in what the subscriber sent. Raises `FeedError`: the connection must be dropped then."""
        self._reader.feed(octets)
        for payload in self._reader:
            frame = decode_client_frame(payload)
            match frame:
                case Hello():
                    self._hello(frame)
                case Ack():
                    self._ack(frame.revision, now)
                case Pong():
                    self._expect_greeted("Pong")

    def ping(self) -> None:
        """Ask the subscriber for a sign of life with the next `pull`."""
        self._ping_due = True

    def pull(self, octets: int = PULL_OCTETS) -> bytes:
        """The next frames to send, until they reach so many octets; empty when there is nothing to say for now."""
        if self.state is SubscriptionState.GREETING:
            return b""
        frames = self._urgent.copy()
        self._urgent.clear()
        if self._ping_due:
            self._ping_due = False
            frames.append(_PING)
        size = sum(map(len, frames))
        while size < octets and (more := self._next()):
            frames += more
            size += sum(map(len, more))
        return b"".join(frames)

    def status(self) -> SubscriberStatus:
        """For status and metrics."""
        lag = self._publisher.revision - self._acked
        return SubscriberStatus(self._name, self._pid, self.state, self._acked, lag, self._acked_at)

    def _hello(self, hello: Hello) -> None:
        publisher = self._publisher
        if self.state is not SubscriptionState.GREETING:
            raise FeedError("second Hello")
        if hello.version != PROTOCOL_VERSION:
            raise FeedError(f"protocol version {hello.version}, this is {PROTOCOL_VERSION}")
        if hello.topic != publisher.topic.name:
            raise FeedError(f"topic {hello.topic[:NAME_LIMIT]!r}, this is {publisher.topic.name!r}")
        if max(map(len, (hello.name, hello.epoch))) > NAME_LIMIT:
            raise FeedError("name or epoch too long")
        self._name, self._pid, self._holding = hello.name, hello.pid, hello.holding
        resumed = hello.epoch == publisher.epoch and publisher.oldest <= hello.revision <= publisher.revision
        self._acked = self._sent = hello.revision if resumed else publisher.revision
        self.state = SubscriptionState.LIVE if resumed else SubscriptionState.WAITING
        self._urgent.append(encode_frame(Welcome(publisher.epoch, publisher.revision, resumed)))
        self.wake()

    def _ack(self, revision: int, now: float) -> None:
        self._expect_greeted("Ack")
        if revision > self._sent:
            raise FeedError(f"acknowledges revision {revision}, was sent {self._sent}")
        self._acked_at = now
        if revision > self._acked:
            self._publisher.acknowledged(self._name, self._acked, revision, now)
            self._acked = revision

    def _expect_greeted(self, what: str) -> None:
        if self.state is SubscriptionState.GREETING:
            raise FeedError(f"{what} before Hello")

    def _next(self) -> Sequence[bytes]:
        """The frames that come next, none if everything has been said."""
        publisher = self._publisher
        match self.state:
            case SubscriptionState.WAITING:
                if not self._may_begin():
                    return self._next_source()
                self._acked = publisher.revision  # what came before was never for this subscriber
                return self._begin()
            case SubscriptionState.SNAPSHOT:
                if self._sent < publisher.oldest:
                    return self._begin()
                return [*self._next_delta(), *self._next_chunk()]
            case SubscriptionState.LIVE:
                if self._sent < publisher.oldest:
                    return self._begin()
                return self._next_delta() or self._next_source()
            case SubscriptionState.GREETING:
                return ()

    def _may_begin(self) -> bool:
        source = self._publisher.source
        return source.synced or (source.servable and not self._holding)

    def _begin(self) -> Sequence[bytes]:
        publisher = self._publisher
        self.state = SubscriptionState.SNAPSHOT
        self._sent, self._part = publisher.revision, 0
        self._chunks = _chunks(publisher.begin(), min(SNAPSHOT_RECORDS, publisher.chunk_records))
        return (encode_frame(SnapshotBegin(self._sent)),)

    def _next_delta(self) -> Sequence[bytes]:
        """A frame of the next delta. Revisions are one by one, so that snapshots go on beside them."""
        if self._sent == self._publisher.revision:
            return ()
        frames = self._publisher.frames_after(self._sent)
        frame = frames[self._part]
        self._part += 1
        if self._part == len(frames):
            self._sent, self._part = self._sent + 1, 0
        return (frame,)

    def _next_chunk(self) -> Sequence[bytes]:
        """A chunk of the snapshot, or its end. Never within a delta of several frames."""
        if self._part or self._chunks is None:
            return ()
        if (chunk := next(self._chunks, None)) is None:
            self._chunks = None
            self.state = SubscriptionState.LIVE
            return (encode_frame(SnapshotEnd(self._sent)),)
        current = self._publisher.current()
        encoded = encode_chunk(self._publisher.topic, [record for record in chunk if record in current])
        self._publisher.left_out += encoded.left_out
        return encoded.frames

    def _next_source(self) -> Sequence[bytes]:
        source = self._publisher.source
        if source == self._source_sent:
            return ()
        self._source_sent = source
        return (encode_frame(source),)


_PING: Final = encode_frame(Ping())


def _chunks(records: Sequence[R], size: int) -> Iterator[Sequence[R]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
