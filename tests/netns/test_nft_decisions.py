# SPDX-License-Identifier: Apache-2.0
"""Real clients meet what is decided, whichever way the rules got into the kernel: over netlink, or by the script."""

import json
from collections.abc import Callable, Iterator

import pytest

from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.table import FrontendTable
from svcproxy.model.meta import Family, Protocol
from svcproxy.testing.traffic import SILENCE
from tests.netns.decisions import (
    BY_ADDRESS,
    BY_INTERFACE,
    PROTOCOLS,
    World,
    assert_decides,
    cases,
    every_table,
    load_over_netlink,
    load_script,
    meet,
    world,
)
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

WATCH = """
table inet watch {
    counter rewritten { }
    counter marked { }
    chain last {
        type filter hook postrouting priority 300
        ct status dnat ct direction original counter name rewritten
        meta mark != 0 counter name marked
    }
}
"""

Load = Callable[[Namespace, FrontendTable, Surroundings], None]
"""Gets the rules into a node."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((load_script, BY_ADDRESS), id="script"),
        pytest.param((load_script, BY_INTERFACE), id="script-pods by interface"),
        pytest.param((load_over_netlink, BY_ADDRESS), id="netlink"),
        pytest.param((load_over_netlink, BY_INTERFACE), id="netlink-pods by interface"),
    ],
)
def loaded(request: pytest.FixtureRequest) -> Iterator[World]:
    load: Load
    load, surroundings = request.param
    with world() as made:
        load(made.node, every_table(), surroundings)
        yield made


@pytest.mark.parametrize("kind", SourceKind)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", [pytest.param(each, id=each.label) for each in Family])
async def test_clients_meet_what_is_decided(
    loaded: World, family: Family, protocol: Protocol, kind: SourceKind
) -> None:
    await assert_decides(loaded, every_table(), family, protocol, kind)


async def test_no_mark_leaves_the_node(loaded: World) -> None:
    loaded.node.run("nft", "-f", "-", text=WATCH)
    for family in Family:
        for case in cases(every_table(), family, Protocol.UDP, SourceKind.OTHER):
            await meet(loaded, case, flows=1, patience=SILENCE)
    counted = json.loads(loaded.node.run("nft", "-j", "list", "counters"))["nftables"]
    packets = {each["counter"]["name"]: each["counter"]["packets"] for each in counted if "counter" in each}
    assert packets["rewritten"] > 0
    assert packets["marked"] == 0


def test_what_is_loaded_can_be_listed(loaded: World) -> None:
    assert loaded.node.run("nft", "list", "ruleset").count("table ip") == len(Family)
    assert json.loads(loaded.node.run("nft", "-j", "list", "ruleset"))["nftables"]
