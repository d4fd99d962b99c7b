# SPDX-License-Identifier: Apache-2.0
"""Owned tables, restarts, and tables of another making. Cases T39, T40, T42, 45."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from signal import SIGKILL

import pytest

from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.plane import Ground
from svcproxy.dataplane.nftables.presence import OWNED, TableTaken
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.table import FrontendDelta, FrontendTable
from svcproxy.model.meta import Family
from tests.netns.routed import FOUR, HOSTS, Routed, change, frontend, key_of, table_of

pytestmark = pytest.mark.netns

OWNING = Ground()
SOME = [frontend(number) for number in range(1, 30)]
ONE = SOME[0]
NAMES = HOSTS[Family.IPV4]


@asynccontextmanager
async def connecting(routed: Routed) -> AsyncIterator[list[str]]:
    """Flows one after the other, all through the block, by four clients. Gives what they met."""
    met: list[str] = []
    over = asyncio.Event()

    async def keep_asking() -> None:
        while not over.is_set():
            met.append(await routed.ask(key_of(ONE)))

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(keep_asking(), name=f"client {number}")
        try:
            yield met
        finally:
            over.set()


HOLDER = """
import asyncio, sys
from svcproxy.dataplane.nftables.plane import NftablesDataplane
from tests.netns import test_nftables_ownership as t

async def hold():
    plane = NftablesDataplane(t.OWNING)
    await plane.resync(t.table_of(*t.SOME))
    print(plane.owned, flush=True)
    await asyncio.Event().wait()

asyncio.run(hold())
"""


@pytest.fixture
def holder(routed: Routed) -> Iterator[subprocess.Popen[str]]:
    """Another process, which owns the tables with all of SOME in them."""
    with (
        routed.node.entered(),
        subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


async def test_owned_tables_are_safe_from_others(routed: Routed) -> None:
    async with routed.serving(), routed.plane(OWNING) as plane:
        await plane.resync(table_of(*SOME))
        assert plane.owned
        routed.nft("flush ruleset")
        for edit in ("flush map ip svcproxy class", "delete table ip svcproxy", "add chain ip6 svcproxy mine"):
            with pytest.raises(subprocess.CalledProcessError):
                routed.nft(edit)
        assert await routed.serves(key_of(ONE), *NAMES)
        assert await plane.apply(change(ONE, removed=FOUR[:1])) == {ONE.key: APPLIED}
        assert plane.foreign_changes == 0


async def test_a_second_data_plane_is_told_who_has_the_tables(routed: Routed, holder: subprocess.Popen[str]) -> None:
    async with routed.serving(), routed.plane(OWNING) as plane:
        with pytest.raises(TableTaken, match=rf"table IPv4 svcproxy belongs to process {holder.pid} "):
            await plane.resync(FrontendTable())
        with pytest.raises(DataplaneLost):
            await plane.apply(FrontendDelta())
        assert await routed.serves(key_of(ONE), *NAMES)
        holder.kill()
        holder.wait()
        assert not await plane.resync(table_of(*SOME))
        assert plane.owned


async def test_nothing_is_touched_if_one_table_is_taken(routed: Routed) -> None:
    with routed.node.entered(), Kernel() as other:
        assert other.commit([nft.new_table(TABLES[Family.IPV6], OWNED)]) == Committed()
        async with routed.plane(OWNING) as plane:
            with pytest.raises(TableTaken, match="IPv6"):
                await plane.resync(FrontendTable())
        assert other.tables(Family.IPV4) == ()


async def test_what_a_killed_process_left_is_adopted_as_it_is(routed: Routed, holder: subprocess.Popen[str]) -> None:
    """Flows begin all the time; nothing is deleted, nothing replaced, and none fails."""
    async with routed.serving(), connecting(routed) as met:
        before = routed.node.run("nft", "list", "ruleset")
        holder.send_signal(SIGKILL)
        holder.wait()
        async with routed.plane(OWNING) as plane:
            seen = len(met)
            assert not await plane.resync(table_of(*SOME))
            assert plane.totals.operations == 0
            assert plane.drifted == 0
            assert plane.owned
            assert await routed.serves(key_of(ONE), *NAMES)
            assert len(met) > seen
    assert set(met) == set(NAMES)
    assert before.count("elements") == routed.node.run("nft", "list", "ruleset").count("elements")


async def test_what_changed_while_nobody_was_there_costs_what_changed(
    routed: Routed, holder: subprocess.Popen[str]
) -> None:
    async with routed.serving(), connecting(routed) as met:
        holder.kill()
        holder.wait()
        table = table_of(*SOME)
        table.apply(FrontendDelta(removed=(SOME[-1].key,)))
        table.apply(change(SOME[-1], removed=FOUR))
        table.apply(change(ONE, removed=FOUR[:1]))
        async with routed.plane(OWNING) as plane:
            repairs = await plane.resync(table)
            assert repairs.removed == (SOME[-1].key,)
            assert repairs.frontends == (ONE,)
            # The chain, slot, verdict of the one; verdict, slots and address of the other, and the surplus slot.
            assert plane.totals.operations == 3 + 5 + 1
            assert await routed.serves(key_of(ONE), *NAMES[1:])
    assert set(met) <= set(NAMES)


async def test_a_successor_claims_what_was_closed(routed: Routed) -> None:
    async with routed.serving(), routed.plane(OWNING) as first:
        await first.resync(table_of(*SOME))
        async with connecting(routed) as met:
            await first.close()
            for _ in range(3):
                async with routed.plane(OWNING) as plane:
                    await plane.resync(table_of(*SOME))
                    assert plane.owned
                    await plane.apply(change(ONE, removed=FOUR[:1]))
                assert await routed.serves(key_of(ONE), *NAMES[1:])
    assert set(met) <= set(NAMES)


async def test_rules_are_rewritten_at_once(routed: Routed) -> None:
    """Flows begin all the time while the rules are written anew, again and again."""
    async with routed.serving(), routed.plane(OWNING) as plane:
        await plane.resync(table_of(*SOME))
        async with connecting(routed) as met:
            for number in range(30):
                plane.set_ground(Ground().surroundings, (f"10.244.{number}.0/24",))
                await plane.resync(table_of(*SOME))
    assert set(met) == set(NAMES)


# Tables of another making

FOREIGN = [
    pytest.param("add table ip svcproxy", id="no comment"),
    pytest.param('table ip svcproxy {{ comment "svcproxy schema 999"; }}', id="another schema"),
    pytest.param('table ip svcproxy {{ comment "svcproxy schema 1"; }}', id="nothing in it"),
    pytest.param(
        'table ip svcproxy {{ comment "svcproxy schema 1"; map class {{ type inet_service : verdict; }} }}',
        id="a map of another type",
    ),
    pytest.param(
        'table ip svcproxy {{ comment "svcproxy schema 1"; set nodeips {{ type ipv4_addr; flags interval; }} }}',
        id="a set with other flags",
    ),
    pytest.param(
        'table ip svcproxy {{ comment "svcproxy schema 1"; chain output {{ type filter hook output priority 0; }} }}',
        id="a chain of another type",
    ),
    pytest.param(
        'table ip svcproxy {{ comment "svcproxy schema 1"; chain dispatch {{ type nat hook input priority 0; }} }}',
        id="a base chain where there should be none",
    ),
    pytest.param(
        'table ip svcproxy {{ comment "svcproxy schema 1"; flags dormant; chain n3 {{ drop; }} }}', id="dormant"
    ),
    pytest.param(
        "table ip svcproxy {{ chain a {{ type nat hook prerouting priority -150; jump b; }}; chain b {{ drop; }} }}",
        id="somebody else's",
    ),
]


@pytest.mark.parametrize("flags", [pytest.param(OWNED, id="owned"), pytest.param(TableFlag.NONE, id="not owned")])
@pytest.mark.parametrize("made", FOREIGN)
async def test_a_table_made_by_hand_becomes_ours(routed: Routed, made: str, flags: TableFlag) -> None:
    routed.nft(made.format().replace("} }", "}\n}"))
    async with routed.serving(), routed.plane(Ground(table_flags=flags)) as plane:
        await plane.resync(table_of(*SOME))
        assert await routed.serves(key_of(ONE), *NAMES)
        await plane.resync(table_of(*SOME, backends=FOUR[:2]))
        assert await routed.serves(key_of(ONE), *NAMES[:2])
        assert not plane.refused
    with routed.node.entered(), Kernel() as kernel:
        (table,) = kernel.tables(Family.IPV4)
        assert table.comment == "svcproxy schema 1"
        assert TableFlag.DORMANT not in table.flags


async def test_a_table_of_another_schema_is_replaced_in_one_batch(
    routed: Routed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its owner's flags, and no packet meets half of it."""
    generations = []

    class Counting(Kernel):
        def commit(self, requests):  # type: ignore[no-untyped-def]
            generations.append([request.kind for request in requests])
            return super().commit(requests)

    async with routed.plane(OWNING) as plane:
        with monkeypatch.context() as patch:
            patch.setattr("svcproxy.dataplane.nftables.tables.COMMENT", "svcproxy schema 2")
            await plane.resync(table_of(*SOME))
    async with routed.serving(), routed.plane(OWNING, Counting) as plane:
        await plane.resync(table_of(*SOME))
        replaced = [kinds for kinds in generations if nft.Kind.DELETE_TABLE in kinds]
        assert [kinds[:2] for kinds in replaced] == [[nft.Kind.DELETE_TABLE, nft.Kind.NEW_TABLE]] * 2
        assert plane.owned
        assert await routed.serves(key_of(ONE), *NAMES)


async def test_thousands_of_chains_are_taken_over(routed: Routed) -> None:
    """Every number of backends there ever was has a chain."""
    with routed.node.entered(), Kernel() as kernel:
        async with routed.plane(Ground(table_flags=TableFlag.NONE)) as plane:
            await plane.resync(table_of(ONE))
        chains = [nft.new_chain(TABLES[Family.IPV4], f"n{size}") for size in range(1, 8000)]
        assert kernel.load(chains).in_force == len(chains)
    async with routed.serving(), routed.plane(Ground(table_flags=TableFlag.NONE)) as plane:
        assert not await plane.resync(table_of(ONE))
        assert await routed.serves(key_of(ONE), *NAMES)
