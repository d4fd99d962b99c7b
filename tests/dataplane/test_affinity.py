# SPDX-License-Identifier: Apache-2.0
"""ClientIP affinity: rows 37 and 38 of kube-proxy's acceptance cases without sockets, and a model over any history."""

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.dataplane.userspace.affinity import AffinityTable
from svcproxy.frontends.keys import Backend, ServicePortName
from svcproxy.model.meta import Protocol

A, B, C = (Backend("10.244.0.1", port) for port in (1, 2, 3))
ALL = frozenset((A, B, C))
WEB = ServicePortName("shop", "web", "http", Protocol.TCP)
API = ServicePortName("shop", "api", "http", Protocol.TCP)
TIMEOUT = 60.0


def pick(
    table: AffinityTable, drawn: Backend, now: float, client: str = "x", eligible: frozenset[Backend] = ALL
) -> Backend:
    return table.pick(WEB, client, TIMEOUT, eligible.__contains__, drawn, now)


def test_a_client_keeps_its_backend_until_the_timeout_after_its_last_flow() -> None:
    table = AffinityTable()
    assert pick(table, A, 0.0) == A
    assert pick(table, B, 59.9) == A
    assert pick(table, B, 119.8) == A
    assert pick(table, B, 179.8) == B


def test_a_client_whose_backend_is_not_eligible_is_assigned_anew_and_the_others_keep_theirs() -> None:
    table = AffinityTable()
    pick(table, A, 0.0)
    pick(table, B, 0.0, client="y")
    assert pick(table, C, 1.0, eligible=frozenset((B, C))) == C
    assert pick(table, A, 2.0) == C
    assert pick(table, A, 2.0, client="y") == B


def test_service_ports_are_apart() -> None:
    table = AffinityTable()
    pick(table, A, 0.0)
    assert table.pick(API, "x", TIMEOUT, ALL.__contains__, B, 0.0) == B
    assert pick(table, C, 1.0) == A


def test_a_new_timeout_counts_from_the_last_flow() -> None:
    table = AffinityTable()
    pick(table, A, 0.0)
    assert table.pick(WEB, "x", 10.0, ALL.__contains__, B, 10.0) == B


def test_the_longest_idle_client_makes_room() -> None:
    table = AffinityTable(clients_max=2)
    for moment, client in enumerate(("x", "y", "x", "z")):
        pick(table, A, float(moment), client=client)
    assert len(table) == 2
    assert pick(table, B, 4.0, client="x") == A
    assert pick(table, B, 4.0, client="y") == B


def test_forgetting_and_expiring_leave_nothing_behind() -> None:
    table = AffinityTable()
    table.forget(WEB)
    pick(table, A, 0.0)
    table.forget(WEB)
    assert len(table) == 0
    assert pick(table, B, 50.0) == B
    table.expire(TIMEOUT)
    assert pick(table, C, 60.0) == B
    table.expire(120.0)
    assert len(table) == 0
    table.expire(1000.0)
    assert table.next_expiry() is None


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([WEB, API]),
            st.sampled_from("xyz"),
            st.sets(st.sampled_from(sorted(ALL)), min_size=1),
            st.integers(0, 2),
            st.floats(0.0, 40.0, allow_nan=False),
            st.booleans(),
        )
    )
)
def test_any_history_agrees_with_a_plain_dictionary(
    steps: list[tuple[ServicePortName, str, set[Backend], int, float, bool]],
) -> None:
    """The model keeps everything for ever; whether and when `expire` is called changes no answer."""
    table, now = AffinityTable(), 0.0
    model: dict[tuple[ServicePortName, str], tuple[Backend, float]] = {}
    for service_port, client, eligible, draw, wait, expire in steps:
        now += wait
        if expire:
            table.expire(now)
            live = [key for key, (_, last) in model.items() if now < last + TIMEOUT]
            assert len(table) == len(live)
        drawn = sorted(eligible)[draw % len(eligible)]
        held = model.get((service_port, client))
        keeps = held is not None and held[0] in eligible and now < held[1] + TIMEOUT
        expected = held[0] if held is not None and keeps else drawn
        assert table.pick(service_port, client, TIMEOUT, eligible.__contains__, drawn, now) == expected
        model[service_port, client] = (expected, now)
        next_expiry = table.next_expiry()
        assert next_expiry is not None
        assert next_expiry <= min(last for _, last in model.values() if now < last + TIMEOUT) + TIMEOUT
