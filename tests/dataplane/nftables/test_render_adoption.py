# SPDX-License-Identifier: Apache-2.0
"""Taking over a kernel: what is right stays, what is wrong is put right, and no look-up misses on the way."""

import hypothesis.strategies as st
from hypothesis import given, settings

from svcproxy.dataplane.nftables.adoption import Place, adopt, compare
from svcproxy.dataplane.nftables.layout import SETS, Surroundings
from svcproxy.dataplane.nftables.operations import Data, SetName
from svcproxy.dataplane.nftables.render import Renderer
from svcproxy.frontends.keys import Frontend, FrontendKind, Scope
from svcproxy.frontends.table import FrontendTable, diff
from svcproxy.model.meta import Family
from tests.dataplane.nftables.kernel import Kernel
from tests.dataplane.nftables.test_render import (
    FIRST,
    NEW,
    NODE_IPS,
    PORTS,
    SURROUNDINGS,
    address,
    assert_decides,
    assert_keeps_account,
    assert_never_misses,
    change,
    kernel,
    pinned,
    started,
    table_of,
    tables,
)


def contents(simulated: Kernel) -> dict[Place, Data]:
    """What reading the kernel gives."""
    return {
        (family, name, key): data
        for (family, name), elements in simulated.sets.items()
        if name is not SetName.AFF
        for key, data in elements.items()
    }


def brought_to(*steps: FrontendTable) -> Kernel:
    """A kernel with a history."""
    renderer, simulated, old = Renderer(), kernel(), FrontendTable()
    for new in steps:
        for operations in renderer.render(diff(old, new)).phases.in_order():
            simulated.run(operations)
        old = new
    return simulated


@settings(max_examples=100, deadline=None)
@given(st.lists(tables(), max_size=2), tables())
def test_what_is_right_stays(history: list[FrontendTable], table: FrontendTable) -> None:
    simulated = brought_to(*history, table)
    renderer, phases = adopt(table, contents(simulated), simulated.chains, SURROUNDINGS)
    assert not phases
    assert_keeps_account(simulated, renderer)


@settings(max_examples=100, deadline=None)
@given(st.lists(tables(), max_size=2), tables(), tables())
def test_a_restart_takes_over_without_a_miss(
    history: list[FrontendTable], old: FrontendTable, new: FrontendTable
) -> None:
    simulated = brought_to(*history, old)
    renderer, phases = adopt(new, contents(simulated), simulated.chains, SURROUNDINGS)
    assert_never_misses(simulated, phases, old, new)
    assert_decides(simulated, new)
    assert_keeps_account(simulated, renderer)
    assert_never_misses(simulated, renderer.render(diff(new, old)).phases, new, old)
    assert_decides(simulated, old)


@settings(max_examples=100, deadline=None)
@given(tables(), tables(), st.data())
def test_a_damaged_kernel_is_repaired(old: FrontendTable, table: FrontendTable, data: st.DataObject) -> None:
    simulated = brought_to(old)
    foreign = contents(brought_to(table))
    for place in data.draw(st.lists(st.sampled_from(sorted(foreign, key=str)), max_size=20)) if foreign else ():
        family, name, key = place
        elements = simulated.sets[family, name]
        if key in elements and elements[key] != foreign[place] and not SETS[name].verdicts:
            elements[key] = foreign[place]
        elif key in elements:
            del elements[key]
        elif not SETS[name].interval:
            elements[key] = foreign[place]
    wanted = data.draw(st.sampled_from([old, table]))
    renderer, phases = adopt(wanted, contents(simulated), simulated.chains, SURROUNDINGS)
    for operations in phases.in_order():
        simulated.run(operations)
    assert_decides(simulated, wanted)
    assert_keeps_account(simulated, renderer)


def test_an_empty_kernel_is_filled() -> None:
    table = table_of(address(), cluster=3)
    renderer, phases = adopt(table, {}, (), SURROUNDINGS)
    simulated = Kernel(SURROUNDINGS, frozenset(NODE_IPS.values()))
    simulated.sets.clear()
    for operations in phases.in_order():
        simulated.run(operations)
    assert_decides(simulated, table)
    assert_keeps_account(simulated, renderer)


def test_one_backend_changed_meanwhile_costs_one_backend() -> None:
    frontend = address()
    table = table_of(frontend, cluster=200)
    _, simulated = started(table)
    table.apply(change(frontend, added=[NEW], removed=[FIRST]))
    _, phases = adopt(table, contents(simulated), simulated.chains, SURROUNDINGS)
    assert [len(phase) for phase in phases.in_order()] == [2, 0, 1]


def test_clients_keep_their_backends() -> None:
    frontend = address(affinity_timeout=60)
    table = table_of(frontend, cluster=4)
    _, simulated = started(table)
    bound = pinned(simulated, frontend, "203.0.113.9", 2)
    assert bound != FIRST
    table.apply(change(frontend, added=[NEW], removed=[FIRST]))
    other = Frontend(address(port=81).key, PORTS[1], FrontendKind.CLUSTER_IP, affinity_timeout=60)
    table.frontends[other.key] = other
    table.backends[other.backend_set(Scope.CLUSTER)] = {FIRST}
    renderer, phases = adopt(table, contents(simulated), simulated.chains, SURROUNDINGS)
    for operations in phases.in_order():
        simulated.run(operations)
    assert {pinned(simulated, frontend, "203.0.113.9", slot) for slot in range(4)} == {bound}
    assert pinned(simulated, other, "203.0.113.9", 0) == FIRST
    assert_keeps_account(simulated, renderer)


def test_other_surroundings_are_taken_over() -> None:
    simulated = brought_to(table_of(address(), cluster=3))
    wider = Surroundings(pod_cidrs=("10.244.0.0/14",), service_cidrs=SURROUNDINGS.service_cidrs)
    _, phases = adopt(table_of(address(), cluster=3), contents(simulated), simulated.chains, wider)
    for operations in phases.in_order():
        simulated.run(operations)
    assert list(simulated.sets[Family.IPV4, SetName.POD_CIDR]) == [("10.244.0.0/14",)]
    assert not simulated.sets[Family.IPV6, SetName.POD_CIDR]


def test_what_rules_fill_is_left_alone() -> None:
    assert not compare({(Family.IPV4, SetName.AFF, ("203.0.113.9", 7)): (7,)}, {})
