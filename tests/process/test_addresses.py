# SPDX-License-Identifier: Apache-2.0
"""The node's addresses: the table as pure state, and the follower on a real kernel."""

import asyncio
import ctypes
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Set
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.process.addresses import AddressFollower, AddressTable
from svcproxy.process.rtnetlink import AddressChange, DumpEnd, Failure, Message

CLONE_NEWNET = 0x40000000
ROOM = int(Path("/proc/sys/net/core/rmem_default").read_text())
"""Octets that a socket holds; the kernel counts several hundred for each message."""


def added(address: str, interface: int = 1, *, usable: bool = True) -> AddressChange:
    return AddressChange(True, interface, 24, address, usable)


def removed(address: str, interface: int = 1) -> AddressChange:
    return AddressChange(False, interface, 24, address, True)


END = DumpEnd(consistent=True)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([added("10.0.0.1"), added("10.0.0.2"), END], {"10.0.0.1", "10.0.0.2"}, id="a list"),
        pytest.param([added("a"), END, added("b"), removed("a")], {"b"}, id="changes after the list"),
        pytest.param([added("a"), removed("a"), END], set(), id="a removal in the middle of the list"),
        pytest.param([added("a"), added("b", usable=False), END], {"a"}, id="tentative"),
        pytest.param([added("b", usable=False), END, added("b")], {"b"}, id="passed the duplicate detection"),
        pytest.param([added("b"), END, added("b", usable=False)], set(), id="turned out a duplicate"),
        pytest.param([added("a", 1), added("a", 2), END, removed("a", 1)], {"a"}, id="on two interfaces"),
        pytest.param([END, removed("a")], set(), id="removal of what is not known"),
    ],
)
def test_table(messages: list[Message], expected: Set[str]) -> None:
    table = AddressTable()
    table.begin()
    for message in messages:
        table.take(message)
    assert (table.addresses, table.complete, table.listing) == (expected, True, False)


def test_a_new_list_drops_what_went_unseen_and_not_before_it_is_complete() -> None:
    table = AddressTable()
    seen = []
    table.begin()
    for message in (added("a"), added("b"), END):
        table.take(message)
    table.begin()
    for message in (added("b"), added("c"), END):
        table.take(message)
        seen.append(table.addresses)
    assert seen == [{"a", "b"}, {"a", "b", "c"}, {"b", "c"}]


@pytest.mark.parametrize(
    ("message", "number"),
    [
        pytest.param(DumpEnd(consistent=False), None, id="interrupted"),
        pytest.param(Failure(errno.EBUSY), errno.EBUSY, id="refused"),
    ],
)
def test_a_list_that_failed_leaves_the_table_as_it_was(message: Message, number: int | None) -> None:
    table = AddressTable()
    table.begin()
    table.take(added("a"))
    table.take(END)
    table.begin()
    with pytest.raises(OSError) as failure:  # noqa: PT011  # told apart by errno
        table.take(message)
    assert failure.value.errno == number
    assert table.addresses == {"a"}


@given(st.data())
def test_a_list_taken_among_changes_ends_as_the_kernel_is(data: st.DataObject) -> None:
    """The kernel writes each entry of the list as it is at that moment, into the queue that carries the changes."""
    names = [f"10.0.0.{number}" for number in range(5)]
    kernel = data.draw(st.sets(st.sampled_from(names)))
    table = AddressTable()
    table.begin()
    for listed in names:
        for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
            table.take(removed(name) if name in kernel else added(name))
            kernel ^= {name}
        if listed in kernel:
            table.take(added(listed))
    table.take(END)
    assert table.addresses == kernel


@pytest.fixture
def network() -> Iterator[Callable[..., None]]:
    """A network namespace of this thread's own; calls run `ip` in it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "namespace")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    check(libc.unshare(CLONE_NEWNET))

    def ip(*words: str, batch: str = "") -> None:
        subprocess.run(["ip", *words], input=batch, text=True, check=True)

    yield ip
    check(libc.setns(home, CLONE_NEWNET))
    os.close(home)


@asynccontextmanager
async def following() -> AsyncIterator[asyncio.Queue[frozenset[str]]]:
    """The sets that a follower reports."""
    reports: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(AddressFollower().run(reports.put_nowait), name="addresses")
        yield reports
        follower.cancel()


async def until(reports: asyncio.Queue[frozenset[str]], expected: set[str]) -> None:
    async with asyncio.timeout(10):
        while await reports.get() != expected:
            pass


async def test_without_privileges_the_own_addresses_are_known() -> None:
    async with following() as reports, asyncio.timeout(10):
        assert "127.0.0.1" in await reports.get()


@pytest.mark.netns
async def test_addresses_are_followed(network: Callable[..., None]) -> None:
    network("link", "set", "lo", "up")
    async with following() as reports:
        assert await reports.get() == {"127.0.0.1", "::1"}
        network("addr", "add", "10.9.8.7/32", "dev", "lo")
        await until(reports, {"127.0.0.1", "::1", "10.9.8.7"})
        network("addr", "add", "fd00:0:0::7/128", "dev", "lo", "nodad")
        network("addr", "del", "10.9.8.7/32", "dev", "lo")
        await until(reports, {"127.0.0.1", "::1", "fd00::7"})
        network("link", "set", "lo", "down")  # takes the IPv6 addresses away
        await until(reports, {"127.0.0.1"})
        assert reports.empty()


@pytest.mark.netns
async def test_an_interface_without_addresses_has_none(network: Callable[..., None]) -> None:
    async with following() as reports:
        assert await reports.get() == set()


@pytest.mark.netns
async def test_a_tentative_address_counts_once_it_is_usable(network: Callable[..., None]) -> None:
    network("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    async with following() as reports:
        assert await reports.get() == set()
        network("addr", "add", "fd00::1/64", "dev", "veth0")  # tentative while the link is down
        network("addr", "add", "10.0.0.1/24", "dev", "veth0")
        await until(reports, {"10.0.0.1"})
        network("addr", "del", "fd00::1/64", "dev", "veth0")
        network("addr", "add", "fd00::1/64", "dev", "veth0", "nodad")
        network("link", "set", "veth0", "up")
        async with asyncio.timeout(10):
            while "fd00::1" not in await reports.get():
                pass


@pytest.mark.netns
async def test_messages_lost_are_made_up_for(network: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """More changes than the socket can hold while the loop is busy elsewhere: ENOBUFS, then a new list."""
    addresses = [f"10.{number >> 8}.{number & 255}.1" for number in range(ROOM // 256)]
    async with following() as reports:
        assert await reports.get() == set()
        network("-batch", "-", batch="".join(f"addr add {address}/32 dev lo\n" for address in addresses))
        await until(reports, set(addresses))
    assert "No buffer space available" in str([vars(record) for record in caplog.records])
