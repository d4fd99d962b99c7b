# SPDX-License-Identifier: Apache-2.0
"""Tables that somebody else edited or made. Cases T42, 50."""

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from svcproxy.dataplane.contract import APPLIED
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.messages import Element, TableFlag, new_elements
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.frontends.keys import FrontendKind
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family
from svcproxy.testing.traffic import PATIENCE
from tests.netns.routed import BACKENDS, HOSTS, Routed, change, frontend, key_of, table_of

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
GROUND = Ground(
    table_flags=TableFlag.NONE,
    surroundings=Surroundings(
        pod_cidrs=("10.244.0.0/16", "10.245.0.0/16", "fd44::/64"), service_cidrs=("10.96.0.0/16", "fd96::/64")
    ),
)
PLAIN = {family: frontend(1, family) for family in Family}
RANGED = {
    family: msgspec.structs.replace(
        frontend(2, family), kind=FrontendKind.LOAD_BALANCER, source_ranges=("10.1.1.0/24", "fd01:1::/64")
    )
    for family in Family
}
STICKY = {family: msgspec.structs.replace(frontend(3, family), affinity_timeout=60) for family in Family}


def world() -> FrontendTable:
    table = table_of(*PLAIN.values(), *RANGED.values(), *STICKY.values())
    table.node_port_addresses = frozenset(("192.0.2.1", "2001:db8::1"))
    return table


@pytest.fixture
async def plane(routed: Routed) -> AsyncIterator[NftablesDataplane]:
    async with routed.plane(GROUND) as opened:
        await opened.resync(world())
        yield opened


async def assert_works(routed: Routed, family: Family) -> None:
    """All frontends of the family serve."""
    async with routed.serving():
        for each in (PLAIN, RANGED):
            assert await routed.serves(key_of(each[family]), *HOSTS[family])
        assert len(await routed.met(key_of(STICKY[family]), ())) == 1


def listed(routed: Routed) -> list[str]:
    """The tables as nft says it, without what traffic makes of them."""

    def essence(value: object, name: str = "") -> object:
        match value:
            case dict():
                passed_over = {"handle", "counter", "elem" if value.get("name") == "aff" else ""}
                return {key: essence(each, key) for key, each in value.items() if key not in passed_over}
            case list():
                found = [essence(each) for each in value]
                return sorted(found, key=repr) if name == "elem" else found
            case _:
                return value

    objects = json.loads(routed.node.run("nft", "-j", "list", "ruleset"))["nftables"]
    return sorted(repr(essence(each)) for each in objects)


V4 = "10.96.0.1 . tcp . 80"
V6 = "fd96::a:1 . tcp . 80"
EDITS = [
    pytest.param(["delete element {t} class {{ {k} }}"], id="verdict deleted"),
    pytest.param(
        ["delete element {t} class {{ {k} }}", "add element {t} class {{ {k} : 2000:0 }}"], id="verdict: drop"
    ),
    pytest.param(
        ["delete element {t} class {{ {k} }}", "add element {t} class {{ {k} : 1:77 }}"], id="verdict: no chain's"
    ),
    pytest.param(["delete element {t} ways {{ 0:3 }}"], id="way deleted"),
    pytest.param(["delete element {t} ways {{ 0:3 }}", "add element {t} ways {{ 0:3 : accept }}"], id="way: accept"),
    pytest.param(["delete element {t} ways {{ 0:3 }}", "add element {t} ways {{ 0:3 : jump n3 }}"], id="way: jump"),
    pytest.param(
        ["add chain {t} own", "delete element {t} ways {{ 0:3 }}", "add element {t} ways {{ 0:3 : goto own }}"],
        id="way: another chain",
    ),
    pytest.param(["add element {t} ways {{ 7:7 : drop }}"], id="way added"),
    pytest.param(["flush map {t} ways", "flush map {t} admittedways"], id="ways flushed"),
    pytest.param(["flush map {t} class"], id="verdicts flushed"),
    pytest.param(["delete element {t} ep {{ {k} . 1 }}"], id="slot deleted"),
    pytest.param(
        ["delete element {t} ep {{ {k} . 1 }}", "add element {t} ep {{ {k} . 1 : {b} . 9 }}"], id="slot changed"
    ),
    pytest.param(["add element {t} ep {{ {k} . 77 : {b} . 9 }}"], id="slot added"),
    pytest.param(["flush map {t} ep", "flush map {t} pick"], id="slots flushed"),
    pytest.param(["flush set {t} srcok"], id="source ranges flushed"),
    pytest.param(["flush set {t} clusterips", "flush set {t} nodeips", "flush set {t} hairpin"], id="shared flushed"),
    pytest.param(["flush set {t} podcidr", "flush set {t} svccidr"], id="surroundings flushed"),
    pytest.param(["flush chain {t} n3"], id="backend chain flushed"),
    pytest.param(["flush chain {t} n3", "add rule {t} n3 drop"], id="backend chain drops"),
    pytest.param(["flush chain {t} dispatch"], id="dispatch flushed"),
    pytest.param(["insert rule {t} prerouting drop"], id="rule inserted"),
    pytest.param(["flush chain {t} prerouting", "delete chain {t} prerouting"], id="base chain deleted"),
    pytest.param(
        [
            "flush chain {t} prerouting",
            "delete chain {t} prerouting",
            "add chain {t} prerouting {{ type nat hook prerouting priority 50; }}",
        ],
        id="base chain with another priority",
    ),
    pytest.param(
        ["add chain {t} prerouting {{ type nat hook prerouting priority -101; policy drop; }}"], id="base chain drops"
    ),
    pytest.param(
        ["flush chain {t} postrouting", "delete set {t} hairpin"],
        id="set deleted",
    ),
    pytest.param(
        ["flush chain {t} postrouting", "delete set {t} hairpin", "add set {t} hairpin {{ type inet_service; }}"],
        id="set of another type",
    ),
    pytest.param(["flush table {t}"], id="rules flushed"),
    pytest.param(["delete table {t}"], id="table deleted"),
    pytest.param(["flush ruleset"], id="ruleset flushed"),
    pytest.param(["add table {t} {{ flags dormant; }}"], id="table dormant"),
    pytest.param(
        ["add chain {t} mine {{ type filter hook forward priority 0; policy drop; }}", "add rule {t} mine drop"],
        id="base chain of their own",
    ),
    pytest.param(["add element {t} class {{ {v} . dccp . 80 : 2000:0 }}"], id="another protocol"),
    pytest.param(["add element {t} class {{ {v} . 253 . 80 : 2000:0 }}"], id="a protocol without name"),
    pytest.param(["add element {t} class {{ {v} . tcp . 81 : 0:3 }}"], id="another frontend"),
    pytest.param(["add element {t} npclass {{ dccp . 80 : 2000:0 }}"], id="node port of another protocol"),
    pytest.param(["add element {t} srcok {{ {v} . tcp . 80-90 . {p} }}"], id="source range of several ports"),
    pytest.param(["add element {t} srcok {{ {v} . dccp . 80 . {p} }}"], id="source range of another protocol"),
    pytest.param(["add element {t} srcok {{ {v} . tcp . 80 . {r} }}"], id="source range that is no CIDR"),
    pytest.param(["add element {t} srcok {{ {v} . tcp . 99 . {a} }}"], id="source range of everything"),
    pytest.param(["add element {t} svccidr {{ {r} }}"], id="range that is no CIDR"),
    pytest.param(["flush set {t} svccidr", "add element {t} svccidr {{ {a} }}"], id="range of everything"),
    pytest.param(["add element {t} nodeips {{ {v} }}"], id="node address"),
    pytest.param(["add element {t} class {{ * : 2000:0 }}"], id="verdict for all others"),
    pytest.param(["add element {t} ep {{ * : {b} . 9 }}"], id="slot for all others"),
    pytest.param(["add element {t} nodeips {{ * }}"], id="all others are node addresses"),
    pytest.param(["add element {t} srcok {{ * }}"], id="all other sources"),
]
SPELLED = {
    Family.IPV4: {
        "t": "ip svcproxy", "k": V4, "b": "10.1.2.9", "v": "10.96.0.1", "p": "172.16.0.0/12",
        "r": "172.16.0.3-172.16.0.9", "a": "0.0.0.0/0",
    },
    Family.IPV6: {
        "t": "ip6 svcproxy", "k": V6, "b": "fd01:2::9", "v": "fd96::a:1", "p": "fd77::/16",
        "r": "fd77::3-fd77::9", "a": "::/0",
    },
}  # fmt: skip


@FAMILIES
@pytest.mark.parametrize("edits", EDITS)
async def test_an_edit_is_heard_of_and_undone(
    routed: Routed, plane: NftablesDataplane, family: Family, edits: list[str]
) -> None:
    before = listed(routed)
    routed.nft("\n".join(each.format(**SPELLED[family]) for each in edits))
    async with asyncio.timeout(PATIENCE):
        await plane.damaged()
    await plane.resync(world())
    await assert_works(routed, family)
    assert listed(routed) == before
    assert not await plane.resync(world())
    assert not plane.refused
    assert await plane.apply(change(PLAIN[family], removed=BACKENDS[family][:1])) == {PLAIN[family].key: APPLIED}


@FAMILIES
async def test_what_nft_cannot_say_is_undone(routed: Routed, plane: NftablesDataplane, family: Family) -> None:
    """An element for all other addresses, in a set of ranges: nft 1.0.6 crashes when it lists or adds one."""
    names = (SetName.SVC_CIDR, SetName.POD_CIDR, SetName.NP_SRC_OK)
    before = listed(routed)
    with routed.node.entered(), Kernel() as other:
        added = [each for name in names for each in new_elements(TABLES[family], name, [Element(b"")])]
        assert other.commit(added) == Committed()
    async with asyncio.timeout(PATIENCE):
        await plane.damaged()
    await plane.resync(world())
    assert listed(routed) == before
    assert not plane.refused
