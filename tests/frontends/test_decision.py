# SPDX-License-Identifier: Apache-2.0
"""Which set serves which packet, and which refusal it meets when that set is empty."""

from typing import Any

import pytest

from svcproxy.frontends.decision import SourceKind, decide, source_kind
from svcproxy.frontends.keys import Refusal, Scope
from svcproxy.model import EndpointSlice
from tests.frontends.world import N1, POD_CIDRS, World, load_balancer, ready, slice_of

POD, NODE, OTHER = SourceKind
HERE, THERE, NOWHERE = slice_of(ready("10.244.1.1")), slice_of(ready("10.244.2.1")), slice_of()
CLUSTER, LOCAL = Scope.CLUSTER, Scope.LOCAL
REJECT, DROP = Refusal.REJECT, Refusal.DROP


@pytest.mark.parametrize(
    ("external", "policy", "sources", "here", "there", "nowhere"),
    [
        pytest.param(False, "Cluster", [POD, NODE, OTHER], CLUSTER, CLUSTER, REJECT, id="ClusterIP, iTP Cluster"),
        pytest.param(False, "Local", [POD, NODE, OTHER], LOCAL, DROP, REJECT, id="ClusterIP, iTP Local"),
        pytest.param(True, "Cluster", [POD, NODE, OTHER], CLUSTER, CLUSTER, REJECT, id="external, eTP Cluster"),
        pytest.param(True, "Local", [POD], CLUSTER, CLUSTER, REJECT, id="external, eTP Local, from a pod"),
        pytest.param(True, "Local", [NODE], CLUSTER, CLUSTER, REJECT, id="external, eTP Local, from the node"),
        pytest.param(True, "Local", [OTHER], LOCAL, DROP, REJECT, id="external, eTP Local, from outside"),
    ],
)
def test_decide(
    external: bool,
    policy: str,
    sources: list[SourceKind],
    here: Scope | Refusal,
    there: Scope | Refusal,
    nowhere: Scope | Refusal,
) -> None:
    spec: dict[str, Any] = {"externalTrafficPolicy" if external else "internalTrafficPolicy": policy}
    rows: list[tuple[EndpointSlice, Scope | Refusal]] = [(HERE, here), (THERE, there), (NOWHERE, nowhere)]
    for endpoints, expected in rows:
        world = World(load_balancer(**spec), endpoints)
        frontends = [f for f in world.table.frontends.values() if f.kind.external is external]
        assert len(frontends) == (2 if external else 1)
        for frontend in frontends:
            for source in sources:
                decision = decide(world.table, frontend, source)
                assert (decision if isinstance(decision, Refusal) else decision.scope) == expected


@pytest.mark.parametrize(
    ("ip", "kind"),
    [
        pytest.param("10.244.9.9", POD, id="pod"),
        pytest.param("fd00:244::9", POD, id="pod, IPv6"),
        pytest.param("192.0.2.11", NODE, id="node"),
        pytest.param("127.0.0.1", NODE, id="loopback"),
        pytest.param("192.0.2.12", OTHER, id="another node"),
    ],
)
def test_source_kind(ip: str, kind: SourceKind) -> None:
    assert source_kind(ip, N1, POD_CIDRS) is kind
