# SPDX-License-Identifier: Apache-2.0
"""A publisher and its subscribers on wires made of bytearrays, to be driven step by step."""

from collections.abc import Iterator, Sequence

from svcproxy.errors import FeedError
from svcproxy.feed.codec import NAMES
from svcproxy.feed.frames import SourceState
from svcproxy.feed.publisher import Acknowledged, Publisher, Subscription
from svcproxy.feed.subscriber import Phase, Subscriber
from svcproxy.names.records import NamespaceRecord, Record

LIVE = SourceState(synced=True)
RESTORED = SourceState(stale=True, since=1000.0)


def record(name: object) -> Record:
    return NamespaceRecord(str(name))


class SetSink:
    """The plainest sink: each record with the generation that brought it last."""

    def __init__(self) -> None:
        self.known: dict[Record, int] = {}
        self.generation = 0

    def begin_snapshot(self) -> None:
        self.generation += 1

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        for entry in added:
            self.known[entry] = self.generation
        for entry in removed:
            self.known.pop(entry, None)

    def sweep(self, batch: int) -> Iterator[int]:
        old = [entry for entry, generation in self.known.items() if generation != self.generation]
        for start in range(0, len(old), batch):
            for entry in old[start : start + batch]:
                del self.known[entry]
            yield len(old[start : start + batch])


class Agent:
    """What the agent of a node publishes: its set and the publisher of it."""

    def __init__(self, epoch: str = "epoch-0") -> None:
        self.records: dict[Record, None] = {}
        self.acknowledged: list[Acknowledged] = []
        self.publisher = Publisher(
            NAMES,
            epoch,
            self.records.keys,
            self.acknowledged.append,
            log_deltas=3,
            log_records=16,
            chunk_records=2,
        )

    def change(self, added: Sequence[Record] = (), removed: Sequence[Record] = (), now: float = 0.0) -> None:
        added = [entry for entry in added if entry not in self.records]
        removed = [entry for entry in removed if entry in self.records and entry not in added]
        self.records.update(dict.fromkeys(added))
        for entry in removed:
            del self.records[entry]
        self.publisher.publish(added, removed, now)


class Wire:
    """One worker, connected or not to an agent. Octets on the way are in `down` and `up`."""

    def __init__(self, name: str = "dns-0") -> None:
        self.sink = SetSink()
        self.subscriber = Subscriber(NAMES, self.sink, name, 42)
        self.subscription: Subscription[Record] | None = None
        self.agent: Agent | None = None
        self.down = bytearray()
        self.up = bytearray()

    def connect(self, agent: Agent) -> None:
        while self.subscriber.step():
            pass
        self.agent = agent
        self.subscription = agent.publisher.subscribe(lambda: None)
        self.up += self.subscriber.connected()

    def cut(self) -> None:
        if self.agent is not None and self.subscription is not None:
            self.agent.publisher.unsubscribe(self.subscription)
            self.subscriber.disconnected()
        self.agent = self.subscription = None
        self.down.clear()
        self.up.clear()

    def pull(self, octets: int = 1) -> bool:
        """One frame or so from the agent onto the wire; returns whether there was one."""
        assert self.subscription is not None
        pulled = self.subscription.pull(octets)
        self.down += pulled
        return bool(pulled)

    def deliver(self, octets: int) -> None:
        self.subscriber.receive(bytes(self.down[:octets]))
        del self.down[:octets]

    def answer(self, now: float = 0.0) -> None:
        assert self.subscription is not None
        self.up += self.subscriber.outgoing()
        self.subscription.receive(bytes(self.up), now)
        self.up.clear()

    def exchange(self, rounds: int) -> None:
        """So many frames from the agent, each taken in and answered."""
        for _ in range(rounds):
            self.answer()
            self.pull()
            self.deliver(len(self.down))
            self.subscriber.step()

    def settle(self, now: float = 0.0) -> None:
        """Run until nobody has anything to say."""
        busy = True
        while busy:
            self.answer(now)
            busy = self.pull(1 << 20)
            self.deliver(len(self.down))
            while self.subscriber.step():
                busy = True

    def feed(self, octets: bytes) -> FeedError | None:
        """Octets straight into the subscriber; returns what it thinks of them."""
        self.subscriber.receive(octets)
        try:
            while self.subscriber.step():
                pass
        except FeedError as exc:
            return exc
        return None

    def is_in(self, phase: Phase) -> bool:
        return self.subscriber.state.phase is phase
