# SPDX-License-Identifier: Apache-2.0
"""The test world itself: who reaches whom without a data plane, and what clients say of hand-written rules."""

from collections.abc import Iterator

import pytest

from svcproxy.model.meta import Family, Protocol
from tests.netns.places import AT, Addresses
from tests.netns.probes import PATIENCE, REFUSED, SILENCE, TIMEOUT, Failed, Outcome, Served
from tests.netns.world import PODS, PORTS, TRANSPORTS, World, server_name

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("at", [pytest.param(at, id=family.label) for family, at in AT.items()])
BOTH = pytest.mark.parametrize("protocol", TRANSPORTS)

RULES = """
table {ip} hand {{
  chain pre {{
    type nat hook prerouting priority -100
    {ip} daddr {at.cluster_ip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {b1}:8080
    {ip} daddr {at.vip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {a1}:9090
    {ip} daddr {at.n1} meta l4proto {{ tcp, udp }} th dport 30080 dnat to {b1}:8080
    {ip} daddr {at.external_ip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {p1}:8080
  }}
  chain out {{
    type nat hook output priority -100
    {ip} daddr {at.cluster_ip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {b1}:8080
  }}
  chain post {{
    type nat hook postrouting priority 100
    ct status dnat {ip} saddr {at.p1} {ip} daddr {at.p1} masquerade
    ct status dnat ct original {ip} daddr {{ {at.cluster_ip}, {at.n1} }} {ip} saddr != {at.pods} masquerade
  }}
  chain filter {{
    type filter hook prerouting priority -110
    {ip} daddr {at.other_cluster_ip} meta l4proto tcp reject with tcp reset
    {ip} daddr {at.other_cluster_ip} reject
    {ip} daddr {at.unused_cluster_ip} drop
  }}
}}
"""


def program(world: World, at: Addresses) -> None:
    ip, form = ("ip", "{}") if at.family is Family.IPV4 else ("ip6", "[{}]")
    pods = {pod: form.format(address) for pod, address in at.of_pods.items()}
    world.n1.run("nft", "-f", "-", text=RULES.format(ip=ip, at=at, **pods))


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@FAMILIES
@BOTH
async def test_everybody_reaches_every_pod_as_itself(world: World, at: Addresses, protocol: Protocol) -> None:
    own = {"h1": at.n1, "h2": at.n2, "x": at.x, "y": at.y, **at.of_pods}
    async with world.serving():
        for place, source in own.items():
            for pod in PODS:
                for port in PORTS:
                    assert await world.attempt(place, protocol, (at.of_pods[pod], port)) == Served(
                        server_name(pod, port), source
                    )


@FAMILIES
@BOTH
@pytest.mark.parametrize(
    ("place", "target", "port", "expected"),
    [
        ("p1", "cluster_ip", 80, ("b1", "p1")),
        ("h1", "cluster_ip", 80, ("b1", "n1")),
        ("x", "cluster_ip", 80, ("b1", "n1")),
        ("x", "vip", 80, ("a1:9090", "x")),
        ("b2", "vip", 80, ("a1:9090", "b2")),
        ("y", "n1", 30080, ("b1", "n1")),
        ("p1", "external_ip", 80, ("p1", "n1")),
        ("x", "second", 30080, REFUSED),
        ("p1", "other_cluster_ip", 80, REFUSED),
        ("p1", "unused_cluster_ip", 80, TIMEOUT),
    ],
)
async def test_clients_meet_what_rules_say(
    world: World,
    at: Addresses,
    protocol: Protocol,
    place: str,
    target: str,
    port: int,
    expected: Outcome | tuple[str, str],
) -> None:
    program(world, at)
    if isinstance(expected, tuple):
        by, source = expected
        expected = Served(by, getattr(at, source))
    async with world.serving():
        patience = SILENCE if expected == TIMEOUT else PATIENCE
        assert await world.attempt(place, protocol, (getattr(at, target), port), patience) == expected
        assert world.syn_retransmits() == 0


@FAMILIES
@BOTH
async def test_what_leaks_is_caught_outside(world: World, at: Addresses, protocol: Protocol) -> None:
    world.own("x", at.unused_cluster_ip)
    async with world.serving(world.server("x", "leak", protocol, at.unused_cluster_ip, 80)):
        assert await world.attempt("p1", protocol, (at.unused_cluster_ip, 80)) == Served("leak", at.p1)


@FAMILIES
async def test_a_loop_of_routes_is_no_refusal(world: World, at: Addresses) -> None:
    assert isinstance(await world.attempt("p1", Protocol.TCP, (at.cluster_ip, 80)), Failed)


@FAMILIES
@BOTH
async def test_a_flow_outlives_the_rules_that_made_it(world: World, at: Addresses, protocol: Protocol) -> None:
    program(world, at)
    async with world.serving() as servers:
        with world.flow("p1", protocol, (at.cluster_ip, 80)) as flow:
            assert await flow.ask() == Served("b1", at.p1)
            world.n1.run("nft", "flush", "chain", "ip" if at.family is Family.IPV4 else "ip6", "hand", "pre")
            assert await flow.ask() == Served("b1", at.p1)
        assert sum(len(server.sources) for server in servers["b1"]) == (1 if protocol is Protocol.TCP else 2)
