# SPDX-License-Identifier: Apache-2.0
"""The way of one change: source → store → frontends and names → data plane and feed.

`Pipeline` is the `ObjectSink` of the source. Changes are taken in by one task, a bounded number of objects per loop
turn, so that a list of ten thousand objects does not stall what else runs on the loop; a single change is taken in on
the next turn. Frontend deltas coalesce while the data plane is busy and are applied as one.

Nothing reaches the data plane before Services and EndpointSlices are complete, be it from the source or from a state
snapshot; from then on nothing is removed but by an object that really went.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from svcproxy.dataplane.contract import Dataplane, Refused
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.buffer import DeltaBuffer
from svcproxy.frontends.builder import FrontendBuilder, Update
from svcproxy.frontends.claims import Conflict
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.table import FrontendDelta
from svcproxy.kube.source import InvalidObject
from svcproxy.model import AddressType, Changes, EndpointSlice, Service, Store, Touched
from svcproxy.model.meta import Family
from svcproxy.names.builder import RecordDelta
from svcproxy.names.records import Record
from svcproxy.names.steady import SteadyNames

log = logging.getLogger(__name__)

OBJECTS_PER_TURN = 32
"""Objects taken in between two turns of the loop: about 2 ms at ten endpoints each."""
BACKLOG_MAX = 20_000
"""Objects waiting to be taken in; beyond it the source waits, for they are taken in before its call returns."""
TRIGGERS_MAX = 10_000
"""Changes whose way to the data plane is timed at once; further ones are not timed."""
REFUSED_RETRIES = (0.1, 1.0, 5.0)
"""Seconds after which refused frontends are tried again at the beginning of a turn: a dead predecessor's sockets may
not be closed yet. Then they wait for the next resync or change of the node's addresses."""
RESYNC_RETRY = 1.0
"""Seconds between attempts to find out what the data plane holds."""
FAMILIES = {AddressType.IPV4: Family.IPV4, AddressType.IPV6: Family.IPV6}
_REQUIRED: frozenset[type] = frozenset({Service, EndpointSlice})


@dataclass(frozen=True, slots=True)
class Trigger:
    """When the change happened that led to a slice."""

    family: Family
    time: str
    """RFC 3339, as the annotation has it."""


class Observer(Protocol):
    """Who is told what the pipeline does: metrics, events, status. Never blocks, never raises."""

    def derived(self, touched: Touched, delta: FrontendDelta, revision: int | None, read_at: float) -> int:
        """Changes became a frontend delta and, if they concern workers, a revision of the feed.

        `read_at`: monotonic seconds. Returns a number for the change, greater than every earlier one.
        """
        ...

    def programmed(
        self, delta: FrontendDelta, change: int, triggers: list[Trigger], seconds: float, full: bool
    ) -> None:
        """The data plane acknowledged a delta after `seconds`; it holds every change up to `change`."""

    def refused(self, key: FrontendKey, reason: str) -> None:
        """A frontend is newly refused, or for another reason than before."""

    def conflict(self, conflict: Conflict) -> None:
        """The claims on a frontend changed."""

    def invalid(self, report: InvalidObject) -> None:
        """An object was left out."""

    def synced(self, kind: type) -> None:
        """The first list of a kind has been taken in."""

    def lost(self, cause: str) -> None:
        """The data plane has to be resynced."""

    def repaired(self, delta: FrontendDelta) -> None:
        """A resync found something to repair."""


class Pipeline:
    """Follows objects and keeps a data plane and the published names in step with them."""

    def __init__(
        self,
        store: Store,
        frontends: FrontendBuilder,
        names: SteadyNames,
        publish: Callable[[Sequence[Record], Sequence[Record], float], int],
        observer: Observer,
    ) -> None:
        """`publish(added, removed, read_at)` gets every change of the names and returns its revision."""
        self.store = store
        self.frontends = frontends
        self.names = names
        self._publish = publish
        self._observer = observer
        self._backlog: deque[tuple[Changes[Any], float]] = deque()
        self._backlog_objects = 0
        self._work = asyncio.Event()
        self._synced: set[type] = set()
        self.complete = asyncio.Event()
        """Set when what is known is complete enough to be served."""
        self._pending: DeltaBuffer | None = None
        """What the data plane has not been told; None while there is no data plane to tell."""
        self._change = 0
        self._triggers: list[Trigger] = []
        self._to_program = asyncio.Event()
        self._announced_refusals: dict[FrontendKey, str] = {}
        self._addresses: frozenset[str] = frozenset()
        self._resync_wanted = False

    # --- ObjectSink

    def changed(self, changes: Changes[Any], read_at: float) -> None:
        """Queue changes for the next turns of the loop."""
        self._backlog.append((changes, read_at))
        self._backlog_objects += len(changes.applied) + len(changes.removed)
        self._work.set()
        while self._backlog_objects > BACKLOG_MAX:
            self._take_in_next()

    def synced(self, kind: type) -> None:
        """Mark the end of the first list; it is in force once what was listed before has been taken in."""
        self._backlog.append((Changes(kind), -1.0))
        self._work.set()

    def invalid(self, report: InvalidObject) -> None:
        """Pass the report on."""
        self._observer.invalid(report)

    # --- state

    def preload(self, changes: Changes[Any]) -> None:
        """Take in objects of a state snapshot, at once."""
        self._take_in(changes, time.monotonic())

    def preloaded(self) -> None:
        """The snapshot is complete: it may be served."""
        self.complete.set()

    @property
    def pending(self) -> bool:
        """Whether a change waits for the data plane."""
        return bool(self._pending)

    def node_changed(self, node: NodeView) -> None:
        """The node's addresses, zone or name changed."""
        self._updated(self.frontends.node_changed(node))
        if node.addresses != self._addresses:
            self._addresses = node.addresses
            self._want_resync()  # frontends that were refused may be possible now, and the other way round

    # --- tasks

    async def take_in(self) -> None:
        """Take queued changes in, for ever."""
        while True:
            await self._work_or_expiry()
            budget = OBJECTS_PER_TURN
            while self._backlog and budget > 0:
                budget -= self._take_in_next()
            if not self._backlog:
                self._work.clear()
            else:
                await asyncio.sleep(0)

    async def _work_or_expiry(self) -> None:
        """Wait for changes, and let go of what the names have held for long enough."""
        expiry = self.names.expiry
        if expiry is None:
            await self._work.wait()
            return
        try:
            async with asyncio.timeout(max(expiry - time.monotonic(), 0.0)):
                await self._work.wait()
        except TimeoutError:
            pass
        now = time.monotonic()
        self._publish_delta(self.names.expire(now), now)

    async def program_all(self, dataplane: Dataplane) -> None:
        """Put everything known in force. Wait for `complete` first."""
        self._pending = DeltaBuffer()
        await self._resync(dataplane, first=True)

    async def program(self, dataplane: Dataplane, resync_interval: Callable[[], float]) -> None:
        """Keep the data plane in step after `program_all`, until cancelled."""
        soon = list(REFUSED_RETRIES)
        while True:
            again = soon.pop(0) if soon and dataplane.refused else resync_interval()
            try:
                async with asyncio.timeout(again):
                    await self._to_program.wait()
            except TimeoutError:
                await self._resync(dataplane, first=False)
                continue
            if self._resync_wanted:
                self._resync_wanted = False
                await self._resync(dataplane, first=False)
            else:
                await self._program_pending(dataplane)

    def resync_soon(self, cause: str) -> None:
        """The data plane holds what it should not, or may do so."""
        log.warning("data plane is compared with what it should hold", extra={"cause": cause})
        self._want_resync()

    def _want_resync(self) -> None:
        self._resync_wanted = True
        if self._pending is not None:
            self._to_program.set()

    def stop_programming(self) -> None:
        """There is no data plane any more; changes are no longer kept for it."""
        self._pending = None

    async def _program_pending(self, dataplane: Dataplane) -> None:
        delta, change, triggers = self._take_pending()
        if not delta:
            return
        started = time.monotonic()
        try:
            outcomes = await dataplane.apply(delta)
        except DataplaneLost as exc:
            log.warning("data plane state unknown, resyncing", extra={"cause": exc.cause})
            self._observer.lost(exc.cause)
            await self._resync(dataplane, first=False)
            return
        for key, outcome in outcomes.items():
            if isinstance(outcome, Refused):
                self._announce_refusal(key, outcome.reason)
            else:
                self._announced_refusals.pop(key, None)
        self._programmed(delta, change, triggers, started, full=False)

    async def _resync(self, dataplane: Dataplane, *, first: bool) -> None:
        while True:
            delta, change, triggers = self._take_pending()
            started = time.monotonic()
            try:
                repaired = await dataplane.resync(self.frontends.table.copy())
            except DataplaneLost as exc:
                log.warning("data plane cannot be resynced", extra={"cause": exc.cause, "retry_seconds": RESYNC_RETRY})
                self._observer.lost(exc.cause)
                self._triggers = (triggers + self._triggers)[:TRIGGERS_MAX]
                await asyncio.sleep(RESYNC_RETRY)
                continue
            break
        for key in [key for key in self._announced_refusals if key not in dataplane.refused]:
            del self._announced_refusals[key]
        for key, reason in dataplane.refused.items():
            self._announce_refusal(key, reason)
        if not first and repaired:
            self._observer.repaired(repaired)
        self._programmed(delta, change, triggers, started, full=True)

    # --- steps

    def _take_in_next(self) -> int:
        """Take in the head of the backlog, at most `OBJECTS_PER_TURN` objects of it; return how many."""
        changes, read_at = self._backlog.popleft()
        if read_at < 0:
            self._mark_synced(changes.kind)
            return 0
        parts = list(_split(changes))
        for part in reversed(parts[1:]):
            self._backlog.appendleft((part, read_at))
        taken = len(parts[0].applied) + len(parts[0].removed)
        self._backlog_objects -= taken
        self._take_in(parts[0], read_at)
        return taken

    def _mark_synced(self, kind: type) -> None:
        self._synced.add(kind)
        self._observer.synced(kind)
        if self._synced >= _REQUIRED:
            self.complete.set()

    def _take_in(self, changes: Changes[Any], read_at: float) -> None:
        touched = self.store.apply(changes)
        if not touched:
            return
        if self._pending is not None:
            self._note_triggers(touched)
        update = self.frontends.update(touched)
        revision = self._publish_delta(self.names.update(touched, time.monotonic()), read_at)
        self._change = self._observer.derived(touched, update.delta, revision, read_at)
        self._updated(update)

    def _publish_delta(self, delta: RecordDelta, read_at: float) -> int | None:
        return self._publish(delta.added, delta.removed, read_at) if delta else None

    def _note_triggers(self, touched: Touched) -> None:
        for change in touched.slices:
            new = change.new
            if new is None or new.metadata.annotations is None or len(self._triggers) >= TRIGGERS_MAX:
                continue
            if (trigger := new.metadata.annotations.trigger_time) and new.address_type in FAMILIES:
                self._triggers.append(Trigger(FAMILIES[new.address_type], trigger))

    def _updated(self, update: Update) -> None:
        for conflict in update.conflicts:
            self._observer.conflict(conflict)
        if update.delta and self._pending is not None:
            self._pending.put(update.delta)
            self._to_program.set()

    def _take_pending(self) -> tuple[FrontendDelta, int, list[Trigger]]:
        assert self._pending is not None
        taken = self._pending.take(), self._change, self._triggers
        self._triggers = []
        self._to_program.clear()
        return taken

    def _programmed(
        self, delta: FrontendDelta, change: int, triggers: list[Trigger], started: float, *, full: bool
    ) -> None:
        self._observer.programmed(delta, change, triggers, time.monotonic() - started, full)

    def _announce_refusal(self, key: FrontendKey, reason: str) -> None:
        if self._announced_refusals.get(key) != reason:
            self._announced_refusals[key] = reason
            self._observer.refused(key, reason)


def _split(changes: Changes[Any]) -> Iterator[Changes[Any]]:
    """The same changes in parts of at most `OBJECTS_PER_TURN` objects; at least one part."""
    if len(changes.applied) + len(changes.removed) <= OBJECTS_PER_TURN:
        yield changes
        return
    for start in range(0, len(changes.applied), OBJECTS_PER_TURN):
        yield Changes(changes.kind, applied=changes.applied[start : start + OBJECTS_PER_TURN])
    for start in range(0, len(changes.removed), OBJECTS_PER_TURN):
        yield Changes(changes.kind, removed=changes.removed[start : start + OBJECTS_PER_TURN])
