# SPDX-License-Identifier: Apache-2.0
"""What workers say and what follows from it, with the time as an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.config import INTERCEPTED_MAX
from svcproxy.process.proof import ADDRESSES_MAX, Proof, channel, decode, encode, read_channel
from svcproxy.supervisor.proofs import SILENCE_MAX, Provers

A, B = "10.96.0.10", "fd96::a"
BOTH = (A, B)
ALL = tuple(f"10.96.0.{number}" for number in range(ADDRESSES_MAX))


def says(*answered: str, stands_by: bool = False) -> bytes:
    return encode(Proof(frozenset(answered), stands_by), BOTH)


@given(answered=st.sets(st.sampled_from(ALL)), stands_by=st.booleans())
def test_an_octet_says_what_was_put_in(answered: set[str], stands_by: bool) -> None:
    proof = Proof(frozenset(answered), stands_by)
    (octet,) = encode(proof, ALL)
    assert decode(octet, ALL) == proof


@given(octet=st.integers(0, 255))
def test_any_octet_is_about_addresses_that_are_to_be_proven(octet: int) -> None:
    assert decode(octet, BOTH).answered <= set(BOTH)


def test_there_is_a_bit_for_every_address_that_may_be_configured() -> None:
    assert INTERCEPTED_MAX == ADDRESSES_MAX


def test_the_channel_passes_through_the_environment() -> None:
    assert read_channel(channel(3, BOTH)) == (3, BOTH)
    assert read_channel({}) is None


def test_an_address_is_proven_if_any_worker_was_answered_there() -> None:
    provers = Provers(BOTH)
    provers.heard(0, says(), 1.0)
    assert provers.take() == set()
    provers.heard(0, says(A), 2.0)
    provers.heard(1, says(B) + says(), 2.0)
    assert provers.take() == {A, B}


def test_what_was_proven_once_counts_once() -> None:
    provers = Provers(BOTH)
    provers.heard(0, says(A), 1.0)
    assert provers.take() == {A}
    assert provers.take() == set()


def test_who_falls_silent_hangs_and_is_named_once() -> None:
    provers = Provers(BOTH)
    for worker in (0, 1):
        provers.started(worker)
        provers.heard(worker, says(A), 1.0)
    provers.heard(1, says(), 1.5)
    assert provers.hung(1.0 + SILENCE_MAX - 0.01) == ()
    assert provers.hung(1.0 + SILENCE_MAX) == (0,)
    assert provers.hung(1.0 + SILENCE_MAX) == ()


@pytest.mark.parametrize("word", [b"", says()])
def test_a_worker_that_starts_has_the_time_it_needs(word: bytes) -> None:
    """Also one that has been heard in an earlier process."""
    provers = Provers(BOTH)
    provers.heard(0, word, 1.0)
    provers.ended(0)
    provers.started(0)
    assert provers.hung(1000.0) == ()


@pytest.mark.parametrize(
    ("words", "succeeded"),
    [
        pytest.param({}, False, id="nothing said"),
        pytest.param({0: says(A)}, False, id="it serves"),
        pytest.param({0: says(stands_by=True)}, True, id="it stands by"),
        pytest.param({0: says(stands_by=True) + says(A)}, False, id="it serves again"),
        pytest.param({0: says(A), 1: says(stands_by=True)}, True, id="one of two has been succeeded"),
    ],
)
def test_a_successor_is_known_by_who_stands_by(words: dict[int, bytes], succeeded: bool) -> None:
    provers = Provers(BOTH)
    for worker, octets in words.items():
        provers.heard(worker, octets, 1.0)
        provers.ended(worker)
    assert provers.succeeded is succeeded
