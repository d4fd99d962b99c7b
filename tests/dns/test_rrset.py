# SPDX-License-Identifier: Apache-2.0
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.addresses import pack_ip
from svcproxy_dns.rrset import SHUFFLED_MAX, AddressSet
from svcproxy_dns.wire import RRType


def address_set(count: int) -> AddressSet:
    return AddressSet(RRType.A, 30, random.Random(1), (f"10.0.{n >> 8}.{n & 255}" for n in range(count)))


def taken(addresses: AddressSet, count: int) -> list[bytes]:
    octets, size = addresses.take(count), addresses.record_octets
    return [octets[start + size - 4 : start + size] for start in range(0, len(octets), size)]


@pytest.mark.parametrize("size", [1, 2, 3, SHUFFLED_MAX, SHUFFLED_MAX + 1, 300])
def test_each_address_comes_first_once_in_a_round(size: int) -> None:
    addresses = address_set(size)
    taken(addresses, 1)
    if size > SHUFFLED_MAX:
        while taken(addresses, 1)[0] != pack_ip(f"10.0.{(size - 1) >> 8}.{(size - 1) & 255}"):
            pass
    else:
        for _ in range(size - 1):
            taken(addresses, 1)
    for _ in range(3):
        assert set(Counter(taken(addresses, 1)[0] for _ in range(size)).values()) == {1}


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 30))
def test_no_address_twice_in_one_answer(size: int, count: int, rounds: int) -> None:
    addresses = address_set(size)
    for _ in range(rounds):
        found = taken(addresses, min(count, size))
        assert len(found) == len(set(found)) == min(count, size)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))))
def test_a_set_counts_its_addresses(steps: list[tuple[bool, str]]) -> None:
    addresses, expected = AddressSet(RRType.A, 30, random.Random(1)), Counter[str]()
    for adds, ip in steps:
        if adds:
            addresses.add(ip)
            expected[ip] += 1
        elif expected[ip]:
            addresses.discard(ip)
            expected[ip] -= 1
        held = {pack_ip(ip) for ip, count in expected.items() if count}
        assert len(addresses) == len(held)
        if held:
            assert set(taken(addresses, len(held))) == held
