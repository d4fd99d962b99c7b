# SPDX-License-Identifier: Apache-2.0
"""The laws of deltas."""

import hypothesis.strategies as st
from hypothesis import given

from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKind,
    HealthCheck,
    NodePort,
    Scope,
    ServicePortName,
)
from svcproxy.frontends.table import FrontendTable, diff
from svcproxy.model import NamespacedName
from svcproxy.model.meta import Family, Protocol

PORTS = st.builds(ServicePortName, st.just("ns"), st.sampled_from("st"), st.just("http"), st.just(Protocol.TCP))
FAMILIES = st.sampled_from(Family)
KEYS = st.one_of(
    st.builds(Address, st.sampled_from(["10.96.0.1", "fd00::1"]), st.just(Protocol.TCP), st.integers(80, 81)),
    st.builds(NodePort, FAMILIES, st.just(Protocol.TCP), st.integers(30000, 30001)),
)
FRONTENDS = st.builds(Frontend, KEYS, PORTS, st.sampled_from(FrontendKind), affinity_timeout=st.none() | st.just(60))
SET_KEYS = st.builds(BackendSetKey, PORTS, FAMILIES, st.sampled_from(Scope))
BACKENDS = st.builds(Backend, st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.integers(80, 82))
SERVICES = st.builds(NamespacedName, st.just("ns"), st.sampled_from("st"))
TABLES = st.builds(
    FrontendTable,
    st.lists(FRONTENDS, max_size=6).map(lambda frontends: {f.key: f for f in frontends}),
    st.dictionaries(SET_KEYS, st.sets(BACKENDS, min_size=1), max_size=4),
    st.frozensets(st.sampled_from(["192.0.2.1", "2001:db8::1"])),
    st.lists(st.builds(HealthCheck, SERVICES, st.just(32000), st.integers(0, 2))).map(
        lambda checks: {c.service: c for c in checks}
    ),
)


@given(TABLES, TABLES)
def test_applying_the_difference_leads_there(a: FrontendTable, b: FrontendTable) -> None:
    delta, copy = diff(a, b), a.copy()
    copy.apply(delta)
    assert copy == b
    copy.apply(delta)
    assert copy == b


@given(TABLES)
def test_no_difference_is_no_delta(a: FrontendTable) -> None:
    assert not diff(a, a.copy())


@given(TABLES, TABLES)
def test_a_backend_that_stays_is_in_no_delta(a: FrontendTable, b: FrontendTable) -> None:
    for change in diff(a, b).backends:
        before, after = a.backends.get(change.key, set()), b.backends.get(change.key, set())
        assert not (set(change.added) | set(change.removed)) & (before & after)


@given(TABLES)
def test_a_copy_is_independent(a: FrontendTable) -> None:
    copy = a.copy()
    assert copy == a
    copy.apply(diff(copy, FrontendTable()))
    assert copy == FrontendTable()
