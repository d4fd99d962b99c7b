# SPDX-License-Identifier: Apache-2.0
"""Addresses that stand for seconds, and the tables that go with them, in the kernel."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables import notrack
from svcproxy.dataplane.nftables.removal import intercepted
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.dataplane.nftables.untracked import NotrackTables
from svcproxy.process.leases import VALID, AddressLeases
from tests.netns.interception import eventually
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

ADDRESSES = ("10.96.0.10", "fd96::a")
LISTING = Path(__file__).parent / "listings" / "notrack.nft"


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def leases(node: Namespace) -> Iterator[AddressLeases]:
    with node.entered():
        made = AddressLeases()
    with made:
        yield made


def standing(node: Namespace) -> dict[str, dict[str, object]]:
    (loopback,) = json.loads(node.run("ip", "-json", "address", "show", "dev", "lo"))
    return {each["local"]: each for each in loopback["addr_info"] if each["local"] in ADDRESSES}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_stands_until_it_expires(node: Namespace, leases: AddressLeases, address: str) -> None:
    leases.renew(address)
    found = standing(node)[address]
    assert (found["dynamic"], found["deprecated"], found["preferred_life_time"]) == (True, True, 0)
    assert found["prefixlen"] == (128 if ":" in address else 32)
    eventually(lambda: not standing(node), "it has gone")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_renewed_stands_longer(node: Namespace, leases: AddressLeases, address: str) -> None:
    seen = []
    for _ in range(2 * VALID + 2):
        leases.renew(address)
        seen.append(address in standing(node))
        signal.sigtimedwait([], 0.5)
    assert all(seen)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_can_go_at_once_and_again(node: Namespace, leases: AddressLeases, address: str) -> None:
    leases.renew(address)
    assert leases.end(address) is True
    assert standing(node) == {}
    assert leases.end(address) is False


def test_what_is_no_lease_is_foreign(node: Namespace, leases: AddressLeases) -> None:
    node.ip("link", "add", "other", "type", "bridge")
    node.ip("address", "add", "10.0.0.1/24", "dev", "other")
    node.ip("address", "add", ADDRESSES[1], "dev", "lo", "nodad")
    leases.renew(ADDRESSES[0])
    with node.entered():
        foreign = leases.foreign()
    assert foreign == {"127.0.0.1": "lo", "::1": "lo", "10.0.0.1": "other", ADDRESSES[1]: "lo"}


def test_refusals_are_raised(node: Namespace, leases: AddressLeases) -> None:
    with node.entered():
        Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")
    with pytest.raises(OSError, match="Permission denied"):
        leases.renew(ADDRESSES[1])
    leases.renew(ADDRESSES[0])


def test_nft_lists_the_tables(node: Namespace) -> None:
    with node.entered(), Kernel() as kernel:
        assert isinstance(kernel.commit(notrack.replace(ADDRESSES, 53)), Committed)
    assert node.run("nft", "list", "ruleset") == LISTING.read_text()
    node.run("nft", "flush", "ruleset")
    node.run("nft", "-f", "-", text=LISTING.read_text())
    assert node.run("nft", "list", "ruleset") == LISTING.read_text()


def test_tables_are_for_the_families_of_the_addresses(node: Namespace) -> None:
    with node.entered(), Kernel() as kernel:
        for addresses, families in ((ADDRESSES, ["ip", "ip6"]), (ADDRESSES[1:], ["ip6"]), (ADDRESSES[:1], ["ip"])):
            assert isinstance(kernel.commit(notrack.replace(addresses, 53)), Committed)
            listed = node.run("nft", "list", "tables").splitlines()
            assert listed == [f"table {family} svcproxy-dns" for family in families]
            assert tuple(ip for found in intercepted(kernel) for ip in found.addresses) == addresses


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table ip svcproxy-dns",
        "flush chain ip6 svcproxy-dns prerouting",
        "flush set ip svcproxy-dns queries",
        "delete element ip6 svcproxy-dns queries { fd96::a . tcp . 53 }",
        "add rule ip svcproxy-dns output drop",
    ],
)
def test_damage_is_undone(node: Namespace, damage: str) -> None:
    with node.entered():
        tables = NotrackTables(ADDRESSES, 53)
    tables.ensure()
    whole = node.run("nft", "list", "ruleset")
    node.run("nft", damage)
    assert node.run("nft", "list", "ruleset") != whole
    tables.ensure()
    assert node.run("nft", "list", "ruleset") == whole
    tables.close()


def test_what_others_change_of_their_own_writes_nothing(node: Namespace) -> None:
    with node.entered():
        tables = NotrackTables(ADDRESSES, 53)
    tables.ensure()
    before = node.run("nft", "--handle", "list", "table", "ip", "svcproxy-dns")
    node.run("nft", "add table ip other")
    tables.ensure()
    assert node.run("nft", "--handle", "list", "table", "ip", "svcproxy-dns") == before
    tables.close()
