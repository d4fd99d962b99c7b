# SPDX-License-Identifier: Apache-2.0
"""What rendering promises: no look-up misses while a delta is done, and the tables decide as `decision` does."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain as chained

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.affinity import TIMEOUTS_MAX
from svcproxy.dataplane.nftables.layout import LOCAL_BIT, Surroundings
from svcproxy.dataplane.nftables.operations import (
    AddElement,
    BackendChain,
    DeleteElement,
    EnsureChain,
    Form,
    Operation,
    Phases,
    ReplaceElement,
    SetName,
    frontend_of,
)
from svcproxy.dataplane.nftables.render import Renderer
from svcproxy.frontends.decision import SourceKind, admits, decide, lookup, scope_for
from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKey,
    FrontendKind,
    NodePort,
    Refusal,
    Scope,
    ServicePortName,
    TrafficPolicy,
)
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable, diff
from svcproxy.model.meta import Family, Protocol, family_of
from tests.dataplane.nftables.kernel import Dropped, Kernel, Packet, Refused

VIPS = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd00::1"}
NODE_IPS = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
SURROUNDINGS = Surroundings(
    pod_cidrs=("10.244.0.0/16", "fd01::/64"), service_cidrs=("10.96.0.0/16", "fd00::/112"), masquerade_all=False
)
SOURCES = {
    Family.IPV4: {
        SourceKind.POD: "10.244.0.1",
        SourceKind.NODE: NODE_IPS[Family.IPV4],
        SourceKind.OTHER: "203.0.113.9",
    },
    Family.IPV6: {SourceKind.POD: "fd01::1", SourceKind.NODE: NODE_IPS[Family.IPV6], SourceKind.OTHER: "2001:db8:f::9"},
}
BACKENDS = {
    Family.IPV4: [Backend(f"10.244.0.{n}", 8080) for n in range(1, 7)],
    Family.IPV6: [Backend(f"fd01::{n}", 8080) for n in range(1, 7)],
}
RANGES = {
    Family.IPV4: [None, (), ("203.0.113.0/24",), ("203.0.0.0/16", "203.0.113.0/24"), ("10.244.0.0/16",)],
    Family.IPV6: [None, (), ("2001:db8:f::/48",), ("2001:db8::/32", "2001:db8:f::/48"), ("fd01::/64",)],
}
PORTS = [ServicePortName("ns", service, "http", Protocol.TCP) for service in ("a", "b")]


def kernel(surroundings: Surroundings = SURROUNDINGS) -> Kernel:
    return Kernel(surroundings, frozenset(NODE_IPS.values()))


@st.composite
def frontends(draw: st.DrawFn, family: Family) -> Frontend:
    kind = draw(st.sampled_from(FrontendKind))
    protocol = draw(st.sampled_from([Protocol.TCP, Protocol.SCTP]))
    key: FrontendKey
    if kind is FrontendKind.NODE_PORT:
        key = NodePort(family, protocol, 30000)
    else:
        key = Address(
            draw(st.sampled_from([VIPS[family], NODE_IPS[family]])), protocol, draw(st.sampled_from([80, 30000]))
        )
    return Frontend(
        key,
        draw(st.sampled_from(PORTS)),
        kind,
        draw(st.sampled_from(TrafficPolicy)),
        draw(st.sampled_from(Refusal)),
        draw(st.sampled_from([None, None, 60, 10800])),
        draw(st.sampled_from(RANGES[family])),
    )


@st.composite
def tables(draw: st.DrawFn) -> FrontendTable:
    table = FrontendTable()
    for family in draw(st.sampled_from([[Family.IPV4], [Family.IPV4], [Family.IPV6], list(Family)])):
        for frontend in draw(st.lists(frontends(family), max_size=4)):
            table.frontends[frontend.key] = frontend
        for port in PORTS:
            for scope in Scope:
                if backends := draw(st.sets(st.sampled_from(BACKENDS[family]))):
                    table.backends[BackendSetKey(port, family, scope)] = backends
    table.node_port_addresses = draw(st.sampled_from([frozenset(NODE_IPS.values()), frozenset()]))
    return table


def destinations(*some: FrontendTable) -> set[tuple[str, Protocol, int]]:
    """Where packets may be addressed to that any of the tables has a frontend for."""
    found = set()
    for key in chained.from_iterable(table.frontends for table in some):
        ip = NODE_IPS[key.family] if isinstance(key, NodePort) else key.ip
        found.add((ip, key.protocol, key.port))
    return found


def outcome(table: FrontendTable, frontend: Frontend, kind: SourceKind) -> BackendSetKey | type[Exception]:
    """What `decision` says a packet meets."""
    if not admits(frontend, SOURCES[frontend.family][kind]):
        return Dropped
    decided = decide(table, frontend, kind)
    if isinstance(decided, BackendSetKey):
        return decided
    return Refused if decided is Refusal.REJECT else Dropped


def assert_decides(kernel: Kernel, table: FrontendTable) -> None:
    """The kernel decides as `decision` does, for every frontend and kind of source."""
    for ip, protocol, port in destinations(table):
        frontend = lookup(table, ip, protocol, port)
        for kind, source in SOURCES[family_of(ip)].items():
            packet = Packet(source, ip, protocol, port)
            met = kernel.verdict(packet)
            if frontend is None:
                assert not isinstance(met, BackendChain)
                continue
            expected = outcome(table, frontend, kind)
            if isinstance(expected, BackendSetKey):
                assert isinstance(met, BackendChain), (frontend, met)
                assert met.affinity_timeout == frontend.affinity_timeout
                served = list(kernel.backends(met, packet))
                assert sorted(served) == sorted(table.backends[expected])
            else:
                assert met is expected, (frontend, kind)


def takers(table: FrontendTable, ip: str, protocol: Protocol, port: int) -> list[Frontend]:
    """The frontends that a packet to a frontend's address might be for; the first is the one that takes it."""
    keys: list[FrontendKey] = [Address(ip, protocol, port)]
    if ip in NODE_IPS.values():
        keys.append(NodePort(family_of(ip), protocol, port))
    return [table.frontends[key] for key in keys if key in table.frontends]


def assert_never_misses(kernel: Kernel, phases: Phases, old: FrontendTable, new: FrontendTable) -> None:
    """Run the phases one operation at a time, and look at every frontend in between.

    A packet that found its verdict before a phase is looked at in every instant of that phase as well. Where a
    frontend itself changes, its backends may be those of either set; otherwise just those of old and new decision.
    """
    watched = []
    for ip, protocol, port in sorted(destinations(old)):
        before, after = takers(old, ip, protocol, port), takers(new, ip, protocol, port)
        if lookup(old, ip, protocol, port) is None or lookup(new, ip, protocol, port) is None:
            continue
        for kind, source in SOURCES[family_of(ip)].items():
            same = before == after
            backends = {
                backend
                for frontend in (before[:1] if same else {*before, *after})
                for table in (old, new)
                for scope in ([scope_for(frontend, kind)] if same else Scope)
                for backend in table.backends_of(frontend, scope)
            }
            refusals = {outcome(old, before[0], kind), outcome(new, after[0], kind)}
            watched.append((Packet(source, ip, protocol, port), backends, refusals, same))
    for operations in phases.in_order():
        in_flight = [kernel.verdict(packet) for packet, *_ in watched]
        for operation in operations:
            kernel.execute(operation)
            for (packet, backends, refusals, same), earlier in zip(watched, in_flight, strict=True):
                met = kernel.verdict(packet)
                if same and not isinstance(met, BackendChain):
                    assert met in refusals, operation
                for chain in (met, earlier):
                    if isinstance(chain, BackendChain):
                        assert set(kernel.backends(chain, packet)) <= backends, operation
                assert not kernel.missed, operation


@settings(max_examples=150, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4))
def test_no_look_up_misses_and_the_outcome_is_as_decided(steps: list[FrontendTable]) -> None:
    renderer, simulated, old = Renderer(), kernel(), FrontendTable()
    for new in [*steps, FrontendTable()]:
        delta = diff(old, new)
        rendered = renderer.render(delta)
        assert_never_misses(simulated, rendered.phases, old, new)
        assert_decides(simulated, new)
        assert not renderer.compromised
        assert_keeps_account(simulated, renderer)
        assert not renderer.render(delta).phases
        old = new
    assert_holds_nothing(simulated)


def assert_keeps_account(kernel: Kernel, renderer: Renderer) -> None:
    """`elements` names just what the kernel holds."""
    kept = {(each.family, each.set, each.key): each.data for each in renderer.elements()}
    held = {
        (family, name, key): data
        for (family, name), elements in kernel.sets.items()
        if name not in (SetName.AFF, SetName.POD_CIDR, SetName.SVC_CIDR)
        for key, data in elements.items()
    }
    assert kept == held
    assert {(each.family, each.chain) for each in renderer.chains()} == kernel.chains


def assert_holds_nothing(kernel: Kernel) -> None:
    constant = (SetName.AFF, SetName.POD_CIDR, SetName.SVC_CIDR)
    assert not any(elements for (_, name), elements in kernel.sets.items() if name not in constant)


@given(tables(), tables())
def test_equal_deltas_give_equal_phases(a: FrontendTable, b: FrontendTable) -> None:
    def render() -> list[Phases]:
        renderer = Renderer()
        return [renderer.render(delta).phases for delta in (diff(FrontendTable(), a), diff(a, b))]

    assert render() == render()


# One frontend


def address(
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    affinity_timeout: int | None = None,
    family: Family = Family.IPV4,
    port: int = 80,
) -> Frontend:
    key = Address(VIPS[family], Protocol.TCP, port)
    return Frontend(key, PORTS[0], kind, policy, affinity_timeout=affinity_timeout)


def table_of(*frontends: Frontend, cluster: int = 0, local: int = 0) -> FrontendTable:
    table = FrontendTable({frontend.key: frontend for frontend in frontends})
    for frontend in frontends:
        for scope, size in ((Scope.CLUSTER, cluster), (Scope.LOCAL, local)):
            if size:
                table.backends[frontend.backend_set(scope)] = {
                    Backend(f"10.1.{n >> 8}.{n & 255}", 8080) for n in range(size)
                }
    return table


def started(table: FrontendTable, surroundings: Surroundings = SURROUNDINGS) -> tuple[Renderer, Kernel]:
    renderer, simulated = Renderer(), kernel(surroundings)
    for operations in renderer.render(diff(FrontendTable(), table)).phases.in_order():
        simulated.run(operations)
    return renderer, simulated


def change(frontend: Frontend, added: Iterable[Backend] = (), removed: Iterable[Backend] = ()) -> FrontendDelta:
    return FrontendDelta(backends=(BackendSetDelta(frontend.backend_set(Scope.CLUSTER), tuple(added), tuple(removed)),))


NEW = Backend("10.2.0.1", 8080)
FIRST = Backend("10.1.0.0", 8080)


def spelled(operations: Iterable[Operation]) -> list[str]:
    """Operations the way a reader thinks of them."""
    lines = []
    for operation in operations:
        if isinstance(operation, EnsureChain):
            lines.append(f"chain {operation.chain.name}")
        else:
            verb = {AddElement: "+", DeleteElement: "-", ReplaceElement: "="}[type(operation)]
            fields = [
                f"local:{f - LOCAL_BIT}" if isinstance(f, int) and f & LOCAL_BIT else str(f) for f in operation.key
            ]
            lines.append(f"{verb}{operation.set} {' '.join(fields)}")
    return lines


@pytest.mark.parametrize(
    ("delta", "grow", "flip", "shrink"),
    [
        pytest.param(
            change(address(), added=[NEW]),
            ["chain n4", "+ep 10.96.0.1 TCP 80 3", "+hairpin 10.2.0.1 10.2.0.1"],
            ["=class 10.96.0.1 TCP 80"],
            [],
            id="a backend comes",
        ),
        pytest.param(
            change(address(), removed=[FIRST]),
            ["chain n2", "=ep 10.96.0.1 TCP 80 0"],
            ["=class 10.96.0.1 TCP 80"],
            ["-ep 10.96.0.1 TCP 80 2", "-hairpin 10.1.0.0 10.1.0.0"],
            id="a backend goes: the last one moves into the hole",
        ),
        pytest.param(
            change(address(), added=[NEW], removed=[FIRST]),
            ["=ep 10.96.0.1 TCP 80 0", "+hairpin 10.2.0.1 10.2.0.1"],
            [],
            ["-hairpin 10.1.0.0 10.1.0.0"],
            id="a backend is replaced: no verdict changes",
        ),
        pytest.param(
            FrontendDelta(frontends=(address(port=81),)),
            ["+ep 10.96.0.1 TCP 81 0", "+ep 10.96.0.1 TCP 81 1", "+ep 10.96.0.1 TCP 81 2"],
            ["+class 10.96.0.1 TCP 81"],
            [],
            id="a frontend comes: reachable when all its slots are",
        ),
        pytest.param(
            FrontendDelta(removed=(address().key,)),
            [],
            ["-class 10.96.0.1 TCP 80"],
            [
                "-ep 10.96.0.1 TCP 80 2",
                "-ep 10.96.0.1 TCP 80 1",
                "-ep 10.96.0.1 TCP 80 0",
                "-clusterips 10.96.0.1",
            ],
            id="a frontend goes",
        ),
    ],
)
def test_phases(delta: FrontendDelta, grow: list[str], flip: list[str], shrink: list[str]) -> None:
    renderer, _ = started(table_of(address(), cluster=3))
    phases = renderer.render(delta).phases
    assert [spelled(phase) for phase in phases.in_order()] == [grow, flip, shrink]


@pytest.mark.parametrize("affinity_timeout", [None, 60])
@pytest.mark.parametrize("frontends", [1, 3])
def test_one_backend_costs_its_frontends_whatever_the_size(frontends: int, affinity_timeout: int | None) -> None:
    some = [address(affinity_timeout=affinity_timeout, port=80 + n) for n in range(frontends)]

    def cost(size: int, delta: FrontendDelta) -> int:
        renderer, _ = started(table_of(*some, cluster=size))
        return sum(len(phase) for phase in renderer.render(delta).phases.in_order())

    for delta in (change(some[0], added=[NEW]), change(some[0], removed=[FIRST]), change(some[0], [NEW], [FIRST])):
        assert cost(5, delta) == cost(3000, delta) <= 4 + 5 * frontends


def test_every_slot_is_a_backend_once_with_many() -> None:
    frontend = address()
    table = table_of(frontend, cluster=600)
    renderer, simulated = started(table)
    gone = sorted(table.backends[frontend.backend_set(Scope.CLUSTER)])[:590:2]
    delta = change(frontend, added=[NEW], removed=gone)
    table.apply(delta)
    for operations in renderer.render(delta).phases.in_order():
        simulated.run(operations)
    assert_decides(simulated, table)


def test_chains_do_not_grow_with_frontends() -> None:
    one, _ = started(table_of(address(), cluster=3))
    many, _ = started(table_of(*(address(port=port) for port in range(80, 580)), cluster=3))
    assert list(one.chains()) == list(many.chains())


# Affinity


def pinned(simulated: Kernel, frontend: Frontend, source: str, slot: int) -> Backend:
    packet = Packet(source, VIPS[frontend.family], Protocol.TCP, frontend.key.port)
    met = simulated.verdict(packet)
    assert isinstance(met, BackendChain)
    return simulated.send(met, packet, slot)


def test_a_client_keeps_its_backend_over_frontends_and_changes() -> None:
    one = address(affinity_timeout=60)
    other = address(FrontendKind.EXTERNAL_IP, affinity_timeout=60, port=81)
    table = table_of(one, other, cluster=4)
    renderer, simulated = started(table)
    clients = [f"203.0.113.{n}" for n in range(4)]
    first = {client: pinned(simulated, one, client, slot) for slot, client in enumerate(clients)}
    assert len(set(first.values())) == 4
    gone = first[clients[1]]
    delta = change(one, added=[NEW], removed=[gone])
    rendered = renderer.render(delta)
    for operations in rendered.phases.in_order():
        simulated.run(operations)
    assert len(rendered.stale_ids) == 1
    for client in clients:
        for frontend in (one, other):
            for slot in range(4):
                served = pinned(simulated, frontend, client, slot)
                assert served != gone if first[client] == gone else served == first[client]


def test_ids_are_not_used_again_soon() -> None:
    frontend = address(affinity_timeout=60)
    renderer, _ = started(table_of(frontend, cluster=1))
    stale = [
        mark
        for turn in range(50)
        for delta in (change(frontend, added=[NEW]), change(frontend, removed=[NEW]))
        for mark in renderer.render(delta).stale_ids
    ]
    assert len(set(stale)) == 50


def test_a_backend_of_the_other_set_only_is_no_backend_of_a_client_bound_to_it() -> None:
    one = address(affinity_timeout=60)
    local = Frontend(
        Address(VIPS[Family.IPV4], Protocol.TCP, 81),
        PORTS[0],
        FrontendKind.EXTERNAL_IP,
        TrafficPolicy.LOCAL,
        affinity_timeout=60,
    )
    table = table_of(one, local, cluster=4)
    here = Backend("10.9.0.1", 8080)
    table.backends[local.backend_set(Scope.LOCAL)] = {here}
    _, simulated = started(table)
    client = "203.0.113.9"
    bound = pinned(simulated, one, client, 2)
    assert bound != here
    assert pinned(simulated, local, client, 0) == here
    assert pinned(simulated, one, client, 0) == bound


def test_time_outs_beyond_the_bound_are_said() -> None:
    some = [
        replace_affinity(address(port=80 + n), service=f"s{n}", affinity_timeout=60 + n)
        for n in range(TIMEOUTS_MAX + 1)
    ]
    renderer = Renderer()
    renderer.render(FrontendDelta(frontends=tuple(some)))
    assert list(renderer.compromised) == [some[-1].key]
    assert f"affinity for {60 + TIMEOUTS_MAX - 1} s" in renderer.compromised[some[-1].key]


def replace_affinity(frontend: Frontend, service: str, affinity_timeout: int) -> Frontend:
    port = ServicePortName("ns", service, "http", Protocol.TCP)
    return Frontend(frontend.key, port, frontend.kind, affinity_timeout=affinity_timeout)


# Around frontends


@pytest.mark.parametrize(
    ("kind", "policy", "source", "expected"),
    [
        pytest.param(FrontendKind.CLUSTER_IP, TrafficPolicy.CLUSTER, SourceKind.POD, False, id="pod to ClusterIP"),
        pytest.param(FrontendKind.CLUSTER_IP, TrafficPolicy.CLUSTER, SourceKind.NODE, True, id="host to ClusterIP"),
        pytest.param(FrontendKind.CLUSTER_IP, TrafficPolicy.CLUSTER, SourceKind.OTHER, True, id="outside to ClusterIP"),
        pytest.param(FrontendKind.EXTERNAL_IP, TrafficPolicy.CLUSTER, SourceKind.POD, True, id="pod, Cluster"),
        pytest.param(FrontendKind.NODE_PORT, TrafficPolicy.CLUSTER, SourceKind.OTHER, True, id="outside, Cluster"),
        pytest.param(FrontendKind.LOAD_BALANCER, TrafficPolicy.LOCAL, SourceKind.POD, False, id="pod, Local"),
        pytest.param(FrontendKind.NODE_PORT, TrafficPolicy.LOCAL, SourceKind.NODE, True, id="host, Local"),
        pytest.param(FrontendKind.LOAD_BALANCER, TrafficPolicy.LOCAL, SourceKind.OTHER, False, id="outside, Local"),
    ],
)
@pytest.mark.parametrize("family", Family)
def test_masquerade(
    kind: FrontendKind, policy: TrafficPolicy, source: SourceKind, expected: bool, family: Family
) -> None:
    key: FrontendKey = Address(VIPS[family], Protocol.UDP, 80)
    if kind is FrontendKind.NODE_PORT:
        key = NodePort(family, Protocol.UDP, 80)
    table = FrontendTable(
        {key: Frontend(key, PORTS[0], kind, policy)}, node_port_addresses=frozenset(NODE_IPS.values())
    )
    _, simulated = started(table)
    ip = NODE_IPS[family] if kind is FrontendKind.NODE_PORT else VIPS[family]
    packet = Packet(SOURCES[family][source], ip, Protocol.UDP, 80)
    assert simulated.masquerades(packet, BACKENDS[family][3]) is expected


BRIDGE = Surroundings(pod_interfaces=("cni0",))
VETHS = Surroundings(pod_interfaces=("veth*", "cali*"))
BOTH = Surroundings(pod_cidrs=("10.244.0.0/16", "fd01::/64"), pod_interfaces=("veth*",))
V4_ONLY = Surroundings(pod_cidrs=("10.244.0.0/16",))


@pytest.mark.parametrize(
    ("surroundings", "source", "interface", "is_pod"),
    [
        pytest.param(BRIDGE, SourceKind.OTHER, "cni0", {4, 6}, id="through the bridge"),
        pytest.param(BRIDGE, SourceKind.POD, "cni01", set(), id="through another, though the name begins so"),
        pytest.param(BRIDGE, SourceKind.NODE, "", set(), id="the node itself"),
        pytest.param(VETHS, SourceKind.OTHER, "cali12", {4, 6}, id="through one of several prefixes"),
        pytest.param(VETHS, SourceKind.POD, "eth0", set(), id="through none of them"),
        pytest.param(BOTH, SourceKind.OTHER, "veth1", {4, 6}, id="by interface where addresses count too"),
        pytest.param(BOTH, SourceKind.POD, "eth0", {4, 6}, id="by address where interfaces count too"),
        pytest.param(BOTH, SourceKind.OTHER, "eth0", set(), id="by neither"),
        pytest.param(V4_ONLY, SourceKind.POD, "eth0", {4}, id="by address in one family"),
    ],
)
@pytest.mark.parametrize("family", Family)
def test_who_is_a_pod(
    surroundings: Surroundings, source: SourceKind, interface: str, is_pod: set[int], family: Family
) -> None:
    cluster_ip = address(family=family)
    external = Frontend(
        Address(VIPS[family], Protocol.TCP, 81), PORTS[0], FrontendKind.EXTERNAL_IP, TrafficPolicy.LOCAL
    )
    table = table_of(cluster_ip, external)
    table.backends[cluster_ip.backend_set(Scope.CLUSTER)] = set(BACKENDS[family])
    table.backends[external.backend_set(Scope.LOCAL)] = set(BACKENDS[family][:1])
    _, simulated = started(table, surroundings)

    def packet(port: int) -> Packet:
        return Packet(SOURCES[family][source], VIPS[family], Protocol.TCP, port, interface)

    by_nothing = surroundings is V4_ONLY and family is Family.IPV6
    assert simulated.masquerades(packet(80), BACKENDS[family][5]) is (family not in is_pod and not by_nothing)
    met = simulated.verdict(packet(81))
    assert isinstance(met, BackendChain)
    assert met.scope is (Scope.CLUSTER if family in is_pod or source is SourceKind.NODE else Scope.LOCAL)


@pytest.mark.parametrize(
    ("kind", "policy", "expected"),
    [
        pytest.param(FrontendKind.CLUSTER_IP, TrafficPolicy.CLUSTER, True, id="3: pod to ClusterIP"),
        pytest.param(FrontendKind.LOAD_BALANCER, TrafficPolicy.LOCAL, False, id="11: pod, Local"),
    ],
)
def test_masquerade_all_is_about_cluster_ips(kind: FrontendKind, policy: TrafficPolicy, expected: bool) -> None:
    frontend = address(kind, policy)
    _, simulated = started(table_of(frontend, cluster=1, local=1), replace(SURROUNDINGS, masquerade_all=True))
    packet = Packet(SOURCES[Family.IPV4][SourceKind.POD], VIPS[Family.IPV4], Protocol.TCP, 80)
    assert simulated.masquerades(packet, NEW) is expected


def test_a_pod_that_reaches_itself_is_masqueraded() -> None:
    table = FrontendTable({address().key: address()})
    table.backends[address().backend_set(Scope.CLUSTER)] = set(BACKENDS[Family.IPV4])
    _, simulated = started(table)
    own = BACKENDS[Family.IPV4][0]
    packet = Packet(own.ip, VIPS[Family.IPV4], Protocol.TCP, 80)
    assert simulated.masquerades(packet, own)
    assert not simulated.masquerades(packet, BACKENDS[Family.IPV4][1])


def test_hairpin_pairs_only_where_pods_of_this_node_are() -> None:
    renderer = Renderer(hairpin_cidrs=("10.1.1.0/24",))
    renderer.render(diff(FrontendTable(), table_of(address(), cluster=300)))
    pairs = [each.key[0] for each in renderer.elements() if each.set is SetName.HAIRPIN]
    assert len(pairs) == 44
    assert all(str(ip).startswith("10.1.1.") for ip in pairs)


@pytest.mark.parametrize(
    ("ip", "port", "expected"),
    [
        pytest.param("10.96.0.1", 80, BackendChain, id="a Service's port"),
        pytest.param("10.96.0.1", 81, Refused, id="another port of its ClusterIP"),
        pytest.param("10.96.0.2", 80, Dropped, id="an address of the Service range that no Service has"),
        pytest.param("192.0.2.1", 80, None, id="a port of the node that is no NodePort"),
        pytest.param("198.51.100.1", 80, None, id="an address elsewhere"),
    ],
)
def test_what_no_frontend_takes(ip: str, port: int, expected: type | None) -> None:
    _, simulated = started(replace(table_of(address(), cluster=1), node_port_addresses=frozenset(NODE_IPS.values())))
    met = simulated.verdict(Packet("10.244.0.1", ip, Protocol.TCP, port))
    assert (type(met) if isinstance(met, BackendChain) else met) is expected


def test_operations_know_their_frontend() -> None:
    local = Frontend(NodePort(Family.IPV6, Protocol.UDP, 30053), PORTS[0], FrontendKind.NODE_PORT, TrafficPolicy.LOCAL)
    for frontend in (local, address(affinity_timeout=60)):
        table = FrontendTable({frontend.key: frontend})
        table.backends[frontend.backend_set(Scope.CLUSTER)] = set(BACKENDS[frontend.family])
        phases = Renderer().render(diff(FrontendTable(), table)).phases
        found = {frontend_of(operation) for operation in chained(*phases.in_order())}
        assert found == {frontend.key, None}


def test_names_of_chains_are_distinct() -> None:
    chains = [
        BackendChain(form, scope, size, timeout)
        for form in Form
        for scope in Scope
        for size in (1, 11)
        for timeout in (None, 1, 11)
    ]
    assert len({chain.name for chain in chains}) == len(chains)
    assert set(layout.SETS) == set(SetName)
