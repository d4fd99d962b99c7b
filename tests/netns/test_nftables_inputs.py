# SPDX-License-Identifier: Apache-2.0
"""Tables at the edges of what there can be: many, none, the first and the last, and both of two. Case T52."""

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from svcproxy.dataplane.contract import APPLIED, Refused
from svcproxy.dataplane.nftables import render
from svcproxy.dataplane.nftables.operations import SetName
from svcproxy.dataplane.nftables.plane import NftablesDataplane
from svcproxy.dataplane.nftables.render import BACKENDS_WITH_AFFINITY_MAX
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Kernel
from svcproxy.frontends.keys import (
    Address,
    Backend,
    Frontend,
    FrontendKind,
    NodePort,
    ServicePortName,
    TrafficPolicy,
)
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import PATIENCE, SILENCE, Met, Server, serving
from tests.netns.routed import CLIENT, FOUR, HOSTS, PORT, UNOWNED, Routed, change, frontend, key_of, table_of

pytestmark = pytest.mark.netns

ONE = frontend(1)
NAMES = HOSTS[Family.IPV4]
FAMILIES = pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])


@pytest.fixture
async def plane(routed: Routed) -> AsyncIterator[NftablesDataplane]:
    async with routed.plane() as opened:
        await opened.resync(FrontendTable())
        yield opened


# Many backends


def many(count: int) -> list[Backend]:
    return [Backend(f"10.{200 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", PORT) for number in range(count)]


@pytest.mark.parametrize("count", [5_000, 70_000])
async def test_many_backends_serve_and_one_more_costs_one(routed: Routed, plane: NftablesDataplane, count: int) -> None:
    routed.backends.ip("route", "add", "local", "10.200.0.0/15", "dev", "lo")
    routed.node.ip("route", "add", "10.200.0.0/15", "via", "10.1.2.2")
    with routed.backends.entered():
        server = Server("any", Protocol.TCP, "0.0.0.0", PORT)
    backends = many(count)
    sticky = msgspec.structs.replace(frontend(2), affinity_timeout=60)
    table = table_of(ONE, sticky, backends=backends[1:])
    async with serving(server):
        assert set((await plane.apply(diff(FrontendTable(), table))).values()) == {APPLIED}
        assert set(plane.compromised) == ({sticky.key} if count > BACKENDS_WITH_AFFINITY_MAX else set())
        assert await routed.serves(key_of(ONE), "any")
        assert await routed.serves(key_of(sticky), "any")
        before = plane.totals.operations
        for delta in (change(ONE, added=backends[:1]), change(ONE, removed=backends[:1])):
            assert await plane.apply(delta) == {ONE.key: APPLIED}
        await plane.apply(FrontendDelta())
        assert plane.totals.operations - before <= 10
        assert await routed.serves(key_of(ONE), "any")
    await plane.apply(FrontendDelta(removed=(ONE.key, sticky.key)))
    await plane.apply(FrontendDelta())
    with routed.node.entered(), Kernel() as kernel:
        assert kernel.elements(TABLES[Family.IPV4], SetName.EP) == ()


async def test_what_is_served_without_affinity_is_named_after_a_restart_too(
    routed: Routed, plane: NftablesDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "BACKENDS_WITH_AFFINITY_MAX", 2)
    sticky = Frontend(
        NodePort(Family.IPV4, Protocol.TCP, 30080), ONE.service_port, FrontendKind.NODE_PORT, affinity_timeout=60
    )
    table = table_of(sticky)
    await plane.apply(diff(FrontendTable(), table))
    assert set(plane.compromised) == {sticky.key}
    await plane.apply(FrontendDelta(node_port_addresses=frozenset(("192.0.2.1",))))
    assert set(plane.compromised) == {sticky.key}
    async with routed.plane() as another:
        await another.resync(table)
        assert set(another.compromised) == {sticky.key}
        await another.resync(FrontendTable())
        assert not another.compromised


# Families


async def test_frontends_of_a_family_that_the_kernel_lacks_are_refused_with_words(routed: Routed) -> None:
    six = frontend(1, Family.IPV6)
    table = table_of(ONE, six)
    table.node_port_addresses = frozenset(("192.0.2.1", "2001:db8::1"))
    async with routed.serving(), routed.plane(replace(UNOWNED, families=(Family.IPV4,))) as plane:
        await plane.resync(FrontendTable())
        outcomes = await plane.apply(diff(FrontendTable(), table))
        assert outcomes == {ONE.key: APPLIED, six.key: Refused("the kernel has no nf_tables for IPv6")}
        assert plane.refused == {six.key: "the kernel has no nf_tables for IPv6"}
        assert await routed.serves(key_of(ONE), *NAMES)
        assert isinstance((await plane.apply(change(six, removed=FOUR[:1])))[six.key], Refused)
        assert not await plane.resync(table)
        assert set(plane.refused) == {six.key}
        assert plane.totals.rejections == 0
        assert "ip6" not in routed.nft("list ruleset")
        assert await plane.apply(FrontendDelta(removed=(six.key,))) == {six.key: APPLIED}
        assert not plane.refused


# Ports


@pytest.mark.parametrize("port", [0, 1, 65535])
@FAMILIES
async def test_every_port_is_one(routed: Routed, plane: NftablesDataplane, family: Family, port: int) -> None:
    key = Address(key_of(frontend(1, family)).ip, Protocol.TCP, port)
    some = msgspec.structs.replace(frontend(1, family), key=key)
    assert await plane.apply(diff(FrontendTable(), table_of(some))) == {key: APPLIED}
    if port:
        async with routed.serving():
            assert await routed.serves(key, *HOSTS[family])
    assert not await plane.resync(table_of(some))
    assert await plane.apply(FrontendDelta(removed=(key,))) == {key: APPLIED}


async def test_a_host_port_beats_a_node_port_of_the_same_number(routed: Routed, plane: NftablesDataplane) -> None:
    """Whichever came first, and the node port serves on all other addresses, and there again when it goes."""
    here, there = "10.1.1.1", "10.1.2.1"
    names = [ServicePortName("shop", name, "", Protocol.TCP) for name in ("node-port", "host-port")]
    node_port = Frontend(NodePort(Family.IPV4, Protocol.TCP, 30080), names[0], FrontendKind.NODE_PORT)
    host_port = Frontend(Address(here, Protocol.TCP, 30080), names[1], FrontendKind.EXTERNAL_IP)
    tables = {each.key: table_of(each, backends=[FOUR[number]]) for number, each in enumerate((node_port, host_port))}
    for order in ((node_port, host_port), (host_port, node_port)):
        await plane.apply(FrontendDelta(node_port_addresses=frozenset((here, there))))
        async with routed.serving():
            for each in order:
                assert (await plane.apply(diff(FrontendTable(), tables[each.key])))[each.key] == APPLIED
            assert await routed.serves(Address(here, Protocol.TCP, 30080), FOUR[1].ip)
            assert await routed.serves(Address(there, Protocol.TCP, 30080), FOUR[0].ip)
            await plane.apply(FrontendDelta(removed=(host_port.key,)))
            assert await routed.serves(Address(here, Protocol.TCP, 30080), FOUR[0].ip)
        await plane.resync(FrontendTable())


# Source ranges

RANGES = [
    pytest.param(("{all}",), True, id="everything"),
    pytest.param(("{all}", "{client}"), True, id="everything and a part of it"),
    pytest.param(("{lower}", "{upper}"), True, id="two halves"),
    pytest.param(("{first}", "{last}"), False, id="first and last address"),
    pytest.param(("{net}", "{client}", "{net}"), True, id="overlapping, and twice"),
    pytest.param(("{beside}",), False, id="the address beside"),
    pytest.param((), False, id="none"),
]
SPELLED = {
    Family.IPV4: {
        "all": "0.0.0.0/0", "client": "10.1.1.2/32", "lower": "0.0.0.0/1", "upper": "128.0.0.0/1",
        "first": "0.0.0.0/32", "last": "255.255.255.255/32", "net": "10.1.1.0/24", "beside": "10.1.1.3/32",
    },
    Family.IPV6: {
        "all": "::/0", "client": "fd01:1::2/128", "lower": "::/1", "upper": "8000::/1", "first": "::/128",
        "last": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "net": "fd01:1::/64", "beside": "fd01:1::3/128",
    },
}  # fmt: skip


def ranged(family: Family, ranges: tuple[str, ...] | None) -> Frontend:
    return msgspec.structs.replace(frontend(1, family), kind=FrontendKind.LOAD_BALANCER, source_ranges=ranges)


@FAMILIES
async def test_source_ranges_admit_what_is_in_them(routed: Routed, plane: NftablesDataplane, family: Family) -> None:
    """One after the other, on a frontend that is there; then anew, and read back."""
    table = FrontendTable()
    async with routed.serving():
        for row in RANGES:
            ranges, admitted, *_ = row.values
            assert isinstance(ranges, tuple)
            some = ranged(family, tuple(each.format(**SPELLED[family]) for each in ranges))
            wanted = table_of(some)
            assert set((await plane.apply(diff(table, wanted))).values()) == {APPLIED}, row.id
            table = wanted
            met = await routed.ask(key_of(some), PATIENCE if admitted else SILENCE)
            assert (met in HOSTS[family]) is admitted, row.id
            assert not await plane.resync(table)
            async with routed.plane() as another:
                assert not await another.resync(table), row.id
            await plane.resync(table)  # what the other did was foreign


@FAMILIES
async def test_a_thousand_source_ranges(routed: Routed, plane: NftablesDataplane, family: Family) -> None:
    four = family is Family.IPV4
    ranges = tuple(f"172.{16 + (n >> 7)}.{2 * (n & 127)}.0/24" if four else f"fd77:{2 * n:x}::/32" for n in range(1000))
    client = f"{CLIENT[family]}/{32 if four else 128}"
    async with routed.serving():
        await plane.apply(diff(FrontendTable(), table_of(ranged(family, ranges))))
        assert await routed.ask(key_of(frontend(1, family)), SILENCE) == Met.SILENCE
        some = ranged(family, (*ranges, client))
        assert await plane.apply(FrontendDelta(frontends=(some,))) == {some.key: APPLIED}
        assert await routed.serves(key_of(some), *HOSTS[family])
        async with routed.plane() as another:
            assert not await another.resync(table_of(some))
        await plane.resync(table_of(ranged(family, ranges[:-10])))
        assert await routed.ask(key_of(some), SILENCE) == Met.SILENCE


# Marks

# Not those of MLD: the kernel keeps something else where their mark would be (`reserved_tailroom`).
COUNT_MARKS = """
table inet watcher {
    chain leaving {
        type filter hook postrouting priority 300;
        meta l4proto { tcp, udp } meta mark != 0 counter name marked
        meta l4proto { tcp, udp } meta mark 0 counter name plain
    }
    counter marked { }
    counter plain { }
}
"""


@FAMILIES
async def test_no_packet_leaves_with_a_mark(routed: Routed, plane: NftablesDataplane, family: Family) -> None:
    kinds = [
        msgspec.structs.replace(frontend(1, family), affinity_timeout=60),
        msgspec.structs.replace(
            frontend(2, family), affinity_timeout=60, kind=FrontendKind.LOAD_BALANCER, policy=TrafficPolicy.LOCAL
        ),
        frontend(3, family),
    ]
    table = table_of(*kinds)
    table.apply(change(kinds[1], added=table.backends_of(kinds[1], 0), scope=1))  # type: ignore[arg-type]
    await plane.resync(table)
    routed.nft(COUNT_MARKS)
    async with routed.serving():
        for each in kinds:
            assert await routed.met(key_of(each), ()) <= set(HOSTS[family])
    listed = routed.nft("list counters")
    assert "packets 0" in listed.partition("counter marked")[2].partition("}")[0]
    assert "packets 0" not in listed.partition("counter plain")[2].partition("}")[0]
