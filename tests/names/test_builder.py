# SPDX-License-Identifier: Apache-2.0
import gc
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model import AddressType, Changes, EndpointSlice, Namespace, NamespacedName, Object, Pod, Service, Store
from svcproxy.model.meta import Protocol
from svcproxy.names.builder import PROBLEMS_PER_OBJECT, NameBuilder, RecordDelta
from svcproxy.names.records import (
    EndpointRecord,
    NamedPort,
    NamespaceRecord,
    NodePodRecord,
    PodRecord,
    Record,
    ServiceRecord,
)
from tests.names import world
from tests.names.world import endpoint, endpoint_slice, external, namespace, pod, port, service

HTTP = (NamedPort("http", Protocol.TCP, 80),)


def store_of(*objects: Object) -> Store:
    store = Store()
    for each in objects:
        store.apply(Changes(type(each), (each,)))
    return store


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        pytest.param(namespace("shop"), {NamespaceRecord("shop")}, id="namespace"),
        pytest.param(
            service("web", "10.96.0.1", ports=[port(443, "https"), port(9000)]),
            {
                ServiceRecord(
                    "shop",
                    "web",
                    ("10.96.0.1",),
                    (NamedPort("", Protocol.TCP, 9000), NamedPort("https", Protocol.TCP, 443)),
                )
            },
            id="ClusterIP, ports sorted, the unnamed one kept",
        ),
        pytest.param(
            service("dual", "10.96.0.2", "FD00:96::2"),
            {ServiceRecord("shop", "dual", ("10.96.0.2", "fd00:96::2"))},
            id="dual stack, canonical",
        ),
        pytest.param(service("hl", "None"), {ServiceRecord("shop", "hl")}, id="headless"),
        pytest.param(
            service("soon"), {ServiceRecord("shop", "soon", address_pending=True)}, id="B12: no address given out yet"
        ),
        pytest.param(
            external("ext", "WWW.example.com.", [port(80, "http")]),
            {ServiceRecord("shop", "ext", external_name="www.example.com")},
            id="ExternalName, canonical, without ports",
        ),
        pytest.param(external("ipname", "192.0.2.7"), set(), id="A46: ExternalName that is an address"),
        pytest.param(external("none", ""), set(), id="ExternalName that is empty"),
        pytest.param(service("a.b", "10.96.0.1"), set(), id="Service whose name is no label"),
        pytest.param(
            endpoint_slice("s", "web", endpoint("10.0.0.1", hostname="web-a", pod="p1"), ports=[("http", 80)]),
            {EndpointRecord("shop", "web", "10.0.0.1", "web-a", "p1", HTTP)},
            id="endpoint",
        ),
        pytest.param(
            endpoint_slice(
                "s",
                "web",
                endpoint("10.0.0.1"),
                endpoint("10.0.0.2", ready=None),
                endpoint("10.0.0.3", ready=False, serving=True),
            ),
            {EndpointRecord("shop", "web", "10.0.0.1"), EndpointRecord("shop", "web", "10.0.0.2")},
            id="A24: ready or null, serving is not read",
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("10.0.0.1", "10.0.0.9")),
            {EndpointRecord("shop", "web", "10.0.0.1")},
            id="the first address alone",
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("10.0.0.1"), ports=[("http", 80), (None, 81), ("any", None)]),
            {EndpointRecord("shop", "web", "10.0.0.1", ports=(NamedPort("any", Protocol.TCP, 0), *HTTP))},
            id="ports without a name are left out, those without a number are not",
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("FD00:0::1"), kind=AddressType.IPV6),
            {EndpointRecord("shop", "web", "fd00::1")},
            id="IPv6, canonical",
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("www.example.com"), kind=AddressType.FQDN), set(), id="FQDN slices"
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("10.0.0.1", hostname="Bad_Name")),
            {EndpointRecord("shop", "web", "10.0.0.1")},
            id="hostname that is no label",
        ),
        pytest.param(
            endpoint_slice("s", "web", endpoint("10.0.0.1"), endpoint("fd00::1"), endpoint(), endpoint("x")),
            {EndpointRecord("shop", "web", "10.0.0.1")},
            id="malformed addresses and those of the other family",
        ),
        pytest.param(endpoint_slice("s", "", endpoint("10.0.0.1")), set(), id="slice of no Service"),
        pytest.param(
            pod("p", "10.0.0.1", "FD00:0::1"),
            {PodRecord("shop", "10.0.0.1"), PodRecord("shop", "fd00::1")},
            id="Pod, every family, canonical",
        ),
        pytest.param(pod("p"), set(), id="Pod without an address"),
        pytest.param(pod("p", "x"), set(), id="Pod whose address is none"),
        pytest.param(pod("p", "10.0.0.1", phase="Succeeded"), set(), id="Pod that has ended"),
        pytest.param(pod("p", "10.0.0.1", phase="Failed"), set(), id="Pod that has failed"),
        pytest.param(pod("p", "10.0.0.1", deleted="2026-01-01T00:00:00Z"), set(), id="Pod about to end"),
    ],
)
def test_records(held: Object, expected: set[Record]) -> None:
    assert set(NameBuilder(store_of(held)).records()) == expected


@pytest.mark.parametrize(
    ("held", "paths"),
    [
        pytest.param(external("ipname", "192.0.2.7"), ["spec.externalName"], id="externalName"),
        pytest.param(service("a.b", "10.96.0.1"), ["metadata.name"], id="name"),
        pytest.param(service("web", "10.96.0.1", "x"), ["spec.clusterIPs"], id="clusterIPs"),
        pytest.param(
            endpoint_slice("s", "web", endpoint("x"), endpoint("10.0.0.1", hostname="B")),
            ["endpoints[].addresses[0]", "endpoints[].hostname"],
            id="addresses and hostname",
        ),
        pytest.param(
            endpoint_slice("s", "web", *[endpoint("x")] * 100),
            ["endpoints[].addresses[0]"] * PROBLEMS_PER_OBJECT,
            id="a bound on those of one object",
        ),
    ],
)
def test_problems_name_the_field_and_end_with_the_object(held: Service | EndpointSlice, paths: list[str]) -> None:
    store = store_of(held)
    builder = NameBuilder(store)
    key = (type(held).__name__, held.key)
    assert [problem.path for problem in builder.problems[key]] == paths
    builder.update(store.apply(Changes(type(held), removed=(held.key,))))
    assert not builder.problems


def test_a_mended_slice_has_no_problems_left() -> None:
    store = store_of(endpoint_slice("s", "web", endpoint("10.0.0.1"), endpoint("x")))
    builder = NameBuilder(store)
    mended = endpoint_slice("s", "web", endpoint("10.0.0.1"), endpoint("10.0.0.2"))
    delta = builder.update(store.apply(Changes(EndpointSlice, (mended,))))
    assert delta == RecordDelta(added=(EndpointRecord("shop", "web", "10.0.0.2"),))
    assert not builder.problems


def test_an_endpoint_that_moves_between_slices_never_goes() -> None:
    moving = endpoint("10.0.0.1")
    store = store_of(endpoint_slice("s1", "web", moving), endpoint_slice("s2", "web"))
    builder = NameBuilder(store)
    moved = (endpoint_slice("s1", "web"), endpoint_slice("s2", "web", moving))
    assert not builder.update(store.apply(Changes(EndpointSlice, moved)))
    assert set(builder.records()) == {EndpointRecord("shop", "web", "10.0.0.1")}


def test_what_two_slices_say_leaves_with_the_last() -> None:
    first, second = endpoint_slice("s1", "web", endpoint("10.0.0.1")), endpoint_slice("s2", "web", endpoint("10.0.0.1"))
    store = store_of(first, second)
    builder = NameBuilder(store)
    record = EndpointRecord("shop", "web", "10.0.0.1")
    assert not builder.update(store.apply(Changes(EndpointSlice, removed=(first.key,))))
    assert builder.update(store.apply(Changes(EndpointSlice, removed=(second.key,)))) == RecordDelta(removed=(record,))


def test_an_address_stays_until_the_last_pod_that_has_it() -> None:
    """Pods on the node's network share its address."""
    first, second = pod("a", "192.0.2.1"), pod("b", "192.0.2.1")
    store = store_of(first, second)
    builder = NameBuilder(store)
    assert not builder.update(store.apply(Changes(Pod, removed=(first.key,))))
    delta = builder.update(store.apply(Changes(Pod, (pod("b", "192.0.2.1", phase="Succeeded"),))))
    assert delta == RecordDelta(removed=(PodRecord("shop", "192.0.2.1"),))


def test_pods_of_the_node_are_known_by_their_names_if_asked_for() -> None:
    held = [
        pod("here", "10.0.0.1", "fd00::1", node="n1"),
        pod("ended", "10.0.0.2", node="n1", phase="Succeeded"),
        pod("host", "192.0.2.1", node="n1", host_network=True),
        pod("elsewhere", "10.0.1.1", node="n2"),
    ]
    expected = {NodePodRecord("shop", "10.0.0.1", "here"), NodePodRecord("shop", "fd00::1", "here")}
    assert set(NameBuilder(store_of(*held), pod_names=False, node_pods="n1").records()) == expected
    assert not set(NameBuilder(store_of(*held), pod_names=False).records())


def test_a_change_of_ports_is_the_old_record_out_and_the_new_one_in() -> None:
    store = store_of(service("web", "10.96.0.1", ports=[port(80)]))
    builder = NameBuilder(store)
    changed = service("web", "10.96.0.1", ports=[port(81)])
    delta = builder.update(store.apply(Changes(Service, (changed,))))
    old, new = (
        ServiceRecord("shop", "web", ("10.96.0.1",), (NamedPort("", Protocol.TCP, number),)) for number in (80, 81)
    )
    assert delta == RecordDelta((new,), (old,))


KINDS: list[tuple[type, st.SearchStrategy[Any]]] = [
    (Namespace, world.namespaces),
    (Service, world.services),
    (EndpointSlice, world.slices()),
    (Pod, world.pods),
]


@st.composite
def changes(draw: st.DrawFn) -> Changes[Any]:
    """Some objects of one kind applied, others removed."""
    kind, strategy = draw(st.sampled_from(KINDS))
    applied = {each.key: each for each in draw(st.lists(strategy, max_size=3))}
    removed: set[NamespacedName] = {each.key for each in draw(st.lists(strategy, max_size=3))} - applied.keys()
    return Changes(kind, tuple(applied.values()), tuple(removed))


@given(st.lists(changes(), max_size=12))
def test_incremental_equals_from_scratch(history: list[Changes[Any]]) -> None:
    store = Store()
    builder = NameBuilder(store)
    held: set[Record] = set()
    for step in history:
        delta = builder.update(store.apply(step))
        assert held.isdisjoint(delta.added)
        assert held.issuperset(delta.removed)
        held = (held - set(delta.removed)) | set(delta.added)
        scratch = NameBuilder(store)
        assert held == set(builder.records()) == set(scratch.records())
        assert builder.problems == scratch.problems


@given(st.lists(changes(), min_size=1, max_size=6))
def test_what_exists_throughout_is_never_removed(history: list[Changes[Any]]) -> None:
    """Several changes settled as one touch neither what was there before and after, nor what never was."""
    store = Store()
    builder = NameBuilder(store)
    builder.update(store.apply(history[0]))
    before = set(builder.records())
    touched = store.apply(Changes(Namespace))
    for step in history[1:]:
        more = store.apply(step)
        touched.namespaces += more.namespaces
        touched.services += more.services
        touched.slices += more.slices
        touched.pods += more.pods
    delta = builder.update(touched)
    after = set(NameBuilder(store).records())
    assert set(delta.removed) == before - after
    assert set(delta.added) == after - before


def test_an_endpoint_costs_little_memory() -> None:
    """At most 200 octets beyond the store, the table of counts included."""
    ports = [("http", 80)]
    store = store_of(
        *(
            endpoint_slice(f"s{number}", "web", *(endpoint(f"10.0.{number}.{low}") for low in range(100)), ports=ports)
            for number in range(20)
        )
    )
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        builder = NameBuilder(store)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(builder.records()) == 2000
    assert grown / 2000 <= 200, f"{grown / 2000:.0f} octets on {sys.version}"
