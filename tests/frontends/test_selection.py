# SPDX-License-Identifier: Apache-2.0
"""The rule of selection, read from the list of endpoints and kept by the builder: the same rows for both."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.frontends.keys import Backend, Scope
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.offers import candidates
from svcproxy.frontends.selection import (
    Candidate,
    Selection,
    choose,
    deduplicate,
    select,
)
from svcproxy.model import Endpoint
from svcproxy.model.meta import Family
from tests.frontends.world import World, draining, endpoint, ready, service, slice_of

N1_Z1 = NodeView("n1", "z1")
N4_Z1 = NodeView("n4", "z1")
N5_Z3 = NodeView("n5", "z3")
NO_ZONE = NodeView("n1", None)

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def not_ready(ip: str, node: str) -> Endpoint:
    return endpoint(ip, node, ready=False, serving=False, terminating=False)


def sets(node: NodeView, endpoints: list[Endpoint], **policies: Any) -> tuple[set[str], set[str], bool]:
    """Addresses of the cluster and the local set, and whether any endpoint is usable; both ways of selecting agree."""
    piece = slice_of(*endpoints)
    # A NodePort makes the Service use its cluster set even where internalTrafficPolicy is Local.
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    world = World(service(type="NodePort", ports=ports, **policies), piece, node=node)
    frontend = next(iter(world.table.frontends.values()))
    found = candidates(piece, frontend.service_port, Family.IPV4)
    expected = select(found, node, uses_cluster=True, uses_local=bool(policies))
    kept = [frozenset(world.table.backends_of(frontend, scope)) for scope in Scope]
    local_frontends = [f for f in world.table.frontends.values() if f.policy == "Local"]
    assert Selection(kept[0], kept[1], expected.has_any) == expected
    assert all((f.when_local_empty == "drop") is expected.has_any for f in local_frontends)
    return {b.ip for b in expected.cluster}, {b.ip for b in expected.local}, expected.has_any


@pytest.mark.parametrize(
    ("node", "endpoints", "cluster"),
    [
        pytest.param(
            N1_Z1,
            [ready(A, "n1", nodes=["n1"]), ready(B, "n2", nodes=["n2", "n1"]), ready(C, "n3", nodes=["n3"])],
            {A, B},
            id="3.3-1 all node-hinted, one for n1",
        ),
        pytest.param(
            N1_Z1,
            [
                ready(A, "n2", nodes=["n2"], zones=["z1"]),
                ready(B, "n3", nodes=["n3"], zones=["z2"]),
                ready(C, "n3", nodes=["n3"], zones=["z3", "z1"]),
            ],
            {A, C},
            id="3.3-2 all node- and zone-hinted, none for n1, some for z1",
        ),
        pytest.param(
            N1_Z1,
            [ready(A, "n2", zones=["z2"]), ready(B, "n3", zones=["z3"])],
            {A, B},
            id="3.3-3 all zone-hinted, none for z1",
        ),
        pytest.param(
            N1_Z1,
            [ready(A, "n1", zones=["z1"]), ready(B, "n2", zones=["z2"]), ready(C, "n3")],
            {A, B, C},
            id="3.3-4 all zone-hinted but one",
        ),
        pytest.param(
            N1_Z1,
            [draining(A, "n1", zones=["z1"]), draining(B, "n2", zones=["z2"])],
            {A, B},
            id="3.3-5 none ready, some terminating",
        ),
        pytest.param(N1_Z1, [not_ready(A, "n1")], set(), id="3.3-6 none ready, none terminating"),
        pytest.param(
            N1_Z1,
            [ready(A, "n1", zones=["z1"]), ready(B, "n2", zones=["z1"]), ready(C, "n3", zones=["z2"])],
            {A, B},
            id="E2 two of three in the zone",
        ),
        pytest.param(
            N1_Z1,
            [not_ready(A, "n1"), not_ready(B, "n2"), ready(C, "n3", zones=["z2"])],
            {C},
            id="E2 those of the zone not ready any more",
        ),
        pytest.param(
            N1_Z1,
            [ready(A, "n1"), ready(B, "n2", zones=["z2"]), ready(C, "n3", zones=["z3"])],
            {A, B, C},
            id="E1 one without a hint",
        ),
        pytest.param(NO_ZONE, [ready(A, "n1", zones=["z1"])], {A}, id="a node without a zone matches none"),
        pytest.param(
            N1_Z1,
            [ready(A, "n1", nodes=["n1"]), ready(B, "n2", zones=["z1"])],
            {A, B},
            id="hints of different levels do not add up",
        ),
        pytest.param(
            N1_Z1,
            [ready(A, "n1", zones=["z1"]), ready(B, "n2", zones=["z2"]), draining(C, "n3")],
            {A},
            id="terminating endpoints have no say in the mode",
        ),
    ],
)
def test_cluster_set(node: NodeView, endpoints: list[Endpoint], cluster: set[str]) -> None:
    assert sets(node, endpoints) == (cluster, set(), bool(cluster))


@pytest.mark.parametrize(
    ("node", "cluster"),
    [
        pytest.param(N1_Z1, {A}, id="E3 the node itself"),
        pytest.param(N4_Z1, {A, B}, id="E3 another node of the zone"),
        pytest.param(N5_Z3, {A, B, C}, id="E3 a zone without endpoints"),
    ],
)
def test_prefer_same_node(node: NodeView, cluster: set[str]) -> None:
    endpoints = [
        ready(A, "n1", nodes=["n1"], zones=["z1"]),
        ready(B, "n2", nodes=["n2"], zones=["z1"]),
        ready(C, "n3", nodes=["n3"], zones=["z2"]),
    ]
    assert sets(node, endpoints)[0] == cluster


LOCAL_E = {"externalTrafficPolicy": "Local"}
LOCAL_I = {"internalTrafficPolicy": "Local"}


@pytest.mark.parametrize(
    ("endpoints", "policies", "expected"),
    [
        pytest.param([draining(A, "n1"), ready(B, "n2")], LOCAL_E, ({B}, {A}, True), id="E4 rolling update"),
        pytest.param([ready(B, "n2")], LOCAL_I, ({B}, set(), True), id="E5 elsewhere only"),
        pytest.param([], LOCAL_I, (set(), set(), False), id="E5 nothing left"),
        pytest.param([ready(A, "n1"), ready(B, "n2")], LOCAL_I, ({A, B}, {A}, True), id="E6 both sets in one record"),
        pytest.param(
            [endpoint(A, "n1", ready=False, serving=True, terminating=False)],
            LOCAL_E,
            (set(), set(), False),
            id="E7 serving, not ready and not terminating",
        ),
        pytest.param(
            [ready(A, "n1", zones=["z1"]), draining(B, "n1")], LOCAL_E, ({A}, {A}, True), id="E8 a local one drains"
        ),
        pytest.param(
            [ready(A, "n1", zones=["z2"]), ready(B, "n2", zones=["z1"])],
            LOCAL_E,
            ({B}, {A}, True),
            id="Local ignores hints",
        ),
        pytest.param([draining(B, "n2")], LOCAL_E, ({B}, set(), True), id="terminating ones elsewhere count as any"),
    ],
)
def test_both_sets(
    endpoints: list[Endpoint], policies: dict[str, str], expected: tuple[set[str], set[str], bool]
) -> None:
    assert sets(N1_Z1, endpoints, **policies) == expected


BACKEND = Backend("10.0.0.1", 8080)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        pytest.param(
            Candidate(BACKEND, terminating=True), Candidate(BACKEND, ready=False), id="not terminating before ready"
        ),
        pytest.param(Candidate(BACKEND, ready=False, node_name="n1"), Candidate(BACKEND), id="ready before local"),
        pytest.param(
            Candidate(BACKEND, trigger="2026-01-02"),
            Candidate(BACKEND, node_name="n1", trigger="2026-01-01"),
            id="local before newest",
        ),
        pytest.param(
            Candidate(BACKEND, for_zones=frozenset({"z1"}), trigger="2026-01-01T00:00:00"),
            Candidate(BACKEND, trigger="2026-01-01T00:00:00.5"),
            id="newest before anything else",
        ),
    ],
)
def test_duplicates(worse: Candidate, better: Candidate) -> None:
    for order in ([worse, better], [better, worse]):
        assert deduplicate(order, N1_Z1) == {BACKEND: better}


def test_the_trigger_time_of_a_slice_decides_between_equals() -> None:
    """s-1 says zone z2, s-2 says z1 for the same endpoint; the newer slice is right, also when it becomes the newer."""
    hinted_away, hinted_here = ready(A, "n1", zones=["z2"]), ready(A, "n1", zones=["z1"])
    other = slice_of(ready(B, "n2", zones=["z2"]), name="s-3")
    first, second, third = (f"2026-01-01T00:00:00{fraction}Z" for fraction in ("", ".5", ".75"))
    world = World(
        service(),
        other,
        slice_of(hinted_away, trigger=first),
        slice_of(hinted_here, name="s-2", trigger=second),
        node=N1_Z1,
    )
    assert world.meets("10.244.1.9", "10.96.0.50") == {f"{A}:8080"}
    world.apply(slice_of(hinted_away, trigger=third))
    assert world.meets("10.244.1.9", "10.96.0.50") == {f"{A}:8080", f"{B}:8080"}


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.builds(Backend, st.sampled_from([A, B, C]), st.just(80)),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node_name=st.sampled_from(["n1", "n2", None]),
        for_nodes=st.frozensets(st.sampled_from(["n1", "n2"])),
        for_zones=st.frozensets(st.sampled_from(["z1", "z2"])),
        trigger=st.sampled_from(["", "2026-01-01"]),
    ),
    max_size=6,
)


@given(CANDIDATES, st.sampled_from([N1_Z1, NO_ZONE]), st.booleans(), st.booleans())
def test_the_two_forms_of_the_rule_agree(found: list[Candidate], node: NodeView, cluster: bool, local: bool) -> None:
    endpoints = deduplicate(found, node)
    present = {candidate.traits(node): 1 for candidate in endpoints.values()}
    choice = choose(present, cluster, local)
    chosen = [
        frozenset(b for b, e in endpoints.items() if e.traits(node) & mask == value)
        for mask, value in (choice.cluster, choice.local)
    ]
    expected = select(found, node, uses_cluster=cluster, uses_local=local)
    assert (*chosen, choice.has_any) == expected


@given(CANDIDATES, st.randoms())
def test_the_order_of_endpoints_never_matters(found: list[Candidate], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    one, other = (select(order, N1_Z1, uses_cluster=True, uses_local=True) for order in (found, shuffled))
    assert one == other
