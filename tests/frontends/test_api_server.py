# SPDX-License-Identifier: Apache-2.0
"""T54: an API server that shows no endpoint of itself does not cut the cluster off from it."""

from svcproxy.model import EndpointSlice, NamespacedName
from tests.frontends.world import CLUSTER_IP, P1, REJECT, World, draining, endpoint, ready, service, slice_of

FIRST, SECOND = "192.0.2.1:6443", "192.0.2.2:6443"
OWN = {"namespace": "default", "of": "kubernetes", "port": 6443}
NAME = NamespacedName("default", "kubernetes")


def shown(*endpoints: object, name: str = "kubernetes") -> EndpointSlice:
    return slice_of(*endpoints, name=name, **OWN)  # type: ignore[arg-type]


def world() -> World:
    made = World(service("kubernetes", namespace="default"), shown(ready("192.0.2.1"), ready("192.0.2.2")))
    assert made.meets(P1, CLUSTER_IP) == {FIRST, SECOND}
    return made


def test_t54_an_emptied_slice_leaves_the_last_endpoints() -> None:
    made = world()
    assert not made.apply(shown()).delta
    assert made.meets(P1, CLUSTER_IP) == {FIRST, SECOND}
    assert made.builder.problems[NAME] == ("no endpoint of the API server is shown: the last known ones stay",)


def test_t54_a_deleted_slice_leaves_the_last_endpoints() -> None:
    made = world()
    assert not made.remove(EndpointSlice, "kubernetes", "default").delta
    assert made.meets(P1, CLUSTER_IP) == {FIRST, SECOND}


def test_t54_endpoints_that_are_all_unusable_leave_the_last_ones() -> None:
    made = world()
    made.apply(shown(endpoint("192.0.2.1", ready=False, serving=False)))
    assert made.meets(P1, CLUSTER_IP) == {FIRST, SECOND}


def test_t54_what_is_shown_next_replaces_what_was_kept() -> None:
    made = world()
    made.apply(shown())
    made.apply(shown(ready("192.0.2.2"), name="kubernetes-2"))
    assert made.meets(P1, CLUSTER_IP) == {SECOND}
    assert NAME not in made.builder.problems


def test_t54_one_of_several_endpoints_goes_as_any_other() -> None:
    made = world()
    made.apply(shown(draining("192.0.2.2")))
    assert made.meets(P1, CLUSTER_IP) == {SECOND}


def test_t54_other_services_lose_their_last_endpoint() -> None:
    made = World(service(), slice_of(ready("10.244.1.1")))
    made.apply(slice_of())
    assert made.meets(P1, CLUSTER_IP) is REJECT
