# SPDX-License-Identifier: Apache-2.0
"""Which TCP connections are taken, and whose turn it is."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.admission import Admission, Refusal, TcpLimits
from svcproxy_dns.turns import Turns

LIMITS = TcpLimits(connections=5, per_address=2, per_network=3)


@pytest.mark.parametrize(
    ("there", "comes", "expected"),
    [
        pytest.param([], "192.0.2.1", None, id="the first"),
        pytest.param(["192.0.2.1"] * 2, "192.0.2.1", Refusal.ADDRESS, id="too many of an IPv4 address"),
        pytest.param(["192.0.2.1"] * 2, "192.0.2.2", None, id="of another"),
        pytest.param(["2001:db8::1"] * 2, "2001:db8::1", Refusal.ADDRESS, id="too many of an IPv6 address"),
        pytest.param(["2001:db8::1"] * 2, "2001:db8::2", None, id="of its neighbour"),
        pytest.param(
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"],
            "2001:db8::4",
            Refusal.NETWORK,
            id="too many of a network",
        ),
        pytest.param(["2001:db8::1", "2001:db8::2", "2001:db8::3"], "2001:db8:0:1::4", None, id="of the next network"),
        pytest.param([f"192.0.2.{low}" for low in range(5)], "192.0.2.9", Refusal.TOTAL, id="too many in all"),
        pytest.param(["fe80::1%eth0"] * 2, "fe80::1%eth1", None, id="the same address on another link"),
    ],
)
def test_bounds(there: list[str], comes: str, expected: Refusal | None) -> None:
    admission = Admission(LIMITS)
    for address in there:
        assert admission.refusal(address) is None
        admission.entered(address)
    assert admission.refusal(comes) is expected


def test_whoever_leaves_makes_room() -> None:
    admission = Admission(LIMITS)
    for _ in range(10):
        for address in ("192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::2"):
            assert admission.refusal(address) is None
            admission.entered(address)
        for address in ("2001:db8::2", "192.0.2.1", "2001:db8::1", "192.0.2.1"):
            admission.left(address)
    assert admission.total == 0


WORK = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=30)


@given(WORK)
def test_every_connection_gets_its_turn_and_no_client_gets_two_while_another_waits(work: list[tuple[str, int]]) -> None:
    """`work`: a client for each connection, and how often that comes back for more."""
    turns: Turns[tuple[str, int]] = Turns()
    more = {(client, number): count for number, (client, count) in enumerate(work)}
    for client, number in more:
        turns.add(client, (client, number))
    taken: Counter[tuple[str, int]] = Counter()
    since: dict[str, deque[str]] = {}
    """What has been served since each waiting client was served last."""
    while turns:
        connection = turns.take()
        client = connection[0]
        taken[connection] += 1
        for other, served in since.items():
            if other != client:
                assert client not in served
                served.append(client)
        since[client] = deque()
        if more[connection] > taken[connection] - 1:
            turns.add(client, connection)
        waiting = {each[0] for each, count in more.items() if taken[each] <= count}
        since = {each: served for each, served in since.items() if each in waiting}
    assert taken == {connection: count + 1 for connection, count in more.items()}
