# SPDX-License-Identifier: Apache-2.0
"""The data plane in nf_tables: see `svcproxy.dataplane.contract.Dataplane`.

Small deltas are carried out where they arrive; what is larger, and whatever reads the tables, in a thread of the
plane's own. What surplus slots a change leaves goes a millisecond later, while the caller goes on.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self, TypeVar

from svcproxy.dataplane.contract import APPLIED, Outcome, Refused
from svcproxy.dataplane.nftables import sticky
from svcproxy.dataplane.nftables.adoption import adopt
from svcproxy.dataplane.nftables.answers import Content, Elements, ObjectState, TableState
from svcproxy.dataplane.nftables.changes import SHRINK_DELAY, Changes, Totals
from svcproxy.dataplane.nftables.counts import COUNTED, Counts
from svcproxy.dataplane.nftables.inspection import Seen, inspect
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.operations import AddElement, Operation, frontends_of
from svcproxy.dataplane.nftables.presence import OWNED, establish, read, remove_chains
from svcproxy.dataplane.nftables.render import Rendered, Renderer
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Kernel, Watch
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import FrontendKey, Scope
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, Protocol

log = logging.getLogger(__name__)

T = TypeVar("T")

INLINE_CHANGES = 200
"""Frontends and backends in a delta from which on it goes to the thread: about 5 ms of the loop's time."""
SURPLUS_DELAY = 0.1
"""Seconds that surplus slots wait for a change to go with."""
STICKY_INTERVAL = 1.0
"""Shortest time in seconds between two looks at which clients remember backends that are gone."""
LENT = "a successor takes the tables over"
CLOSED = "the data plane is closed"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the plane stands on: what the kernel can do, and what there is besides frontends."""

    families: tuple[Family, ...] = tuple(Family)
    """Those that the kernel has nf_tables for."""
    table_flags: TableFlag = OWNED
    """What new tables get; NONE where the kernel has no owner that persists."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    hairpin_cidrs: tuple[str, ...] = ()
    """Where pods of this node have addresses; empty: anywhere."""


class NftablesDataplane:
    """Made in the network namespace that it programs; `async with`, or `close` in the end."""

    name = "nftables"

    def __init__(self, ground: Ground, kernel: Callable[[], Kernel] = Kernel) -> None:
        """Open the sockets; nothing is changed before the first `resync`. Raises OSError."""
        self._ground = ground
        self._open_kernel = kernel
        with ExitStack() as opened:
            self._kernel = opened.enter_context(kernel())
            self._reader = opened.enter_context(Kernel())
            self._watch = Watch(self._kernel.port)
            opened.pop_all()
        self._watching = False
        self._lent = False
        self._closed = False
        self._renderer = Renderer()
        self._counts = Counts()
        self.totals = Totals()
        self._changes = self._make_changes()
        self._unsure = "nothing has been read yet"
        """Why what is in force is not known; empty if it is, but for `_rumour`."""
        self._rumour = ""
        """The same by what was heard of others, which is nothing once the tables are owned."""
        self._owned = False
        self._shrink: tuple[Operation, ...] = ()
        self._shrink_at = 0.0
        self._surplus = asyncio.Event()
        self._stale = False
        """Whether clients may remember backends that are gone."""
        self._foreign = False
        """Whether others changed the tables since they were read."""
        self._damaged = asyncio.Event()
        self._read_before = False
        self._lock = asyncio.Lock()
        """Held by whoever uses `_kernel`."""
        self._reading = asyncio.Lock()
        """Held by whoever uses `_reader`."""
        self._thread = ThreadPoolExecutor(1, "nftables")
        self.foreign_changes = 0
        """Objects and lists of elements of the tables that others changed."""
        self.drifted = 0
        """Operations it took to undo such changes."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- contract

    async def apply(self, delta: FrontendDelta) -> Mapping[FrontendKey, Outcome]:
        """Take a delta in; returns when the kernel has acknowledged that it is in force."""
        async with self._working():
            surplus = await self._due()
            self._heard()
            if self._doubts:
                raise DataplaneLost(self._doubts)
            rendered = await self._carry_out(self._size(delta) + len(surplus), lambda: self._apply(delta, surplus))
            if self._changes.unsettled:
                await self._in_thread(self._conclude)
            if delta.node_port_addresses is not None:  # rare, and an address that was left shall be left on return
                await asyncio.sleep(SHRINK_DELAY)
                await self._finish()
            if self._shrink:
                self._surplus.set()
            self._counts.forget(key for key in delta.removed if key not in self._renderer.table.frontends)
        return {key: self._outcome(key) for key in rendered.affected}

    async def resync(self, desired: FrontendTable) -> FrontendDelta:
        """Bring the kernel to `desired`.

        Without reason to doubt what the kernel has, nothing is read: nobody else can have changed tables with an owner,
        and changes of others' are heard of. With it, everything is read and compared.
        """
        async with self._working():
            if self._lent or self._closed:
                raise DataplaneLost(CLOSED if self._closed else LENT)
            self._reopen()
            with suppress(DataplaneLost):  # then it is read and compared
                await self._finish()
            self._heard()
            self._attend(True)  # whatever others change from here on is heard of
            repairs = await self._in_thread(lambda: self._resync(desired))
            self._attend(not self._owned)
            if self._owned:
                self._rumour = ""
        return repairs

    @property
    def refused(self) -> Mapping[FrontendKey, str]:
        """Frontends of the table not in force, with the kernel's reason."""
        frontends = self._renderer.table.frontends
        refused = {key: reason for key, reason in self._changes.refused.items() if key in frontends}
        if len(self._ground.families) < len(Family):
            refused |= {key: reason for key in frontends if (reason := self._impossible(key)) is not None}
        return refused

    async def drain(self, timeout: float) -> None:
        """Nothing to wait for: connections are the kernel's."""

    async def close(self) -> None:
        """Close the sockets. The tables stay, and with them all connections, old and new."""
        async with self._lock, self._reading:
            self._let_go()
            self._closed = True
            self._unsure = CLOSED
            self._watch.close()
            self._reader.close()
            self._thread.shutdown()

    # --- beyond the contract

    async def run(self) -> None:
        """Do what can wait, until cancelled: take surplus slots away, and clients' memories of what is gone.

        Without it the slots go with the next change.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._finish_in_time(), name="nftables surplus")
            group.create_task(self._forget(), name="nftables affinity")

    @property
    def compromised(self) -> Mapping[FrontendKey, str]:
        """Frontends in force with another affinity than asked for, and why."""
        return self._renderer.compromised

    @property
    def owned(self) -> bool:
        """Whether nobody else can change the tables."""
        return self._owned

    async def damaged(self) -> str:
        """Wait until what is in force is not known any more; returns why. `resync` makes it known."""
        await self._damaged.wait()
        self._damaged.clear()
        return self._doubts or "repaired meanwhile"

    async def inspect(self, ip: str, protocol: Protocol, port: int, source: str | None, *, near: bool) -> Seen:
        """What the kernel would do with a new connection: see `inspection.inspect`."""
        return await self._look(partial(inspect, self._reader, ip, protocol, port, source, near=near))

    def lend(self) -> None:
        """Let a successor have the tables, which stay in force; nothing is changed until `take_back`.

        Without it no other process could claim them while this one lives.
        """
        self._lent = True
        if not self._lock.locked():
            self._let_go()

    def take_back(self) -> None:
        """The successor does without: `resync` claims the tables again."""
        if self._lent:
            self._lent = False
            self._damaged.set()

    def set_ground(self, surroundings: Surroundings, hairpin_cidrs: tuple[str, ...]) -> bool:
        """Have other rules from the next `resync` on, which reads and compares everything; False if nothing changes."""
        ground = replace(self._ground, surroundings=surroundings, hairpin_cidrs=hairpin_cidrs)
        if ground != self._ground:
            self._ground = ground
            self._doubt("node or cluster are not what the rules say")
            return True
        return False

    async def connections(self) -> Mapping[FrontendKey, int]:
        """New connections of each frontend since it is in the tables. Reads them: some 10 µs a frontend."""
        return await self._look(partial(self._counts.total, self._read_counters, self._renderer.table.frontends))

    # --- work

    def _make_changes(self) -> Changes:
        return Changes(self._kernel, self._ground.families, self._elements_of, self._counts.add, self.totals)

    def _elements_of(self, key: FrontendKey) -> Iterable[AddElement]:
        return self._renderer.elements_of(key)

    def _apply(self, delta: FrontendDelta, surplus: Sequence[Operation] = ()) -> Rendered:
        rendered = self._renderer.render(delta)
        phases = rendered.phases
        self._changes.advance(phases, surplus)
        self._shrink, self._shrink_at = phases.shrink, time.monotonic() + SHRINK_DELAY
        self._stale |= bool(rendered.stale_ids)
        return rendered

    def _conclude(self) -> None:
        """Take surplus slots away, when their time has come, and settle what was refused."""
        time.sleep(max(0.0, self._shrink_at - time.monotonic()))
        operations, self._shrink = self._shrink, ()
        self._changes.run(operations)
        self._changes.settle()

    def _resync(self, desired: FrontendTable) -> FrontendDelta:
        if self._doubts:
            return self._read_and_compare(desired)
        was, refused = self._renderer.table.copy(), set(self._changes.refused)
        delta = diff(was, desired)
        self._apply(delta)
        self._conclude()
        self._changes.retry()
        self._counts.forget(delta.removed)
        return repairs(was, desired, refused - self._changes.refused.keys(), self.refused)

    def _read_and_compare(self, desired: FrontendTable) -> FrontendDelta:
        self._unsure = self._rumour = ""  # what others do from here on, and another ground, make it so again
        ground, first = self._ground, not self._read_before
        foreign, self._foreign = self._foreign, False
        established = establish(self._kernel, ground.families, ground.table_flags, ground.surroundings)
        self._owned = established.owned
        held = read(self._kernel, ground.families)
        was = desired if first else self._renderer.table
        self._renderer, phases = adopt(desired, held, established.chains, ground.surroundings, ground.hairpin_cidrs)
        self._shrink = ()
        self._changes.forget()
        self._changes.carry_out(phases)
        self._changes.settle()
        remove_chains(self._kernel, established.foreign)
        found = [each for phase in phases.in_order() for each in phase]
        self._read_before = True
        self._stale = True
        self._counts.start_over(desired.frontends.keys())
        if foreign and not first:
            self.drifted += len(found)
        return repairs(was, desired, frontends_of(found), self.refused)

    def _outcome(self, key: FrontendKey) -> Outcome:
        reason = self._changes.refused.get(key) or self._impossible(key)
        return APPLIED if reason is None else Refused(reason)

    def _impossible(self, key: FrontendKey) -> str | None:
        """Why a frontend cannot be served whatever the kernel says; None if it can, or is not asked for."""
        if key.family in self._ground.families or key not in self._renderer.table.frontends:
            return None
        return f"the kernel has no nf_tables for {key.family.label}"

    def _size(self, delta: FrontendDelta) -> int:
        """How much there may be to do: backends that change, and all that belongs to frontends that do."""
        frontends, slots = self._renderer.table.frontends, self._renderer.table.backends
        keys = (*(each.key for each in delta.frontends), *delta.removed)
        named = [*delta.frontends, *(frontends[key] for key in keys if key in frontends)]
        ranges = sum(1 + len(each.source_ranges or ()) for each in named)
        backends = sum(len(slots.get(each.backend_set(scope), ())) for each in named for scope in Scope)
        return ranges + backends + sum(len(change.added) + len(change.removed) for change in delta.backends)

    async def _due(self) -> Sequence[Operation]:
        """What is surplus, when its time has come. Holds the lock."""
        await self._ripe()
        surplus, self._shrink = self._shrink, ()
        return () if self._doubts else surplus

    async def _finish(self) -> None:
        """Take surplus slots away, when their time has come. Holds the lock."""
        await self._ripe()
        if self._doubts:
            self._shrink = ()
        elif self._shrink:
            await self._carry_out(len(self._shrink), self._conclude)

    async def _ripe(self) -> None:
        """Return when what is surplus may go."""
        if self._shrink and (early := self._shrink_at - time.monotonic()) > 0:
            await asyncio.sleep(early)

    async def _finish_in_time(self) -> None:
        while True:
            await self._surplus.wait()
            self._surplus.clear()
            await asyncio.sleep(SURPLUS_DELAY)  # the next change takes it along
            async with self._working():
                with suppress(DataplaneLost):  # noted: the next `apply` knows
                    await self._finish()

    # --- clients' memories

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(STICKY_INTERVAL)
            if self._doubts or not self._stale:
                continue
            self._stale = False
            try:
                await self._forget_stale()
            except DataplaneLost as exc:
                self._stale = True
                log.warning("clients remember backends that are gone", extra={"cause": exc.cause})

    async def _forget_stale(self) -> None:
        families = self._ground.families
        memories = await self._look(partial(sticky.read, self._reader, families))
        async with self._working():
            if self._doubts:
                self._stale = True
                return
            stale = sticky.stale(memories, {family: {*self._renderer.marks(family)} for family in families})
            await self._in_thread(partial(sticky.delete, self._kernel, stale))

    # --- others

    def _attend(self, attention: bool) -> None:
        """Hear of changes by others, or do not."""
        if attention is self._watching:
            return
        self._watching = attention
        self._watch.listen(attention)
        loop = asyncio.get_running_loop()
        if attention:
            loop.add_reader(self._watch.fileno(), self._heard)
        else:
            loop.remove_reader(self._watch.fileno())

    def _heard(self) -> None:
        if not self._watching:
            return
        try:
            changed = sum(_concerns(answer.content) for answer in self._watch.changes())
        except DataplaneLost as exc:
            changed = 0
            if not self._owned:
                self._hear(exc.cause)
        if changed and not self._owned:  # an owned table was changed before it was claimed, and read after that
            self.foreign_changes += changed
            self._foreign = True
            self._hear("somebody else changed the tables")

    # --- who has the tables

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Use the kernel alone; then let go of it, if it was lent meanwhile."""
        async with self._lock:
            try:
                yield
            finally:
                if self._lent:
                    self._let_go()

    def _let_go(self) -> None:
        if self._kernel.closed:
            return
        if self._shrink and not self._unsure:
            with suppress(DataplaneLost):
                self._conclude()
        self._shrink = ()
        self._unsure = LENT
        self._attend(False)
        self._kernel.close()

    def _reopen(self) -> None:
        if not self._kernel.closed:
            return
        try:
            with ExitStack() as opened:
                kernel = opened.enter_context(self._open_kernel())
                watch = Watch(kernel.port)
                opened.pop_all()
        except OSError as exc:
            raise DataplaneLost(f"netlink: {exc.strerror}") from exc
        self._watch.close()
        self._kernel, self._watch = kernel, watch
        self._changes = self._make_changes()

    # --- knowing

    @property
    def _doubts(self) -> str:
        return self._unsure or self._rumour

    def _hear(self, reason: str) -> None:
        self._rumour = self._rumour or reason
        self._damaged.set()

    def _doubt(self, reason: str) -> None:
        self._unsure = self._unsure or reason
        self._damaged.set()

    @contextmanager
    def _sure(self) -> Iterator[None]:
        """What ends early leaves in doubt what is in force."""
        try:
            yield
        except BaseException as exc:
            self._doubt(exc.cause if isinstance(exc, DataplaneLost) else f"interrupted: {exc!r}")
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The work's result. Cancelled, it waits for the work all the same: the kernel has one user at a time."""
        with self._sure():
            return await _whole(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def _look(self, work: Callable[[], T]) -> T:
        """What it reads, beside whatever is being changed."""
        async with self._reading:
            return await _whole(asyncio.get_running_loop().run_in_executor(None, work))

    async def _carry_out(self, size: int, work: Callable[[], T]) -> T:
        """The work's result: done here if it is small, else in the thread."""
        if size > INLINE_CHANGES:
            return await self._in_thread(work)
        with self._sure():
            return work()

    def _read_counters(self) -> list[Elements]:
        read_sets = []
        for family in self._ground.families:
            for name in COUNTED:
                stored = self._reader.elements(TABLES[family], name.value, complete=False)
                if stored is not None:
                    read_sets.append(Elements(False, TABLES[family], name.value, stored))
        return read_sets


def repairs(
    before: FrontendTable, desired: FrontendTable, touched: Collection[FrontendKey], refused: Collection[FrontendKey]
) -> FrontendDelta:
    """What changed in force: the difference of two tables, and frontends that the kernel did not have right.

    Frontends that are refused are not repaired.
    """
    changed = diff(before, desired) if before is not desired else FrontendDelta()
    came = {frontend.key for frontend in changed.frontends}.union(touched).difference(refused)
    went = set(changed.removed).union(touched).difference(refused)
    whole = [
        desired.frontends[key].backend_set(scope) for key in touched if key in desired.frontends for scope in Scope
    ]
    backends = {change.key: change for change in changed.backends}
    backends |= {key: BackendSetDelta(key, tuple(desired.backends[key])) for key in whole if key in desired.backends}
    return FrontendDelta(
        frontends=tuple(desired.frontends[key] for key in came if key in desired.frontends),
        removed=tuple(key for key in went if key not in desired.frontends),
        backends=tuple(backends.values()),
        node_port_addresses=changed.node_port_addresses,
        health_checks=changed.health_checks,
        health_checks_removed=changed.health_checks_removed,
    )


def _concerns(content: Content) -> bool:
    return isinstance(content, TableState | ObjectState | Elements) and content.table in TABLES.values()


async def _whole(running: asyncio.Future[T]) -> T:
    """What a thread's work results in. Cancelled, however often, it is waited for all the same."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((running,))
        running.exception()  # heard of, if there is one
        raise
