# SPDX-License-Identifier: Apache-2.0
"""Who owns an address and port that several Service ports ask for."""

from itertools import permutations

import pytest

from svcproxy.frontends.keys import Address, NodePort
from svcproxy.model import Service
from svcproxy.model.meta import Family, Protocol
from tests.frontends.world import CLUSTER_IP, VIP, World, load_balancer, ready, service, slice_of

EXTERNAL = Address(VIP, Protocol.TCP, 80)
OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


def claims(name: str, created: str | None, ip: str) -> Service:
    return service(name, created=created, clusterIP=ip, externalIPs=[VIP])


@pytest.mark.parametrize(
    ("services", "order"),
    [
        pytest.param(
            [claims("z", OLD, "10.96.0.1"), claims("a", NEW, "10.96.0.2"), claims("b", NEW, "10.96.0.3")],
            ["z", "a", "b"],
            id="older first, then by name",
        ),
        pytest.param(
            [claims("a", None, "10.96.0.1"), claims("b", NEW, "10.96.0.2")], ["b", "a"], id="of unknown age: youngest"
        ),
        pytest.param([claims("b", None, "10.96.0.1"), claims("a", None, "10.96.0.2")], ["a", "b"], id="no ages at all"),
        pytest.param(
            [claims("old", OLD, "10.96.0.1"), load_balancer("new", created=NEW, clusterIP="10.96.0.2")],
            ["old", "new"],
            id="external IP and load balancer",
        ),
        pytest.param(
            [claims("hijacker", OLD, "10.96.0.1"), service("victim", created=NEW, clusterIP=VIP)],
            ["victim", "hijacker"],
            id="a ClusterIP before any age",
        ),
    ],
)
def test_winner_and_losers(services: list[Service], order: list[str]) -> None:
    for arrival in permutations(services):
        world = World()
        for one in arrival:
            world.apply(one)
        conflict = world.builder.conflicts[EXTERNAL]
        assert world.table.frontends[EXTERNAL].service_port == conflict.winner
        assert [port.service for port in (world.table.frontends[EXTERNAL].service_port, *conflict.losers)] == order


def test_a_conflict_is_reported_when_it_begins_changes_and_ends() -> None:
    a, b = claims("a", OLD, "10.96.0.1"), claims("b", NEW, "10.96.0.2")
    world = World(b)
    began = world.apply(a)
    assert [(str(c.winner), list(map(str, c.losers))) for c in began.conflicts] == [
        ("ns/a:http/TCP", ["ns/b:http/TCP"])
    ]
    assert not world.apply(slice_of(ready("10.244.1.1"), of="b")).conflicts
    ended = world.remove(Service, "a")
    assert [(str(c.winner), c.losers) for c in ended.conflicts] == [("ns/b:http/TCP", ())]
    assert not world.builder.conflicts
    assert world.table.frontends[EXTERNAL].service_port.service == "b"


def test_nobody_is_left() -> None:
    world = World(claims("a", OLD, "10.96.0.1"), claims("b", NEW, "10.96.0.2"))
    a, b = (world.store.services[key] for key in list(world.store.services))
    update = world.apply(
        *(service(s.metadata.name, clusterIP=s.spec.cluster_ip, created=s.metadata.creation_timestamp) for s in (a, b))
    )
    assert [(c.winner, c.losers) for c in update.conflicts] == [(None, ())]
    assert EXTERNAL not in world.table.frontends


def test_a_service_made_anew_is_the_youngest() -> None:
    world = World(claims("a", OLD, "10.96.0.1"), claims("b", NEW, "10.96.0.2"))
    world.apply(claims("a", "2026-03-01T00:00:00Z", "10.96.0.1"))
    assert world.table.frontends[EXTERNAL].service_port.service == "b"


def test_two_ports_of_one_service() -> None:
    ports = [{"name": name, "port": 80, "nodePort": 30080} for name in ("second", "first")]
    world = World(service(type="NodePort", ports=ports))
    node_port = NodePort(Family.IPV4, Protocol.TCP, 30080)
    assert set(world.builder.conflicts) == {Address(CLUSTER_IP, Protocol.TCP, 80), node_port}
    assert world.table.frontends[node_port].service_port.port == "second"
    world.apply(service(type="NodePort", ports=ports[::-1]))
    assert world.table.frontends[node_port].service_port.port == "first"


def test_a_service_does_not_quarrel_with_itself() -> None:
    world = World(load_balancer(externalIPs=[VIP, CLUSTER_IP], loadBalancerSourceRanges=["203.0.113.0/24"]))
    assert not world.builder.conflicts
    assert world.table.frontends[EXTERNAL].source_ranges == ("203.0.113.0/24",)
    assert world.table.frontends[Address(CLUSTER_IP, Protocol.TCP, 80)].kind == "ClusterIP"
