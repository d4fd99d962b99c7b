# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in whatever order, the builder's table is the one that the whole store gives."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.frontends.buffer import DeltaBuffer
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.frontends.table import FrontendTable
from svcproxy.model import Changes, Endpoint, EndpointSlice, NamespacedName, Service, Store, Touched
from tests.frontends.oracle import from_scratch
from tests.frontends.world import (
    CLUSTER_IP,
    DROP,
    FILTERED,
    N1,
    P1,
    REJECT,
    VIP,
    World,
    endpoint,
    load_balancer,
    ready,
    service,
    slice_of,
)

NAMES = st.sampled_from(["s", "t"])
LIKELY = 6
"""How much likelier the ordinary is than the odd, so that most examples do something."""
IPS = st.sampled_from(["10.244.1.1", "10.244.2.1"] * LIKELY + ["fd00:244::1:1", "bad", "::ffff:10.244.1.1"])
POLICY = st.sampled_from([None, "Cluster", "Local"])
CONDITION = st.sampled_from([None, True, False])
HINTS = st.lists(st.sampled_from(["n1", "n2"]), max_size=1), st.lists(st.sampled_from(["z1", "z2"]), max_size=2)


@st.composite
def ports(draw: st.DrawFn) -> list[dict[str, object]]:
    """One or two ports that may want the same number."""
    names = draw(st.lists(st.sampled_from(["http", "alt", ""]), min_size=1, max_size=2, unique=True))
    return [
        {
            "name": name,
            "port": draw(st.sampled_from([80, 81] * LIKELY + [0])),
            "protocol": draw(st.sampled_from(["TCP"] * LIKELY + ["UDP"])),
            "nodePort": draw(st.sampled_from([0, 30080])),
        }
        for name in names
    ]


@st.composite
def services(draw: st.DrawFn) -> Service:
    cluster_ips = draw(
        st.sampled_from(
            [[CLUSTER_IP], ["10.96.0.51"], [CLUSTER_IP, "fd00:96::50"]] * LIKELY + [["fd00:96::51"], ["None"], ["junk"]]
        )
    )
    return service(
        draw(NAMES),
        created=draw(st.sampled_from([None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
        labels=draw(st.sampled_from([None] * LIKELY + [{"service.kubernetes.io/service-proxy-name": "x"}])),
        ingress=draw(st.sampled_from([[], [{"ip": VIP}], [{"ip": VIP, "ipMode": "Proxy"}]])),
        clusterIP=cluster_ips[0],
        clusterIPs=cluster_ips,
        type=draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"] * LIKELY + ["ExternalName"])),
        ports=draw(ports()),
        externalIPs=draw(st.sampled_from([None, [VIP], [CLUSTER_IP], ["198.51.100.9", "bad"]])),
        internalTrafficPolicy=draw(POLICY),
        externalTrafficPolicy=draw(POLICY),
        sessionAffinity=draw(st.sampled_from([None, "ClientIP"])),
        healthCheckNodePort=draw(st.sampled_from([0, 32000, 32001])),
        loadBalancerSourceRanges=draw(st.sampled_from([None, ["192.0.2.0/24"], ["2001:db8::/64", "bad"]])),
    )


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    return endpoint(
        draw(IPS),
        draw(st.sampled_from(["n1", "n2"])),
        ready=draw(CONDITION),
        serving=draw(CONDITION),
        terminating=draw(CONDITION),
        nodes=draw(HINTS[0]),
        zones=draw(HINTS[1]),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    return slice_of(
        *draw(st.lists(endpoints(), max_size=4)),
        name=draw(st.sampled_from(["s-1", "s-2", "s-3"])),
        of=draw(st.sampled_from(["s", "t"] * LIKELY + [None])),
        family=draw(st.sampled_from(["IPv4"] * LIKELY + ["IPv6", "FQDN"])),
        trigger=draw(st.sampled_from([None, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z"])),
        ports=draw(
            st.just([{"name": name, "port": 8080} for name in ("http", "alt")])
            | st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["http", "alt", "", None]), "port": st.sampled_from([8080, 9090, None])},
                    optional={"protocol": st.sampled_from(["TCP", "UDP"])},
                ),
                max_size=2,
            )
        ),
    )


NODES = st.builds(
    NodeView,
    st.sampled_from(["n1", "n2"]),
    st.sampled_from(["z1", "z2", None]),
    st.sampled_from([N1.addresses, frozenset({"192.0.2.11", "10.9.9.9"})]),
    st.sampled_from([(), ("192.0.2.11",), ("198.18.0.1", "2001:db8::11")]),
)
Step = Callable[[World], object]
STEPS = st.one_of(
    st.lists(st.one_of(services(), slices()), min_size=1, max_size=4).map(lambda objects: lambda w: w.apply(*objects)),
    NAMES.map(lambda name: lambda w: w.remove(Service, name)),
    st.sampled_from(["s-1", "s-2", "s-3"]).map(lambda name: lambda w: w.remove(EndpointSlice, name)),
    NODES.map(lambda node: lambda w: w.move(node)),
)
OPTIONS = st.sampled_from([FrontendOptions(), FrontendOptions(("all",), external_ip_cidrs=("198.51.100.0/29",))])


def everything(store: Store) -> Touched:
    return Touched(
        services=[(None, s) for s in store.services.values()],
        slices=[
            change
            for piece in store.slices.values()
            if piece.service is not None
            for change in Store().apply(Changes.of(EndpointSlice, [piece])).slices
        ],
    )


@given(st.lists(STEPS, max_size=12), OPTIONS)
def test_incremental_equals_from_scratch(steps: list[Step], options: FrontendOptions) -> None:
    world = World(options=options)
    for step in steps:
        step(world)
        table, conflicts, gauge = from_scratch(world.store, world.node, options)
        assert world.table == table
        assert world.builder.conflicts == conflicts
        assert world.builder.no_local_endpoints == gauge
    fresh = FrontendBuilder(world.store, world.node, options)
    fresh.update(everything(world.store))
    assert fresh.table == world.table
    assert fresh.problems == world.builder.problems
    assert fresh.conflicts == world.builder.conflicts


@given(st.lists(STEPS, min_size=2, max_size=8))
def test_deltas_merge_and_none_touches_what_stays(steps: list[Step]) -> None:
    world = World()
    start = world.table.copy()
    total = DeltaBuffer()
    for step in steps:
        before = world.table.copy()
        update = step(world)
        delta = update.delta  # type: ignore[attr-defined]  # every step returns an Update
        for change in delta.backends:
            stays = before.backends.get(change.key, set()) & world.table.backends.get(change.key, set())
            assert not stays & (set(change.added) | set(change.removed))
        total.put(delta)
    start.apply(total.take())
    assert start == world.table


@given(st.lists(st.one_of(services(), slices()), max_size=8), st.data())
def test_how_changes_are_grouped_and_repeated_does_not_matter(
    objects: list[Service | EndpointSlice], data: st.DataObject
) -> None:
    """All are in the store before the builder hears of the first, then it hears of them in any order, some twice."""
    world = World()
    touched = Touched()
    for thing in objects:
        kind: type[Service | EndpointSlice] = type(thing)
        change = world.store.apply(Changes.of(kind, [thing]))
        touched.services += change.services
        touched.slices += change.slices
    parts = [Touched(services=[s]) for s in touched.services] + [Touched(slices=[s]) for s in touched.slices]
    for part in data.draw(st.permutations(parts + parts[:2])):
        world.take(part)
    assert world.table == from_scratch(world.store, world.node, world.options)[0]


def test_nothing_new_is_an_empty_delta() -> None:
    world = World(service(), slice_of(ready("10.244.1.1")))
    update = world.take(everything(world.store))
    assert not update.delta
    assert not update.conflicts


def test_the_first_delta_leads_from_nothing_to_the_table() -> None:
    store = Store()
    store.apply(Changes.of(Service, [service()]))
    builder = FrontendBuilder(store, N1, FrontendOptions())
    table = FrontendTable()
    table.apply(builder.update(everything(store)).delta)
    assert table == builder.table
    assert table.node_port_addresses == {"192.0.2.11", "2001:db8::11"}


def test_an_endpoint_that_moves_to_another_slice_is_in_no_delta() -> None:
    a1, b1 = ready("10.244.1.1"), ready("10.244.2.1")
    world = World(service(), slice_of(a1, b1))
    update = world.apply(slice_of(b1), slice_of(a1, name="s-2"))
    assert not update.delta
    update = world.apply(slice_of(a1, b1), slice_of(name="s-2"))
    assert not update.delta


def test_the_node_gets_another_address() -> None:
    """The Service's own VIP is admitted only while a source range holds an address of the node."""
    world = World(load_balancer(loadBalancerSourceRanges=["192.0.2.0/24"]), slice_of(ready("10.244.1.1")))
    assert world.meets(VIP, VIP) == {"10.244.1.1:8080"}
    world.move(NodeView("n1", "z1", N1.addresses, ("198.18.0.1",)))
    assert world.meets(VIP, VIP) == FILTERED
    world.move(N1)
    assert world.meets(VIP, VIP) == {"10.244.1.1:8080"}


def test_the_node_gets_another_name_and_zone() -> None:
    hinted = slice_of(ready("10.244.1.1", zones=["z1"]), ready("10.244.2.1", zones=["z2"]))
    world = World(service(), hinted)
    assert world.meets(P1, CLUSTER_IP) == {"10.244.1.1:8080"}
    update = world.move(NodeView("n2", "z2", N1.addresses, N1.primary_addresses))
    assert world.meets(P1, CLUSTER_IP) == {"10.244.2.1:8080"}
    assert not update.delta.frontends


def test_another_name_may_leave_nothing_usable() -> None:
    """Of two entries for one address the local one counts: it is not serving, and the other one is elsewhere."""
    gone = endpoint("10.244.1.1", "n2", ready=False, serving=False, terminating=True)
    drains = endpoint("10.244.1.1", "n3", ready=False, serving=True, terminating=True)
    world = World(service(internalTrafficPolicy="Local"), slice_of(gone), slice_of(drains, name="s-2"))
    assert world.meets(P1, CLUSTER_IP) is DROP
    world.move(NodeView("n2", "z1", N1.addresses, N1.primary_addresses))
    assert world.meets(P1, CLUSTER_IP) is REJECT


def test_a_service_that_goes_is_counted_no_more() -> None:
    world = World(service(internalTrafficPolicy="Local"), slice_of(ready("10.244.2.1")))
    assert sum(world.builder.no_local_endpoints.values()) == 1
    world.remove(Service, "s")
    assert sum(world.builder.no_local_endpoints.values()) == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: w.remove(Service, "s"), id="Service"),
        pytest.param(lambda w: w.apply(service(clusterIP="None")), id="becomes headless"),
        pytest.param(lambda w: w.apply(service(type="ExternalName", externalName="x.example")), id="ExternalName"),
    ],
)
def test_nothing_stays_behind(change: Step) -> None:
    world = World(service(), slice_of(ready("10.244.1.1")))
    change(world)
    assert world.table == FrontendTable(node_port_addresses=world.table.node_port_addresses)


def test_a_slice_moves_between_services() -> None:
    world = World(service(), service("t", clusterIP="10.96.0.51"), slice_of(ready("10.244.1.1")))
    world.apply(slice_of(ready("10.244.1.1"), of="t"))
    assert {key.service_port.owner for key in world.table.backends} == {NamespacedName("ns", "t")}
