# SPDX-License-Identifier: Apache-2.0
"""A buffer of deltas does what the deltas did."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.frontends.buffer import DeltaBuffer
from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKind,
    HealthCheck,
    Scope,
    ServicePortName,
)
from svcproxy.frontends.table import FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, NamespacedName, Protocol

PORTS = [ServicePortName("ns", f"s{number}", "", Protocol.TCP) for number in range(3)]
backends = st.sets(st.builds(Backend, st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.integers(80, 81)), min_size=1)
tables = st.builds(
    FrontendTable,
    frontends=st.dictionaries(st.integers(0, 2), st.integers(1, 2)).map(
        lambda chosen: {
            (key := Address("10.96.0.1", Protocol.TCP, port)): Frontend(
                key, PORTS[port], FrontendKind.CLUSTER_IP, affinity_timeout=timeout
            )
            for port, timeout in chosen.items()
        }
    ),
    backends=st.dictionaries(
        st.sampled_from([BackendSetKey(port, Family.IPV4, scope) for port in PORTS for scope in Scope]), backends
    ),
    node_port_addresses=st.frozensets(st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    health_checks=st.dictionaries(st.integers(0, 2), st.integers(0, 2)).map(
        lambda chosen: {
            (key := NamespacedName("ns", f"s{number}")): HealthCheck(key, 30000, count)
            for number, count in chosen.items()
        }
    ),
)


@given(st.lists(tables, min_size=1, max_size=6))
def test_a_buffer_takes_a_table_where_its_deltas_take_it(path: list[FrontendTable]) -> None:
    buffer, start = DeltaBuffer(), path[0].copy()
    for old, new in pairwise(path):
        buffer.put(diff(old, new))
    start.apply(buffer.take())
    assert start == path[-1]
    assert not buffer
    assert buffer.take() == FrontendDelta()


@given(tables, tables)
def test_no_key_is_both_applied_and_removed(old: FrontendTable, new: FrontendTable) -> None:
    buffer = DeltaBuffer()
    for delta in (diff(FrontendTable(), old), diff(old, new), diff(new, old)):
        buffer.put(delta)
    taken = buffer.take()
    assert not {frontend.key for frontend in taken.frontends} & set(taken.removed)
    assert all(not set(change.added) & set(change.removed) for change in taken.backends)
