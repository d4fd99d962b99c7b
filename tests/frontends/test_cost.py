# SPDX-License-Identifier: Apache-2.0
"""One change costs what it changes, whatever the size of the cluster and of the Service: shown by counting."""

from collections.abc import Callable
from functools import cache

import pytest

from svcproxy.frontends.builder import FrontendBuilder, Update
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Changes, Endpoint, EndpointSlice, NamespacedName, Service, Store
from tests.frontends.world import N1, World, endpoint, ready, service, slice_of

SMALL, LARGE = 1_000, 50_000


@cache
def cluster(services: int) -> tuple[Store, FrontendBuilder]:
    """So many Services with one endpoint each. Every test leaves it as it was."""
    store = Store()
    touched = store.apply(Changes.of(Service, (member(i) for i in range(services))))
    touched.slices += store.apply(Changes.of(EndpointSlice, (slice_of_member(i) for i in range(services)))).slices
    builder = FrontendBuilder(store, N1, FrontendOptions())
    builder.update(touched)
    return store, builder


def member(i: int) -> Service:
    return service(f"s{i}", clusterIP=f"10.96.{i >> 8}.{i & 255}")


def slice_of_member(i: int, *extra: Endpoint) -> EndpointSlice:
    return slice_of(ready(f"10.244.{i >> 8}.{i & 255}"), *extra, name=f"s{i}-1", of=f"s{i}")


def slice_grows(store: Store, builder: FrontendBuilder) -> Update:
    update = builder.update(store.apply(Changes.of(EndpointSlice, [slice_of_member(7, ready("10.245.0.1"))])))
    builder.update(store.apply(Changes.of(EndpointSlice, [slice_of_member(7)])))
    return update


def service_changes(store: Store, builder: FrontendBuilder) -> Update:
    changed = service("s7", clusterIP="10.96.0.7", ports=[{"name": "http", "port": 81}])
    update = builder.update(store.apply(Changes.of(Service, [changed])))
    builder.update(store.apply(Changes.of(Service, [member(7)])))
    return update


def service_goes_and_returns(store: Store, builder: FrontendBuilder) -> Update:
    update = builder.update(store.apply(Changes(Service, (), (NamespacedName("ns", "s7"),))))
    builder.update(store.apply(Changes.of(Service, [member(7)])))
    return update


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(slice_grows, id="slice"),
        pytest.param(service_changes, id="Service changes"),
        pytest.param(service_goes_and_returns, id="Service goes"),
    ],
)
def test_a_change_looks_at_as_much_in_a_large_cluster(change: Callable[[Store, FrontendBuilder], Update]) -> None:
    small, large = change(*cluster(SMALL)), change(*cluster(LARGE))
    assert small.visited == large.visited <= 4
    assert small.delta == large.delta


def thousands(not_ready: int | None = None) -> list[EndpointSlice]:
    """Fifty slices of a hundred endpoints."""
    return [
        slice_of(
            *(
                endpoint(f"10.244.{i}.{n}", "n2", ready=i * 100 + n != not_ready, serving=True, zones=["z1"])
                for n in range(100)
            ),
            name=f"s-{i}",
        )
        for i in range(50)
    ]


@pytest.mark.parametrize("index", [0, 2550, 4999])
def test_one_endpoint_of_five_thousand_costs_one_endpoint(index: int) -> None:
    world = World(service(), *thousands())
    update = world.apply(thousands(not_ready=index)[index // 100])
    (change,) = update.delta.backends
    assert (len(change.added), len(change.removed)) == (0, 1)
    assert update.visited == 2


def test_only_a_flip_of_the_topology_mode_looks_at_the_others() -> None:
    world = World(service(), *thousands(), slice_of(ready("10.245.0.1", zones=["z2"]), name="s-x"))
    update = world.apply(slice_of(ready("10.245.0.1"), name="s-x"))
    assert update.visited > 5000
    assert [len(change.added) for change in update.delta.backends] == [1]
