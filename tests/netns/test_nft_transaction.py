# SPDX-License-Identifier: Apache-2.0
"""The encoder and the sockets against a real kernel, with nft 1.0.6 to say what the kernel has."""

import asyncio
import errno
import json
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.answers import (
    Answer,
    Elements,
    Generation,
    ObjectState,
    StoredElement,
    TableState,
    parse,
)
from svcproxy.dataplane.nftables.expressions import DROP, counter, goto, jump, verdict
from svcproxy.dataplane.nftables.messages import (
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    MARK,
    VERDICT,
    Attachment,
    Element,
    Hook,
    Kind,
    Request,
    Set,
    SetFlag,
    Table,
    TableFlag,
    concatenation,
)
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Loaded, Rejected, Watch
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family
from tests.dataplane.nftables.captured import ADMITTED, CAPTURES, ELEMENTS, HTTP, IPV4, IPV6, REMOVAL, TABLE, TABLE6
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

OWNED = TableFlag.OWNER | TableFlag.PERSIST
BASE = (
    nft.new_table(TABLE, comment="schema 1"),
    nft.new_chain(TABLE, "n1"),
    nft.new_set(TABLE, Set("class", (IPV4_ADDR, INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter())),
    nft.new_set(TABLE, Set("marks", (MARK,), (MARK,), id=2)),
)


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def kernel(node: Namespace) -> Iterator[Kernel]:
    with node.entered():
        opened = Kernel()
    with opened:
        yield opened


def listed(node: Namespace, table: Table) -> object:
    """As nft says it, less what is not ours to say: handles, the order of elements, how long they have to live."""
    family = "ip" if table.family is Family.IPV4 else "ip6"
    said = json.loads(node.run("nft", "-j", "list", "table", family, table.name))

    def essence(value: object, name: str = "") -> object:
        match value:
            case dict():
                return {key: essence(each, key) for key, each in value.items() if key not in ("handle", "expires")}
            case list():
                found = [essence(each) for each in value]
                return sorted(found, key=repr) if name == "elem" else found
            case _:
                return value

    return essence(said)


def marks(numbers: Iterable[int]) -> list[Element]:
    return [Element(number.to_bytes(4), number.to_bytes(4)) for number in numbers]


@contextmanager
def borrowed(owner: Kernel | Watch) -> Iterator[socket.socket]:
    """The socket, for what its owner does not do."""
    with socket.fromfd(owner.fileno(), socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        yield sock


def shrink(owner: Kernel | Watch, buffer: int, octets: int) -> None:
    """The kernel doubles what it is told."""
    with borrowed(owner) as sock:
        sock.setsockopt(socket.SOL_SOCKET, buffer, octets)


def frontend(number: int, protocol: int = 6) -> bytes:
    return concatenation(bytes((10, 96, number >> 8, number & 255)), bytes((protocol,)), (80).to_bytes(2))


@pytest.mark.parametrize(
    ("table", "requests", "scripts"),
    [
        pytest.param(TABLE, [*IPV4, *ELEMENTS], ["ipv4", "elements"], id="IPv4"),
        pytest.param(TABLE6, IPV6, ["ipv6"], id="IPv6"),
    ],
)
def test_the_kernel_has_what_nft_would_have_made(
    node: Namespace, kernel: Kernel, table: Table, requests: list[Request], scripts: list[str]
) -> None:
    assert kernel.commit(requests) == Committed()
    with Namespace() as other:
        for script in scripts:
            other.run("nft", "-f", str(CAPTURES / f"{script}.nft"))
        assert listed(node, table) == listed(other, table)
    assert node.run("nft", "list", "ruleset")


def test_a_table_goes_with_all_that_is_in_it(node: Namespace, kernel: Kernel) -> None:
    assert kernel.commit([*IPV4, *ELEMENTS]) == Committed()
    assert kernel.commit(REMOVAL) == Committed()
    assert kernel.tables(Family.IPV4) == ()
    assert node.run("nft", "list", "ruleset") == ""


def test_what_was_put_in_is_listed(kernel: Kernel) -> None:
    assert kernel.commit([*IPV4, *ELEMENTS]) == Committed()
    names = ("class", "ep", "srcok", "svccidr", "nodeips")
    for name, request in zip(names, (ELEMENTS[index] for index in (0, 1, 3, 2, 5)), strict=True):
        stored = kernel.elements(TABLE, name)
        assert stored is not None
        again = nft.new_elements(TABLE, name, sorted((each.element for each in stored), key=lambda each: each.key))
        wanted = nft.new_elements(TABLE, name, sorted(elements_of(request), key=lambda each: each.key))
        assert list(again) == list(wanted), name
    (affinity,) = kernel.elements(TABLE, "aff") or ()
    assert affinity.element.timeout_ms == 30_000
    assert 0 < affinity.expires_ms <= 30_000
    assert kernel.elements(TABLE, "masq") == ()
    assert kernel.elements(TABLE, "none") is None
    assert {each.name for each in kernel.chains(TABLE)} == {
        "n3",
        "n4",
        "prerouting",
        "output",
        "postrouting",
        "forward",
    }
    assert len(kernel.sets(TABLE)) == 13
    assert len(kernel.rules(TABLE)) == 28
    assert kernel.chains(TABLE6) == kernel.sets(TABLE6) == kernel.rules(TABLE6) == ()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("class", Element(HTTP, goto("n3")), id="verdict"),
        pytest.param("srcok", ADMITTED, id="range"),
        pytest.param("nodeips", Element(bytes((192, 0, 2, 1))), id="set"),
    ],
)
def test_one_element_is_read_by_its_key(kernel: Kernel, name: str, wanted: Element) -> None:
    assert kernel.element(TABLE, name, wanted) is None
    assert kernel.commit([*IPV4, *ELEMENTS]) == Committed()
    assert kernel.element(TABLE, name, wanted) == StoredElement(wanted)
    assert kernel.element(TABLE, name, Element(bytes(len(wanted.key)))) is None
    assert kernel.element(TABLE, "none", wanted) is None
    with pytest.raises(DataplaneLost):
        kernel.element(TABLE, name, Element(b"\1"))


def elements_of(request: Request) -> list[Element]:
    """Read a request back with the parser of answers."""
    (answer,) = parse(nft.encode(request, 1))
    assert isinstance(answer.content, Elements)
    return [each.element for each in answer.content.elements]


def test_a_long_list_is_complete(kernel: Kernel) -> None:
    count = 20_000
    assert kernel.commit([*BASE, *nft.new_elements(TABLE, "marks", marks(range(count)))]) == Committed()
    stored = kernel.elements(TABLE, "marks")
    assert stored is not None
    assert sorted(int.from_bytes(each.element.key) for each in stored) == list(range(count))
    assert all(each == StoredElement(Element(each.element.key, each.element.key)) for each in stored)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        pytest.param(
            [nft.new_chain(TABLE, "n2"), nft.delete_chain(TABLE, "n9"), nft.delete_set(TABLE, "none")],
            [(1, errno.ENOENT, None), (2, errno.ENOENT, None)],
            id="each request that fails is named",
        ),
        pytest.param(
            list(nft.delete_elements(TABLE, "marks", marks([1, 2, 99, 3]))),
            [(0, errno.ENOENT, 2)],
            id="an element that is not there",
        ),
        pytest.param(
            list(nft.new_elements(TABLE, "marks", [*marks([7]), Element(bytes((0, 0, 0, 1)), bytes(4))])),
            [(0, errno.EEXIST, 1)],
            id="a key with other data",
        ),
        pytest.param(
            list(nft.new_elements(TABLE, "class", [Element(frontend(1), goto("n9"))])),
            [(0, errno.ENOENT, 0)],
            id="a verdict that leads nowhere",
        ),
        pytest.param(
            list(nft.new_elements(TABLE, "class", [Element(b"\0", DROP)])),
            [(0, errno.EINVAL, 0)],
            id="a key of another length",
        ),
        pytest.param(
            [
                nft.new_chain(TABLE, "input", Attachment("filter", Hook.INPUT, 0)),
                nft.new_rule(TABLE, "input", (verdict(jump("n1")),)),
                nft.new_rule(TABLE, "n1", (verdict(jump("n1")),)),
            ],
            [(2, errno.EMLINK, None)],
            id="a loop",
        ),
    ],
)
def test_a_refusal_names_what_is_refused_and_leaves_nothing(
    node: Namespace, kernel: Kernel, requests: list[Request], expected: list[tuple[int | None, int, int | None]]
) -> None:
    assert kernel.commit([*BASE, *nft.new_elements(TABLE, "marks", marks([1, 2, 3]))]) == Committed()
    before = node.run("nft", "list", "ruleset")
    outcome = kernel.commit([*requests, nft.new_chain(TABLE, "last")])
    assert isinstance(outcome, Rejected)
    assert [(each.index, each.errno, each.element) for each in outcome.failures] == expected
    assert node.run("nft", "list", "ruleset") == before


def test_a_failure_says_so_in_words() -> None:
    assert str(Failure(0, errno.ENOENT, "no such chain")) == "ENOENT (No such file or directory): no such chain"


def test_an_owned_table_is_its_owners_until_that_closes(node: Namespace, kernel: Kernel) -> None:
    claim = [nft.new_table(TABLE, OWNED, "schema 1")]
    assert kernel.commit([*claim, *BASE[1:]]) == Committed()
    (state,) = kernel.tables(Family.IPV4)
    assert state == TableState(False, TABLE, OWNED, 3, kernel.port, "schema 1")
    with node.entered():
        other = Kernel()
    with other:
        refused = other.commit([nft.new_chain(TABLE, "n2")])
        assert isinstance(refused, Rejected)
        assert [(each.index, each.errno) for each in refused.failures] == [(0, errno.EPERM)]
        assert isinstance(other.commit(claim), Rejected)
        node.run("nft", "flush", "ruleset")
        assert "flags owner" in node.run("nft", "list", "ruleset")
        assert json.loads(node.run("nft", "-j", "list", "ruleset"))
        assert len(other.sets(TABLE)) == 2
        kernel.close()
        (orphan,) = other.tables(Family.IPV4)
        assert orphan.owner == 0
        assert other.commit(claim) == Committed()
        (state,) = other.tables(Family.IPV4)
        assert (state.owner, state.flags, state.comment) == (other.port, OWNED, "schema 1")
        assert other.commit([nft.new_chain(TABLE, "n2")]) == Committed()


def test_what_is_too_large_for_a_batch_is_loaded_in_several(kernel: Kernel) -> None:
    assert kernel.commit(BASE) == Committed()
    requests = list(nft.new_elements(TABLE, "marks", marks(range(20_000))))
    shrink(kernel, socket.SO_SNDBUF, 60_000)
    assert kernel.commit(requests) == Rejected((Failure(None, errno.EMSGSIZE),))
    assert kernel.load(requests) == Loaded(len(requests))
    assert len(kernel.elements(TABLE, "marks") or ()) == 20_000
    # What is wrong is found wherever the batch is cut, and what came before stays.
    flushed = [nft.flush_set(TABLE, "marks"), *requests, nft.delete_chain(TABLE, "n9"), nft.new_chain(TABLE, "n2")]
    loaded = kernel.load(flushed)
    assert [(each.index, each.errno) for each in loaded.failures] == [(len(requests) + 1, errno.ENOENT)]
    assert loaded.in_force < len(requests) + 1
    assert "n2" not in {each.name for each in kernel.chains(TABLE)}


def test_answers_to_what_was_given_up_are_passed_over(kernel: Kernel) -> None:
    with borrowed(kernel) as sock:
        sock.send(nft.encode(nft.get_generation(), 0xFFFFFF))
        sock.send(nft.batch([nft.delete_chain(TABLE, "n9")], 0xFFFFFF))
        assert kernel.commit(BASE) == Committed()
        sock.send(nft.encode(nft.get_generation(), 0xFFFFFF))
        assert len(kernel.chains(TABLE)) == 1


def test_lost_answers_are_a_loss_and_the_next_is_understood(kernel: Kernel) -> None:
    assert kernel.commit(BASE) == Committed()
    shrink(kernel, socket.SO_RCVBUF, 4096)
    with pytest.raises(DataplaneLost, match="No buffer space"):
        kernel.commit([nft.delete_chain(TABLE, "n9") for _ in range(1000)])
    assert kernel.commit([nft.new_chain(TABLE, "n2")]) == Committed()
    assert len(kernel.chains(TABLE)) == 2


LOAD = """
from tests.netns import test_nft_transaction as t
with t.Kernel() as kernel:
    requests = [*t.BASE, *t.nft.new_elements(t.TABLE, "marks", t.marks(range(20_000)))]
    print(kernel.load(requests))
"""


def test_small_buffers_do_where_large_ones_are_not_allowed(node: Namespace) -> None:
    said = node.run("unshare", "-rn", sys.executable, "-c", LOAD)
    assert said.strip() == str(Loaded(len(BASE) + 20))


def test_without_privileges_every_batch_is_refused(node: Namespace) -> None:
    said = node.run("setpriv", "--bounding-set", "-all", sys.executable, "-c", LOAD)
    assert said.strip() == str(Loaded(0, (Failure(None, errno.EPERM),)))


def test_nothing_is_committed_without_asking(kernel: Kernel) -> None:
    before = kernel.generation()
    assert kernel.commit([]) == Committed()
    assert kernel.load([]) == Loaded(0)
    assert kernel.generation() == before
    assert kernel.commit(BASE) == Committed()
    assert kernel.generation().number == before.number + 1


def test_a_closed_socket_changes_nothing(kernel: Kernel) -> None:
    kernel.close()
    with pytest.raises(DataplaneLost):
        kernel.commit(BASE)
    with pytest.raises(DataplaneLost):
        kernel.generation()


def summary(answers: Iterable[Answer]) -> list[object]:
    found: list[object] = []
    for answer in answers:
        match answer.content:
            case Elements(removed, _, name, elements):
                found.append((removed, name, len(elements)))
            case TableState(removed=removed):
                found.append((removed, "table"))
            case ObjectState(removed=removed, kind=kind, name=name):
                found.append((removed, kind, name))
            case Generation(program=program):
                found.append(program)
            case other:
                raise AssertionError(other)
    return found


def test_foreign_changes_are_heard_of_and_own_ones_are_not(node: Namespace, kernel: Kernel) -> None:
    with node.entered():
        watch = Watch(kernel.port)
        watch.listen()
    with watch:
        assert kernel.commit([*BASE, *nft.new_elements(TABLE, "marks", marks(range(5000)))]) == Committed()
        assert list(watch.changes()) == []
        node.run("nft", "add element ip svcproxy marks { 0x99 : 0x1 }; add chain ip svcproxy n7")
        assert summary(watch.changes()) == [(False, "marks", 1), (False, Kind.NEW_CHAIN, "n7"), "nft"]
        node.run("nft", "delete table ip svcproxy")
        heard = summary(watch.changes())
        assert (True, "table") in heard
        assert (True, Kind.NEW_SET, "marks") in heard
        assert heard[-1] == "nft"


async def test_a_watch_wakes_a_loop(node: Namespace, kernel: Kernel) -> None:
    woken = asyncio.Event()
    with node.entered(), Watch(kernel.port) as watch:
        watch.listen()
        asyncio.get_running_loop().add_reader(watch.fileno(), woken.set)
        try:
            node.run("nft", "add table ip other")
            async with asyncio.timeout(10):
                await woken.wait()
        finally:
            asyncio.get_running_loop().remove_reader(watch.fileno())
        assert summary(watch.changes()) == [(False, "table"), "nft"]


def test_changes_that_could_not_be_kept_are_a_loss(node: Namespace, kernel: Kernel) -> None:
    with node.entered(), Watch(0) as watch:
        watch.listen()
        shrink(watch, socket.SO_RCVBUF, 4096)
        assert kernel.commit([*BASE, *nft.new_elements(TABLE, "marks", marks(range(5000)))]) == Committed()
        with pytest.raises(DataplaneLost, match="No buffer space"):
            list(watch.changes())


def test_a_timeout_map_takes_elements_from_rules_and_from_us(kernel: Kernel) -> None:
    made = Set("aff", (IPV4_ADDR,), (MARK,), flags=SetFlag.TIMEOUT | SetFlag.DYNAMIC, size=2, timeout_ms=60_000)
    assert kernel.commit([nft.new_table(TABLE), nft.new_set(TABLE, made)]) == Committed()
    (request,) = nft.new_elements(TABLE, "aff", marks([1, 2]))
    assert kernel.commit([request]) == Committed()
    full = kernel.commit(list(nft.new_elements(TABLE, "aff", marks([3]))))
    assert isinstance(full, Rejected)
    assert full.failures[0].errno == errno.ENFILE
    assert all(0 < each.expires_ms <= 60_000 for each in kernel.elements(TABLE, "aff") or ())


def test_one_rule_of_a_chain_goes(node: Namespace, kernel: Kernel) -> None:
    """By the handle that the list of rules gives, which also says where they lead."""
    node.run("nft", "add table ip svcproxy; add chain ip svcproxy n1; add chain ip svcproxy n2")
    node.run("nft", "add rule ip svcproxy n2 counter jump n1; add rule ip svcproxy n2 drop")
    jump, drop = kernel.rules(TABLE)
    assert [(each.name, each.leads_to) for each in (jump, drop)] == [("n2", "n1"), ("n2", "")]
    assert kernel.commit([nft.delete_rule(TABLE, "n2", jump.handle)]) == Committed()
    assert kernel.rules(TABLE) == (drop,)
    again = kernel.commit([nft.delete_rule(TABLE, "n2", jump.handle)])
    assert isinstance(again, Rejected)
    assert again.failures[0].errno == errno.ENOENT


def test_a_base_chain_has_a_policy(node: Namespace, kernel: Kernel) -> None:
    node.run("nft", "add table ip svcproxy; add chain ip svcproxy n1")
    node.run("nft", "add chain ip svcproxy drops { type filter hook forward priority 0; policy drop; }")
    assert {each.name: each.policy for each in kernel.chains(TABLE)} == {"n1": None, "drops": 0}
