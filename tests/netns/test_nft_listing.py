# SPDX-License-Identifier: Apache-2.0
"""What nft 1.0.6 says of every rule there can be: a change of meaning is a change of `listings/`. Case T49.

To write them anew: `SVCPROXY_RECORD=1 pytest tests/netns/test_nft_listing.py`, then read the difference.
"""

import json
import os
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables import tables
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.dataplane.nftables.messages import TableFlag
from svcproxy.dataplane.nftables.operations import BackendChain, Form
from svcproxy.dataplane.nftables.transaction import Committed, Kernel
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family
from tests.netns.namespaces import Namespace

pytestmark = pytest.mark.netns

LISTINGS = Path(__file__).parent / "listings"
CHAINS = [BackendChain(form, scope, 3, timeout) for form in Form for scope in Scope for timeout in (None, 10800)]
BY_ADDRESS = Surroundings(pod_cidrs=("10.244.0.0/16", "fd44::/64"), pod_interfaces=("cali*", "cni0"))
EVERYTHING = Surroundings(masquerade_all=True)


@pytest.mark.parametrize("family", [pytest.param(family, id=family.label) for family in Family])
@pytest.mark.parametrize(
    ("name", "surroundings"),
    [pytest.param("by-address", BY_ADDRESS, id="pods are known"), pytest.param("all", EVERYTHING, id="masquerade all")],
)
def test_rules_are_listed_as_they_are_meant(name: str, surroundings: Surroundings, family: Family) -> None:
    with Namespace() as node:
        with node.entered(), Kernel() as kernel:
            made = [*tables.create(family, TableFlag.NONE), *tables.rules(family, surroundings)]
            made += [each for chain in CHAINS for each in tables.backend_chain(family, chain)]
            assert kernel.commit(made) == Committed()
        listed = node.run("nft", "list", "ruleset")
        assert json.loads(node.run("nft", "-j", "list", "ruleset"))
    golden = LISTINGS / f"{name}.{'ip' if family is Family.IPV4 else 'ip6'}.nft"
    if os.environ.get("SVCPROXY_RECORD"):
        golden.write_text(listed)
    assert listed == golden.read_text()
