# SPDX-License-Identifier: Apache-2.0
"""What a kernel can do, and what follows where it cannot."""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Set

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import Expression, masquerade, port_unreachable
from svcproxy.dataplane.nftables.features import FEATURES, NAT, requests, unreached
from svcproxy.dataplane.nftables.messages import Table, TableFlag
from svcproxy.dataplane.nftables.operations import FixedChain
from svcproxy.dataplane.nftables.probes import Probes, probe
from svcproxy.dataplane.nftables.transaction import Committed, Kernel, Rejected
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import Server, serving
from tests.netns import kube_proxy_rules as rules
from tests.netns.load import connecting
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

OWNED = TableFlag.OWNER | TableFlag.PERSIST
BOTH = frozenset(Family)
NAMES = [
    *("netlink", "net-admin", "tables-ipv4", "tables-ipv6", "owner", "persist"),
    *(f"{feature.name}-{family}" for family in ("ipv4", "ipv6") for feature in FEATURES),
]


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def probed(node: Namespace, override: Mapping[str, bool] | None = None) -> Probes:
    """Nothing stays behind."""
    before = node.run("nft", "list", "ruleset")
    with node.entered():
        found = probe(override)
    assert node.run("nft", "list", "ruleset") == before
    return found


def missing(found: Probes) -> set[str]:
    assert all(bool(each.fallback) is not each.ok and each.detail for each in found.results)
    return {each.name for each in found.results if not each.ok}


def test_this_kernel_can_do_everything(node: Namespace) -> None:
    found = probed(node)
    assert [each.name for each in found.results] == NAMES
    assert missing(found) == set()
    assert (found.flags, found.families) == (OWNED, BOTH)
    assert probed(node) == found


def test_tables_that_are_there_are_left_alone(node: Namespace) -> None:
    node.run("nft", "add table ip svcproxy; add table ip svcproxy-probe-1; add chain ip svcproxy n1")
    assert missing(probed(node)) == set()


@pytest.mark.parametrize(
    ("override", "lost", "flags", "families"),
    [
        pytest.param({"netlink": False}, {"netlink"}, TableFlag.NONE, set(), id="no nf_tables"),
        pytest.param({"net-admin": False}, {"net-admin"}, TableFlag.NONE, set(), id="no capability"),
        pytest.param({"owner": False}, {"owner"}, TableFlag.NONE, BOTH, id="before 5.12: no owner"),
        pytest.param({"persist": False}, {"persist"}, TableFlag.NONE, BOTH, id="before 6.9: no persistence"),
        pytest.param({"tables-ipv6": False}, {"tables-ipv6"}, OWNED, {Family.IPV4}, id="no IPv6"),
        pytest.param({"tables": False}, {"tables-ipv4", "tables-ipv6"}, TableFlag.NONE, set(), id="no tables"),
        pytest.param({"nat-ipv6": False}, {"nat-ipv6"}, OWNED, {Family.IPV4}, id="no NAT over IPv6"),
        pytest.param(
            {"reject": False}, {"reject-ipv4", "reject-ipv6"}, OWNED, set(), id="before 5.9: no refusal in prerouting"
        ),
        pytest.param(
            {"concatenated-ranges": False, "concatenated-ranges-ipv6": True},
            {"concatenated-ranges-ipv4"},
            OWNED,
            {Family.IPV6},
            id="a name with a family counts first",
        ),
    ],
)
def test_what_follows_without_a_feature(
    node: Namespace, override: Mapping[str, bool], lost: set[str], flags: TableFlag, families: Set[Family]
) -> None:
    found = probed(node, override)
    assert missing(found) == lost
    assert (found.flags, found.families) == (flags, families)


def test_without_owners_the_tables_are_watched(node: Namespace) -> None:
    (owner,) = [each for each in probed(node, {"owner": False}).results if each.name == "owner"]
    assert owner.fallback == "tables that other programs can change; changes are watched and undone"


SCRIPT = "from svcproxy.dataplane.nftables.probes import probe; print(probe())"


def test_without_privileges_nothing_works(node: Namespace) -> None:
    said = node.run("setpriv", "--bounding-set", "-all", sys.executable, "-c", SCRIPT)
    assert "name='net-admin', ok=False, detail='EPERM (Operation not permitted)'" in said
    assert "families=frozenset()" in said


def test_in_a_user_namespace_everything_works(node: Namespace) -> None:
    said = node.run("unshare", "-rn", sys.executable, "-c", SCRIPT)
    assert said.count("ok=True") == len(NAMES)


@pytest.mark.parametrize(
    ("chain", "expression"),
    [
        pytest.param(FixedChain.PREROUTING, masquerade(), id="masquerade at prerouting"),
        pytest.param(FixedChain.POSTROUTING, port_unreachable(Family.IPV4), id="refusal at postrouting"),
    ],
)
def test_what_a_hook_does_not_allow_is_seen(node: Namespace, chain: FixedChain, expression: Expression) -> None:
    """The kernel checks a rule for each hook that leads to it, and for no other."""
    table = Table(Family.IPV4, "probe")
    with node.entered():
        kernel = Kernel()
    with kernel:
        assert kernel.commit([nft.new_table(table), *requests(NAT, table)]) == Committed()
        assert isinstance(kernel.commit(unreached(table, "c", [(expression,)], (chain,))), Rejected)
        assert kernel.commit(unreached(table, "c", [(expression,)], ())) == Committed()


async def test_no_connection_notices(node: Namespace) -> None:
    """Not even on a node whose rules somebody else made."""
    with Namespace() as client, Namespace() as backends:
        node.forward()
        node.connect(client, "veth1", 1)
        node.connect(backends, "veth2", 2)
        node.run("nft", "-f", "-", text=rules.nft(Family.IPV4))
        with backends.entered():
            servers = [Server(ip, Protocol.TCP, ip, rules.BACKEND_PORT) for ip in rules.BACKENDS[Family.IPV4]]

        async def probe_again_and_again() -> None:
            for _ in range(5):
                assert missing(await asyncio.to_thread(probed, node)) == set()

        async with serving(*servers):
            met = await connecting(client, "10.1.1.2", (rules.VIP[Family.IPV4], rules.PORT), probe_again_and_again())
    assert set(met) == set(rules.BACKENDS[Family.IPV4])
