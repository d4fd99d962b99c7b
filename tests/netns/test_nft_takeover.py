# SPDX-License-Identifier: Apache-2.0
"""Taking over from a kube-proxy, with real rules and traffic."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import FULLY_RANDOM_PORTS, goto, masquerade
from svcproxy.dataplane.nftables.foreign import detect
from svcproxy.dataplane.nftables.messages import Attachment, Element, Hook, Table, concatenation
from svcproxy.dataplane.nftables.takeover import Fate, Outcome
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import Client, Server, serving
from tests.netns import kube_proxy_rules as rules
from tests.netns.kube_proxy_rules import LEGACY, NFT, PROGRAMS, Program, found, take_over
from tests.netns.load import connecting
from tests.netns.namespaces import Namespace
from tests.netns.test_nft_traffic import packed, ruleset

pytestmark = pytest.mark.netns

FAMILIES = [pytest.param(each, id=each.label) for each in Family]
CLIENT = {Family.IPV4: "10.1.1.2", Family.IPV6: "fd01:1::2"}
NODE = {Family.IPV4: "10.1.2.1", Family.IPV6: "fd01:2::1"}
TAKEOVERS = 5


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def test_a_kube_proxy_in_ipvs_mode_is_left_to_people(node: Namespace) -> None:
    node.ip("link", "add", "kube-ipvs0", "type", "bridge")
    NFT.load(node, Family.IPV4, rules.iptables(Family.IPV4))
    before = NFT.saved(node, Family.IPV4)
    (outcome,) = take_over(node)
    assert outcome.fate is Fate.FAILED
    assert "kube-proxy --cleanup" in outcome.reason
    assert NFT.saved(node, Family.IPV4) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_kube_proxys_rules_go_and_all_others_stay(node: Namespace, program: Program, family: Family) -> None:
    """In whatever order they were made."""
    for text in (rules.KUBELET, rules.iptables(family), rules.STRANGERS):
        program.load(node, family, text)
    outcomes = take_over(node)
    assert {each.fate for each in outcomes} == {Fate.REMOVED}
    keyword = "ip" if family is Family.IPV4 else "ip6"
    assert {str(each) for each in outcomes} == {
        f"iptables-{program.variant} table {keyword} {words} of kube-proxy"
        for words in ("nat: 3 rules and 10 chains", "filter: 9 rules and 6 chains", "mangle: 1 chain")
    }
    with Namespace() as other:
        for text in (rules.KUBELET, f"*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n{rules.STRANGERS}"):
            program.load(other, family, text)
        assert program.saved(node, family) == program.saved(other, family)
    assert found(node) == {}
    assert take_over(node) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_kube_proxys_table_goes(node: Namespace, family: Family) -> None:
    node.run("nft", "-f", "-", text=rules.nft(family))
    node.run("nft", "add table ip other")
    keyword = "ip" if family is Family.IPV4 else "ip6"
    assert take_over(node) == [Outcome(Fate.REMOVED, f"nftables table {keyword} kube-proxy")]
    assert node.run("nft", "list", "tables") == "table ip other\n"
    assert take_over(node) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_others_depend_on_stays(node: Namespace, program: Program) -> None:
    program.load(node, Family.IPV4, rules.iptables(Family.IPV4))
    program.load(node, Family.IPV4, "*nat\n:CNI-DN-1 - [0:0]\n-A CNI-DN-1 -j KUBE-MARK-MASQ\nCOMMIT\n")
    kept = [each.what for each in take_over(node) if each.fate is Fate.KEPT]
    place = f"iptables-{program.variant} table ip nat"
    assert kept == [f"{place}: chain KUBE-MARK-MASQ", f"{place}: chain KUBE-POSTROUTING"]
    nat = program.saved(node, Family.IPV4)
    assert "-A CNI-DN-1 -j KUBE-MARK-MASQ" in nat
    assert '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING' in nat
    assert found(node) == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_lets_established_connections_through_stays_where_others_drop_them(
    node: Namespace, program: Program
) -> None:
    program.load(node, Family.IPV4, rules.iptables(Family.IPV4))
    program.run(node, "-P", "FORWARD", "DROP")
    (kept,) = [each for each in take_over(node) if each.fate is Fate.KEPT]
    assert kept.what == f"iptables-{program.variant} table ip filter: chain KUBE-FORWARD"
    assert sum("-j KUBE-FORWARD" in line for line in program.saved(node, Family.IPV4)) == 1
    assert found(node) == {}


@pytest.fixture
def cluster() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Client, node, backends."""
    with ExitStack() as stack:
        client, node, backends = (stack.enter_context(Namespace()) for _ in range(3))
        node.forward()
        node.connect(client, "veth1", 1)
        node.connect(backends, "veth2", 2)
        yield client, node, backends


def load_mode(node: Namespace, mode: str, family: Family) -> None:
    if mode == "nftables":
        node.run("nft", "-f", "-", text=rules.nft(family))
    else:
        Program(mode).load(node, family, rules.iptables(family))


def own_tables(family: Family) -> list[nft.Request]:
    table = Table(family, "svcproxy")
    key = concatenation(packed(rules.VIP[family]), b"\x06", rules.PORT.to_bytes(2))
    slots = [
        Element(key + slot.to_bytes(4, "little"), concatenation(packed(ip), rules.BACKEND_PORT.to_bytes(2)))
        for slot, ip in enumerate(rules.BACKENDS[family])
    ]
    return [
        *ruleset(table),
        nft.new_chain(table, "postrouting", Attachment("nat", Hook.POSTROUTING, 99)),
        nft.new_rule(table, "postrouting", (masquerade(flags=FULLY_RANDOM_PORTS),)),
        *nft.new_elements(table, "ep", slots),
        *nft.new_elements(table, "class", [Element(key, goto("n3"))]),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["nftables", "nft", "legacy"])
async def test_no_connection_fails_during_take_over(
    cluster: tuple[Namespace, Namespace, Namespace], mode: str, family: Family
) -> None:
    """One that kube-proxy translated and masqueraded goes on; of 2,000 or more new ones each meets a backend."""
    client, node, backends = cluster
    load_mode(node, mode, family)
    target = (rules.VIP[family], rules.PORT)
    with backends.entered():
        servers = [Server(ip, Protocol.TCP, ip, rules.BACKEND_PORT) for ip in rules.BACKENDS[family]]
    with node.entered():
        kernel = Kernel()

    async def replace() -> None:
        assert await asyncio.to_thread(kernel.commit, own_tables(family)) == Committed()
        for _ in range(TAKEOVERS):
            outcomes = await asyncio.to_thread(take_over, node)
            assert {each.fate for each in outcomes} == {Fate.REMOVED}
            await asyncio.to_thread(load_mode, node, mode, family)
        await asyncio.to_thread(take_over, node)

    with kernel, client.entered(), Client(Protocol.TCP, CLIENT[family], target) as established:
        async with serving(*servers):
            first = await established.ask()
            met = await connecting(client, CLIENT[family], target, replace())
            assert await established.ask() == first
        assert set(met) == set(rules.BACKENDS[family])
        assert {address for server in servers for address in server.seen} == {NODE[family]}
        assert found(node) == {}


def test_legacy_rules_are_left_to_people_where_its_programs_are_not(
    node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    LEGACY.load(node, Family.IPV4, rules.iptables(Family.IPV4))
    monkeypatch.setenv("PATH", "")
    with node.entered(), Kernel() as kernel:
        (foreign,) = detect(kernel)
    assert (foreign.implementation, foreign.removable) == ("kube-proxy (iptables-legacy)", False)
    outcomes = take_over(node)
    assert {(each.fate, each.reason.partition(";")[0]) for each in outcomes} == {
        (Fate.FAILED, "iptables-legacy-save and iptables-legacy-restore are not here")
    }
    assert len(outcomes) == 3
