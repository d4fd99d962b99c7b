# SPDX-License-Identifier: Apache-2.0
"""Which frontends are suspect after which change, which of their flows are stale, and when to look again."""

from collections.abc import Iterable, Set

import pytest

from svcproxy.dataplane.nftables.ctnetlink import Filter, Translation
from svcproxy.dataplane.nftables.flows import (
    EXACT_FILTERS_MAX,
    REPEATS_MAX,
    SETTLE_SECONDS,
    Suspects,
)
from svcproxy.frontends.keys import (
    Address,
    Backend,
    BackendSetKey,
    Frontend,
    FrontendKey,
    FrontendKind,
    NodePort,
    Scope,
    ServicePortName,
)
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable
from svcproxy.model.meta import Family, Protocol

UDP, TCP, SCTP = Protocol.UDP, Protocol.TCP, Protocol.SCTP
V4 = Family.IPV4
NODE = "192.0.2.11"
DNS, WEB, LOG = (
    ServicePortName("ns", name, "p", protocol) for name, protocol in (("dns", UDP), ("web", TCP), ("log", SCTP))
)
VIP, VIP_TCP, VIP_SCTP = (
    Address("10.96.0.10", UDP, 53),
    Address("10.96.0.11", TCP, 80),
    Address("10.96.0.12", SCTP, 514),
)
ON_NODE = NodePort(V4, UDP, 30053)
A, B, C = (Backend(f"10.244.1.{number}", 5353) for number in (1, 2, 3))


def frontend(key: FrontendKey, name: ServicePortName) -> Frontend:
    kind = FrontendKind.NODE_PORT if isinstance(key, NodePort) else FrontendKind.CLUSTER_IP
    return Frontend(key, name, kind)


def backends(
    name: ServicePortName, *, added: Iterable[Backend] = (), removed: Iterable[Backend] = ()
) -> BackendSetDelta:
    return BackendSetDelta(BackendSetKey(name, V4, Scope.CLUSTER), tuple(added), tuple(removed))


TABLE = FrontendTable(
    frontends={key: frontend(key, name) for key, name in ((VIP, DNS), (ON_NODE, DNS), (VIP_TCP, WEB), (VIP_SCTP, LOG))},
    backends={BackendSetKey(name, V4, Scope.CLUSTER): {A, B} for name in (DNS, WEB, LOG)},
    node_port_addresses=frozenset({NODE}),
)


def settled() -> Suspects:
    """A table long in force, nothing suspect."""
    suspects = Suspects()
    suspects.resynced(TABLE, FrontendDelta(), now=0)
    suspects.examine()
    suspects.clean(SETTLE_SECONDS)
    assert not suspects
    return suspects


def suspected(suspects: Suspects) -> Set[FrontendKey]:
    examination = suspects.examine()
    return examination.addresses | examination.node_ports


def test_a_resync_suspects_everything_but_TCP() -> None:  # noqa: N802
    suspects = Suspects()
    suspects.resynced(TABLE, FrontendDelta(), now=0)
    assert suspected(suspects) == {VIP, ON_NODE, VIP_SCTP}


@pytest.mark.parametrize(
    ("delta", "keys"),
    [
        pytest.param(FrontendDelta(backends=(backends(DNS, removed=[A]),)), {VIP, ON_NODE}, id="a backend goes"),
        pytest.param(FrontendDelta(backends=(backends(LOG, removed=[A, B]),)), {VIP_SCTP}, id="to none, SCTP"),
        pytest.param(FrontendDelta(backends=(backends(DNS, added=[C]),)), set(), id="another backend comes"),
        pytest.param(FrontendDelta(removed=(VIP,)), {VIP}, id="a frontend goes"),
        pytest.param(FrontendDelta(removed=(ON_NODE,)), {ON_NODE}, id="a node port goes"),
        pytest.param(FrontendDelta(frontends=(frontend(VIP, LOG),)), {VIP}, id="a frontend changes hands"),
        pytest.param(
            FrontendDelta(node_port_addresses=frozenset({"192.0.2.12"})), {ON_NODE}, id="other node addresses"
        ),
        pytest.param(FrontendDelta(backends=(backends(WEB, removed=[A]),), removed=(VIP_TCP,)), set(), id="TCP"),
    ],
)
def test_a_change_makes_suspect(delta: FrontendDelta, keys: set[FrontendKey]) -> None:
    suspects = settled()
    suspects.changed(delta, now=10)
    assert suspected(suspects) == keys
    assert suspects.next_at(10) == (10 + SETTLE_SECONDS if keys else None)


def test_from_none_to_some_backends_makes_suspect() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(backends=(backends(DNS, removed=[A, B]),)), now=10)
    suspects.clean(since=20)
    suspects.changed(FrontendDelta(backends=(backends(DNS, added=[C]),)), now=30)
    assert suspected(suspects) == {VIP, ON_NODE}


def test_endpoints_that_no_backend_set_had_make_suspect() -> None:
    suspects = settled()
    suspects.stopped([(DNS, V4), (ServicePortName("ns", "headless", "p", UDP), V4)], now=10)
    assert suspected(suspects) == {VIP, ON_NODE}


def test_what_a_resync_removed_is_suspect_though_it_was_never_in_the_table() -> None:
    suspects = Suspects()
    left_behind = Address("10.96.0.99", UDP, 53)
    suspects.resynced(FrontendTable(), FrontendDelta(removed=(left_behind,)), now=0)
    assert suspected(suspects) == {left_behind}


@pytest.mark.parametrize(
    ("destination", "answering", "stale"),
    [
        pytest.param(VIP, A, False, id="to a serving backend"),
        pytest.param(VIP, C, True, id="to nobody"),
        pytest.param(VIP, Backend(A.ip, 1), True, id="to another port of a backend"),
        pytest.param(VIP, Backend(VIP.ip, VIP.port), True, id="older than the rules"),
        pytest.param(Address(NODE, UDP, 30053), A, False, id="node port, to a serving backend"),
        pytest.param(Address(NODE, UDP, 30053), C, True, id="node port, to nobody"),
        pytest.param(Address(NODE, UDP, 30053), Backend(NODE, 30053), True, id="node port, older than the rules"),
        pytest.param(VIP_SCTP, A, False, id="SCTP, to a serving backend"),
        pytest.param(VIP_SCTP, C, True, id="SCTP, to nobody"),
    ],
)
def test_a_flow_is_stale(destination: Address, answering: Backend, stale: bool) -> None:
    found = settled().stale([(destination, answering)], lambda *_: {A, B})
    assert found == ({(destination, answering)} if stale else set())


@pytest.mark.parametrize(
    ("answering", "stale"),
    [
        pytest.param(A, True, id="to what was a backend"),
        pytest.param(Backend(VIP.ip, VIP.port), False, id="never translated: nothing of ours"),
    ],
)
def test_a_flow_to_a_removed_frontend_is_stale(answering: Backend, stale: bool) -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=0)
    assert bool(suspects.stale([(VIP, answering)], lambda *_: {A, B})) is stale


def test_each_service_port_is_asked_for_once() -> None:
    asked = []

    def serving(name: ServicePortName, family: Family) -> Set[Backend]:
        asked.append((name, family))
        return {A}

    flows: list[Translation] = [(VIP, A), (VIP, B), (Address(NODE, UDP, 30053), C)]
    assert settled().stale(flows, serving) == {(VIP, B), (Address(NODE, UDP, 30053), C)}
    assert asked == [(DNS, V4)]


@pytest.mark.parametrize(
    ("destination", "concerned"),
    [
        pytest.param(VIP, True, id="frontend"),
        pytest.param(Address(NODE, UDP, 30053), True, id="node port"),
        pytest.param(Address(VIP.ip, UDP, 54), False, id="another port of the address"),
        pytest.param(Address("192.0.2.12", UDP, 30053), False, id="node port on an address without"),
        pytest.param(Address(NODE, SCTP, 30053), False, id="another protocol on the node port"),
        pytest.param(VIP_SCTP, False, id="a frontend that is not suspect"),
        pytest.param(Address(A.ip, UDP, A.port), False, id="straight to a backend"),
    ],
)
def test_an_examination_concerns(destination: Address, concerned: bool) -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(backends=(backends(DNS, removed=[A]),)), now=0)
    assert suspects.examine().concerns(destination) is concerned


def test_few_suspects_are_asked_for_one_by_one_and_many_by_protocol() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(backends=(backends(DNS, removed=[A]),)), now=0)
    assert suspects.examine().filters == (Filter(V4, UDP, VIP.ip, 53), Filter(V4, UDP, None, 30053))
    more = tuple(frontend(Address(f"10.96.1.{number}", UDP, 53), DNS) for number in range(EXACT_FILTERS_MAX))
    v6 = frontend(Address("fd96::1", SCTP, 53), LOG)
    suspects.changed(FrontendDelta(frontends=(*more, v6)), now=0)
    assert suspects.examine().filters == (Filter(V4, UDP), Filter(Family.IPV6, SCTP))


# When to look


def test_a_suspect_is_examined_at_once_and_again_when_its_change_has_settled() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    assert suspects.next_at(10.1) == 10.1
    suspects.examine()
    suspects.clean(since=10.1)
    assert suspects.next_at(10.2) == 10 + SETTLE_SECONDS
    suspects.examine()
    suspects.clean(since=10 + SETTLE_SECONDS)
    assert suspects.next_at(20) is None


def test_a_change_during_an_examination_is_looked_at_in_the_next() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    suspects.examine()
    suspects.changed(FrontendDelta(removed=(VIP_SCTP,)), now=11.5)
    suspects.clean(since=11.2)
    assert suspects.next_at(12) == 12
    assert suspected(suspects) == {VIP_SCTP}


def test_a_failed_examination_leaves_everything_suspect() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    assert suspected(suspects) == {VIP}
    at = suspects.next_at(50)
    assert at is not None
    assert at <= 50
    assert suspected(suspects) == {VIP}


def test_a_removal_is_proved_by_another_examination() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    suspects.examine()
    assert suspects.removed(since=20, all_of_them=True)
    assert suspects.next_at(20.5) == 20.5
    assert suspected(suspects) == {VIP}


def test_flows_that_come_back_as_often_as_they_are_removed_are_given_up() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    for _ in range(REPEATS_MAX):
        suspects.examine()
        assert suspects.removed(since=20, all_of_them=True)
    suspects.changed(FrontendDelta(removed=(VIP_SCTP,)), now=20)
    for _ in range(REPEATS_MAX):
        suspects.examine()
        assert suspects.removed(since=30, all_of_them=True), "a change begins the count anew"
    suspects.examine()
    assert not suspects.removed(since=30, all_of_them=True)
    assert suspects.next_at(40) is None


def test_removing_in_pieces_is_not_given_up() -> None:
    suspects = settled()
    suspects.changed(FrontendDelta(removed=(VIP,)), now=10)
    for _ in range(REPEATS_MAX * 2):
        suspects.examine()
        assert suspects.removed(since=20, all_of_them=False)
