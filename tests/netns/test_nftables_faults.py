# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses or does not answer has a defined result, and costs nobody else anything. Case T46."""

import ctypes
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from svcproxy.dataplane.contract import APPLIED, Refused
from svcproxy.dataplane.nftables import messages
from svcproxy.dataplane.nftables.elements import packed
from svcproxy.dataplane.nftables.messages import Element, Kind, Request
from svcproxy.dataplane.nftables.plane import NftablesDataplane
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Rejected
from svcproxy.errors import DataplaneLost
from svcproxy.frontends.keys import Frontend
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family
from tests.netns.routed import (
    FOUR,
    HOSTS,
    Failing,
    Instead,
    Refusing,
    Routed,
    change,
    elements_of,
    frontend,
    key_of,
    table_of,
)

pytestmark = pytest.mark.netns

GOOD, BAD = frontend(1), frontend(2)
Phase = Callable[[Sequence[Request]], bool]
NAMES = HOSTS[Family.IPV4]
LEFT = NAMES[1:]


@pytest.fixture
async def refusing(routed: Routed) -> AsyncIterator[tuple[NftablesDataplane, Refusing]]:
    """A plane without frontends, and its kernel."""
    with routed.node.entered():
        kernel = Refusing()
    async with routed.plane(kernel=lambda: kernel) as plane:
        await plane.resync(FrontendTable())
        yield plane, kernel


@pytest.fixture
async def failing(routed: Routed) -> AsyncIterator[tuple[NftablesDataplane, Failing]]:
    with routed.node.entered():
        kernel = Failing()
    async with routed.plane(kernel=lambda: kernel) as plane:
        await plane.resync(FrontendTable())
        yield plane, kernel


def concerns(*some: Frontend) -> Callable[[Request, str, Element], bool]:
    """Whether an element begins with the address of one of the frontends."""
    prefixes = tuple(packed(key_of(each).ip) for each in some)
    return lambda request, name, element: element.key.startswith(prefixes)


# The kernel refuses one frontend's elements

REFUSALS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=errno.errorcode[number])
        for number in (errno.EBUSY, errno.ENOENT, errno.EEXIST, errno.E2BIG, errno.ENOSPC, errno.ENFILE, errno.ENOMEM)
    ],
)


@REFUSALS
async def test_a_refused_frontend_is_named_and_the_others_are_in_force(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing], number: int
) -> None:
    plane, kernel = refusing
    kernel.errno, kernel.refuses = number, concerns(BAD)
    table = table_of(GOOD, BAD)
    async with routed.serving():
        outcomes = await plane.apply(diff(FrontendTable(), table))
        assert outcomes[GOOD.key] == APPLIED
        refusal = outcomes[BAD.key]
        assert isinstance(refusal, Refused)
        assert errno.errorcode[number] in refusal.reason
        assert plane.refused == {BAD.key: refusal.reason}
        assert await routed.serves(key_of(GOOD), *NAMES)
        assert not await plane.resync(table)
        assert set(plane.refused) == {BAD.key}
        kernel.refuses = concerns()
        assert (await plane.resync(table)).frontends == (BAD,)
        assert not plane.refused
        assert await routed.serves(key_of(BAD), *NAMES)
        assert not await plane.resync(table)


@pytest.mark.parametrize(
    ("kind", "name", "removed"),
    [
        pytest.param(Kind.NEW_ELEMENTS, "ep", (), id="grow"),
        pytest.param(Kind.DELETE_ELEMENTS, "class", (), id="flip: the old verdict"),
        pytest.param(Kind.NEW_ELEMENTS, "class", (), id="flip: the new verdict"),
        pytest.param(Kind.DELETE_ELEMENTS, "ep", FOUR[:1], id="shrink"),
    ],
)
async def test_a_frontend_refused_once_is_settled_in_every_phase(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing], kind: Kind, name: str, removed: tuple[object, ...]
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD, BAD, backends=FOUR if removed else FOUR[:2])
    await plane.resync(table)
    refused: list[str] = []

    def once(request: Request, of: str, element: Element) -> bool:
        hit = not refused and request.kind == kind and of == name and element.key.startswith(packed(key_of(BAD).ip))
        refused.extend([of] * hit)
        return hit

    kernel.errno, kernel.refuses = errno.ENOSPC, once
    for each in (GOOD, BAD):
        delta = change(each, removed=FOUR[:1]) if removed else change(each, added=FOUR[2:])
        table.apply(delta)
        assert await plane.apply(delta) == {each.key: APPLIED}
    await plane.apply(FrontendDelta())
    assert refused
    assert not plane.refused
    assert plane.totals.settled == 1
    expected = LEFT if removed else NAMES
    async with routed.serving():
        for each in (GOOD, BAD):
            assert await routed.serves(key_of(each), *expected)
    assert not await plane.resync(table)


async def test_a_refused_frontend_costs_later_changes_of_others_nothing(
    refusing: tuple[NftablesDataplane, Refusing],
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD, BAD, backends=FOUR[:2])
    kernel.errno, kernel.refuses = errno.ENOSPC, concerns(BAD)
    await plane.apply(diff(FrontendTable(), table))
    before = plane.totals.rejections
    assert before
    assert await plane.apply(change(GOOD, added=FOUR[2:])) == {GOOD.key: APPLIED}
    assert plane.totals.rejections == before
    assert isinstance((await plane.apply(change(BAD, added=FOUR[2:])))[BAD.key], Refused)
    assert plane.totals.rejections > before
    assert await plane.apply(FrontendDelta(removed=(BAD.key,))) == {BAD.key: APPLIED}
    assert not plane.refused


async def test_thousands_of_refusals_end(routed: Routed, refusing: tuple[NftablesDataplane, Refusing]) -> None:
    """Every element of several batches but the good one's."""
    plane, kernel = refusing
    bad = [frontend(number) for number in range(2, 700)]
    table = table_of(GOOD, *bad, backends=FOUR[:1])
    kernel.errno = errno.ENOSPC
    kernel.refuses = lambda request, name, element: (
        name in ("ep", "class") and not concerns(GOOD)(request, name, element)
    )
    outcomes = dict(await plane.apply(diff(FrontendTable(), table)))
    assert outcomes.pop(GOOD.key) == APPLIED
    assert len(outcomes) == len(plane.refused) == len(bad)
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), NAMES[0])
        kernel.refuses = concerns()
        repairs = await plane.resync(table)
        assert set(repairs.frontends) == set(bad)
        assert not plane.refused
        assert await routed.serves(key_of(bad[-1]), NAMES[0])


@pytest.mark.parametrize("name", ["clusterips", "hairpin", "nodeips"])
async def test_a_refused_element_that_frontends_share_is_tried_again_by_resync(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing], name: str
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD)
    table.node_port_addresses = frozenset(("192.0.2.1",))
    kernel.errno = errno.ENOSPC
    kernel.refuses = lambda request, of, element: request.kind == Kind.NEW_ELEMENTS and of == name
    assert set((await plane.apply(diff(FrontendTable(), table))).values()) == {APPLIED}
    listing = f"list set ip svcproxy {name}"
    assert "elements" not in routed.nft(listing)
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), *NAMES)
    await plane.resync(table)
    assert "elements" not in routed.nft(listing)
    kernel.refuses = concerns()
    await plane.resync(table)
    assert "elements" in routed.nft(listing)
    assert not await plane.resync(table)


async def test_a_refused_element_that_is_not_wanted_any_more_does_not_come_back(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing]
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD)
    kernel.errno = errno.ENOSPC
    kernel.refuses = lambda request, of, element: request.kind == Kind.NEW_ELEMENTS and of == "clusterips"
    await plane.apply(diff(FrontendTable(), table))
    kernel.refuses = concerns()
    await plane.apply(FrontendDelta(removed=(GOOD.key,)))
    table.apply(FrontendDelta(removed=(GOOD.key,)))
    await plane.resync(table)
    assert "elements" not in routed.nft("list set ip svcproxy clusterips")


# A batch as a whole


def touches(requests: Sequence[Request], kind: Kind, name: str) -> bool:
    return any(each.kind == kind and elements_of(each)[0] == name for each in requests)


def grows(requests: Sequence[Request]) -> bool:
    return touches(requests, Kind.NEW_ELEMENTS, "ep")


def flips(requests: Sequence[Request]) -> bool:
    return touches(requests, Kind.NEW_ELEMENTS, "class")


def shrinks(requests: Sequence[Request]) -> bool:
    return touches(requests, Kind.DELETE_ELEMENTS, "ep") and not grows(requests)


PHASES = pytest.mark.parametrize(
    "phase", [pytest.param(grows, id="grow"), pytest.param(flips, id="flip"), pytest.param(shrinks, id="shrink")]
)


def lost(kernel: Kernel, requests: Sequence[Request]) -> Committed | Rejected:
    raise DataplaneLost("no answer")


def lost_afterwards(kernel: Kernel, requests: Sequence[Request]) -> Committed | Rejected:
    Kernel.commit(kernel, requests)
    raise DataplaneLost("no answer")


def rejected(number: int, index: int | None = None) -> Instead:
    return lambda kernel, requests: Rejected((Failure(index, number),))


@PHASES
@pytest.mark.parametrize(
    "instead",
    [
        pytest.param(lost, id="not sent"),
        pytest.param(lost_afterwards, id="carried out, the answer lost"),
        pytest.param(rejected(errno.EPERM), id="capability lost"),
        pytest.param(rejected(errno.EPERM, 0), id="table of another owner"),
        pytest.param(rejected(errno.ENOENT, 0), id="table, set or chain gone"),
    ],
)
async def test_what_is_in_force_unknown_a_resync_makes_known(
    routed: Routed, failing: tuple[NftablesDataplane, Failing], phase: Phase, instead: Instead
) -> None:
    plane, kernel = failing
    table = table_of(GOOD, BAD, backends=FOUR)
    await plane.resync(table)
    kernel.fail(phase, instead)
    delta = change(BAD, removed=FOUR[:1])
    table.apply(delta)
    with suppress(DataplaneLost):
        await plane.apply(delta)
        await plane.apply(FrontendDelta())
    assert kernel.failed
    assert await plane.damaged()
    with pytest.raises(DataplaneLost):
        await plane.apply(FrontendDelta())
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), *NAMES)
        assert await routed.met(key_of(BAD), ()) <= set(NAMES)
        await plane.resync(table)
        assert await routed.serves(key_of(BAD), *LEFT)
    assert not await plane.resync(table)
    assert await plane.apply(change(BAD, added=FOUR[:1])) == {BAD.key: APPLIED}


@PHASES
@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE])
async def test_a_batch_too_large_is_cut(
    routed: Routed, failing: tuple[NftablesDataplane, Failing], phase: Phase, number: int
) -> None:
    plane, kernel = failing
    table = table_of(GOOD, BAD, backends=FOUR)
    await plane.resync(table)
    kernel.fail(phase, rejected(number))
    delta = change(BAD, removed=FOUR[:1])
    table.apply(delta)
    assert await plane.apply(delta) == {BAD.key: APPLIED}
    await plane.apply(FrontendDelta())
    assert kernel.failed
    async with routed.serving():
        assert await routed.serves(key_of(BAD), *LEFT)
    assert not plane.refused
    assert not await plane.resync(table)


@pytest.mark.parametrize("batch", range(4))
async def test_a_resync_that_fails_is_completed_by_the_next(
    routed: Routed, failing: tuple[NftablesDataplane, Failing], batch: int
) -> None:
    plane, kernel = failing
    table = table_of(GOOD, frontend(1, Family.IPV6))
    routed.nft("add element ip svcproxy nodeips { 192.0.2.77 }")
    assert await plane.damaged()
    batches: list[object] = []

    def at_last(requests: Sequence[Request]) -> bool:
        batches.append(requests)
        return len(batches) > batch

    kernel.fail(at_last, lost)
    with pytest.raises(DataplaneLost):
        await plane.resync(table)
    await plane.resync(table)
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), *NAMES)
    assert not await plane.resync(table)


# For real

_CAP_NET_ADMIN = 1 << 12


@contextmanager
def without_capability() -> Iterator[None]:
    """This thread has no effective CAP_NET_ADMIN in the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~_CAP_NET_ADMIN
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


async def test_a_capability_lost_and_regained(routed: Routed, refusing: tuple[NftablesDataplane, Refusing]) -> None:
    plane, _ = refusing
    table = table_of(GOOD)
    await plane.resync(table)
    delta = change(GOOD, removed=FOUR[:1])
    table.apply(delta)
    with without_capability(), pytest.raises(DataplaneLost, match="EPERM"):
        await plane.apply(delta)
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), *NAMES)
        await plane.resync(table)
        assert await routed.serves(key_of(GOOD), *LEFT)


async def test_edits_that_were_not_heard_of_yet_are_settled(
    routed: Routed, failing: tuple[NftablesDataplane, Failing]
) -> None:
    """A slot that should be deleted is gone, one that should be added is there."""
    plane, kernel = failing
    table = table_of(GOOD, BAD, backends=FOUR)
    await plane.resync(table)

    def edited(kernel: Kernel, requests: Sequence[Request]) -> Committed | Rejected:
        key = f"{key_of(BAD).ip} . tcp . 80"
        routed.nft(
            f"delete element ip svcproxy ep {{ {key} . 2 }}",
            f"add element ip svcproxy ep {{ {key} . 3 : 10.1.2.9 . 9 }}",
        )
        return Kernel.commit(kernel, requests)

    kernel.fail(grows, edited)
    delta = change(BAD, added=[type(FOUR[0])("10.1.2.4", 8081)])
    table.apply(delta)
    assert await plane.apply(delta) == {BAD.key: APPLIED}
    assert plane.totals.settled == 1
    with pytest.raises(DataplaneLost):
        await plane.apply(FrontendDelta())
    assert not (await plane.resync(table)).frontends


async def test_answers_to_an_earlier_request_are_passed_over(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing]
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD)
    await plane.resync(table)
    with socket.fromfd(kernel.fileno(), socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        for number in range(3):
            sock.send(messages.encode(messages.get_generation(), 0xFFFF0000 + number))
            sock.send(messages.encode(messages.list_tables(Family.IPV4), 0xFFFF1000 + number))
            delta = change(GOOD, removed=[FOUR[number]])
            table.apply(delta)
            assert await plane.apply(delta) == {GOOD.key: APPLIED}
    assert not await plane.resync(table)


async def test_an_answer_that_is_cut_is_a_loss(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing], monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, kernel = refusing
    table = table_of(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_buffer", bytearray(24))
        with pytest.raises(DataplaneLost, match="24 octets"):
            await plane.resync(table)
    await plane.resync(table)
    async with routed.serving():
        assert await routed.serves(key_of(GOOD), *NAMES)


async def test_answers_that_the_socket_has_no_room_for_are_a_loss(
    routed: Routed, refusing: tuple[NftablesDataplane, Refusing]
) -> None:
    plane, kernel = refusing
    many = [frontend(number) for number in range(500)]
    table = table_of(*many, backends=FOUR[:1])
    await plane.resync(table)
    with socket.fromfd(kernel.fileno(), socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(DataplaneLost, match="No buffer space"):
            await plane.apply(FrontendDelta(removed=tuple(each.key for each in many[1:])))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before // 2)
    await plane.resync(table_of(many[0], backends=FOUR[:1]))
    assert (await plane.connections()).keys() == {many[0].key}
