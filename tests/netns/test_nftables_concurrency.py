# SPDX-License-Identifier: Apache-2.0
"""Several things at once: cancellations wherever they come, closing, counting and cleaning up while changes go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.nftables import messages, tables
from svcproxy.dataplane.nftables.elements import encode
from svcproxy.dataplane.nftables.messages import Element, Request, Table, TableFlag
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.plane import INLINE_CHANGES, Ground, NftablesDataplane
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Kernel, Rejected
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import FrontendKey
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import PATIENCE
from tests.netns.routed import FOUR, HOSTS, Routed, change, frontend, key_of, table_of

pytestmark = pytest.mark.netns

MANY = [frontend(number) for number in range(INLINE_CHANGES)]
"""With their backends too many to be changed without the thread."""
ONE = MANY[0]
NAMES = HOSTS[Family.IPV4]


@pytest.fixture
async def plane(routed: Routed) -> AsyncIterator[NftablesDataplane]:
    async with routed.plane() as opened:
        await opened.resync(FrontendTable())
        yield opened


@asynccontextmanager
async def running(plane: NftablesDataplane) -> AsyncIterator[None]:
    """What can wait is done meanwhile."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(plane.run(), name="upkeep")
        try:
            yield
        finally:
            task.cancel()


class Interrupting(Kernel):
    """Has something done on the loop before a batch is carried out, and tells whether it is at work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.batches = 0
        self.at = -1
        self.interrupt: Callable[[], object] = lambda: None
        self.busy = False

    def commit(self, requests: Sequence[Request]) -> Committed | Rejected:
        self.busy = True
        try:
            if self.batches == self.at:
                done = threading.Event()
                self._loop.call_soon_threadsafe(self.interrupt)
                self._loop.call_soon_threadsafe(lambda: self._loop.call_soon(done.set))
                done.wait()
            return super().commit(requests)
        finally:
            self.batches += 1
            self.busy = False


@pytest.mark.parametrize("turns", range(8))
async def test_an_apply_cancelled_after_so_many_turns_is_completed_by_resync(
    routed: Routed, plane: NftablesDataplane, turns: int
) -> None:
    table = table_of(*MANY)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(plane.apply(diff(FrontendTable(), table)), name="apply")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    await plane.resync(table)
    async with routed.serving():
        assert await routed.serves(key_of(ONE), *NAMES)
    assert not await plane.resync(table)


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("resync", [pytest.param(False, id="apply"), pytest.param(True, id="resync")])
@pytest.mark.parametrize("batch", range(3))
async def test_work_in_the_thread_is_never_left_alone(routed: Routed, batch: int, resync: bool, times: int) -> None:
    """However often it is cancelled, and in which batch."""
    loop = asyncio.get_running_loop()
    with routed.node.entered():
        kernel = Interrupting(loop)
    table = table_of(*MANY)
    async with routed.plane(kernel=lambda: kernel) as plane:
        await plane.resync(FrontendTable())
        table.apply(change(ONE, removed=FOUR[:1]))
        async with asyncio.TaskGroup() as group:
            work = plane.resync(table) if resync else plane.apply(diff(FrontendTable(), table))
            task: asyncio.Task[object] = group.create_task(work, name="work")
            # Once for each turn: every one finds it waiting again.
            kernel.interrupt = lambda: cancel(task, times)
            kernel.at = kernel.batches + batch
        assert task.cancelled() or kernel.batches <= kernel.at
        assert not kernel.busy
        await plane.resync(table)
        async with routed.serving():
            assert await routed.serves(key_of(ONE), *NAMES[1:])
        assert not await plane.resync(table)


def cancel(task: asyncio.Task[object], times: int) -> None:
    task.cancel()
    if times > 1:
        asyncio.get_running_loop().call_soon(cancel, task, times - 1)


async def test_closing_waits_for_what_is_at_work_and_refuses_the_rest(plane: NftablesDataplane) -> None:
    table = table_of(*MANY)
    found = await asyncio.gather(
        plane.apply(diff(FrontendTable(), table)),
        plane.close(),
        plane.apply(change(ONE, removed=FOUR)),
        plane.resync(FrontendTable()),
        plane.connections(),
        plane.close(),
        return_exceptions=True,
    )
    assert found[0] == {each.key: APPLIED for each in MANY}
    assert found[1] is found[5] is None
    assert [type(each) for each in found[2:4]] == [DataplaneLost] * 2
    assert isinstance(found[4], dict | DataplaneLost)
    for late in (plane.apply(FrontendDelta()), plane.resync(table), plane.connections()):
        with pytest.raises(DataplaneLost):
            await late


async def test_what_was_closed_while_it_worked_stays_in_force(routed: Routed, plane: NftablesDataplane) -> None:
    await plane.apply(diff(FrontendTable(), table_of(*MANY)))
    async with asyncio.TaskGroup() as group:
        group.create_task(plane.apply(change(ONE, removed=FOUR[:1])), name="apply")
        group.create_task(plane.close(), name="close")
    async with routed.serving():
        assert await routed.serves(key_of(ONE), *NAMES[1:])
    assert routed.nft("list map ip svcproxy ep").count("10.96.0.0 .") == 2


async def test_no_number_of_connections_falls_while_verdicts_flip(routed: Routed, plane: NftablesDataplane) -> None:
    """And in the end, each connection was counted once."""
    table = table_of(*MANY[:3])
    await plane.resync(table)
    connects = 150
    over = asyncio.Event()

    async def count() -> None:
        before: dict[FrontendKey, int] = {}
        while not over.is_set():
            now = await plane.connections()
            assert all(now.get(key, 0) >= number for key, number in before.items())
            before = dict(now)

    async def flip() -> None:
        while not over.is_set():
            await plane.apply(change(ONE, removed=FOUR[:2]))
            await plane.apply(change(ONE, added=FOUR[:1]))
            await plane.apply(change(ONE, added=FOUR[1:2]))

    async with routed.serving(), running(plane), asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(count(), name=f"counting {number}")
        flipping = group.create_task(flip(), name="flipping")
        for _ in range(connects):
            assert await routed.ask(key_of(ONE)) in NAMES
        over.set()
        await flipping
        assert (await plane.connections())[ONE.key] == connects
        table = table_of(*MANY[:3])
        await plane.resync(table)
        assert (await plane.connections())[ONE.key] == connects


async def test_a_frontend_that_comes_back_counts_from_nothing(routed: Routed, plane: NftablesDataplane) -> None:
    table = table_of(ONE)
    async with routed.serving():
        await plane.resync(table)
        await routed.ask(key_of(ONE))
        await plane.resync(FrontendTable())
        assert await plane.connections() == {}
        await plane.resync(table)
        assert await plane.connections() == {ONE.key: 0}


STICKY = msgspec.structs.replace(ONE, affinity_timeout=60)


def remembered(routed: Routed) -> int:
    return routed.nft("list map ip svcproxy aff").count("expires")


async def test_clients_stick_again_when_their_backend_is_gone(routed: Routed, plane: NftablesDataplane) -> None:
    """While changes and counting go on."""
    await plane.resync(table_of(STICKY, *MANY[1:3]))
    backend = {each.ip: each for each in FOUR}
    async with routed.serving(), running(plane):
        pinned = await routed.ask(key_of(STICKY))
        await plane.apply(change(STICKY, removed=[backend[pinned]]))
        async with asyncio.timeout(PATIENCE):
            while remembered(routed):
                await plane.apply(change(MANY[1], removed=FOUR[:1]))
                await plane.apply(change(MANY[1], added=FOUR[:1]))
                await plane.connections()
        assert len(await routed.met(key_of(STICKY), NAMES)) == 1


async def test_clients_stick_again_when_their_backend_went_while_nobody_was_there(routed: Routed) -> None:
    backend = {each.ip: each for each in FOUR}
    table = table_of(STICKY)
    async with routed.serving():
        async with routed.plane(Ground()) as plane:
            await plane.resync(table)
            pinned = await routed.ask(key_of(STICKY))
        table.apply(change(STICKY, removed=[backend[pinned]]))
        async with routed.plane(Ground()) as plane, running(plane):
            await plane.resync(table)
            async with asyncio.timeout(PATIENCE):
                while remembered(routed):
                    await asyncio.to_thread(threading.Event().wait, 0.05)
            assert len(await routed.met(key_of(STICKY), NAMES)) == 1


def test_a_list_is_complete_while_the_kernel_makes_room(routed: Routed) -> None:
    """It does so after a batch is acknowledged; without care, one list of twenty lacks a fifth of all elements."""
    table = TABLES[Family.IPV4]
    with routed.node.entered(), Kernel() as kernel, Kernel() as reader:
        for attempt in range(8):
            made = [*tables.create(Family.IPV4, TableFlag.NONE)]
            assert kernel.commit(made) == Committed()
            held = 0
            for step in (700, 1400, 2100, 2800):
                added = [slot(number) for number in range(held, held + step)]
                held += step
                assert kernel.commit([*messages.new_elements(table, SetName.EP, added)]) == Committed()
                stored = reader.elements(table, SetName.EP)
                assert stored is not None
                assert len({each.element.key for each in stored}) == held, attempt
            assert kernel.commit([messages.delete_table(table)]) == Committed()


def slot(number: int) -> Element:
    (element,) = encode(SetName.EP, (f"10.0.{number >> 8}.{number & 255}", Protocol.TCP, 80, 0), ("10.1.0.1", 80))
    return element


async def test_lent_while_at_work_it_is_let_go_when_that_is_done(routed: Routed) -> None:
    table = table_of(*MANY)
    async with routed.plane(Ground()) as plane, routed.plane(Ground()) as successor:
        await plane.resync(FrontendTable())
        async with asyncio.TaskGroup() as group:
            applied = group.create_task(plane.apply(diff(FrontendTable(), table)), name="apply")
            await asyncio.sleep(0)
            plane.lend()
            with suppress(DataplaneLost):
                await successor.resync(table)
        assert set(applied.result().values()) == {APPLIED}
        await successor.resync(table)
        assert successor.owned
        with pytest.raises(DataplaneLost):
            await plane.apply(FrontendDelta())
        await successor.close()
        plane.take_back()
        assert not await plane.resync(table)
        assert plane.totals.rejections == successor.totals.operations == 0
        assert plane.owned


async def test_a_storm_of_changes_by_others_is_nothing_to_owned_tables(routed: Routed) -> None:
    """It comes while everything is read, and is more than can be heard of."""
    with routed.node.entered():
        kernel, other = Interrupting(asyncio.get_running_loop()), Kernel()
    table = table_of(*MANY)
    theirs = Table(Family.IPV4, "theirs")
    storm = [messages.new_table(theirs), *(messages.new_chain(theirs, f"c{number}") for number in range(60_000))]
    with other:
        async with routed.plane(Ground(), lambda: kernel) as plane:
            kernel.at, kernel.interrupt = 1, lambda: other.load(storm)
            await plane.resync(table)
            assert len(other.chains(theirs)) == len(storm) - 1
            assert await plane.apply(change(ONE, removed=FOUR[:1])) == {ONE.key: APPLIED}
            assert plane.foreign_changes == 0
