# SPDX-License-Identifier: Apache-2.0
"""Back-off: bounds, growth, reset."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.process.backoff import Backoff


def waits(backoff: Backoff, count: int) -> list[float]:
    return list(islice(iter(backoff.next, None), count))


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        pytest.param(Backoff(1, 10, jitter=0), [1, 2, 4, 8, 10, 10], id="doubles up to the maximum"),
        pytest.param(Backoff(1, 10, factor=3, jitter=0), [1, 3, 9, 10], id="another factor"),
        pytest.param(Backoff(2, 2, jitter=0), [2, 2, 2], id="constant"),
        pytest.param(Backoff(1, 8, jitter=0.5, random=lambda: 0.0), [1, 2, 4, 8], id="jitter takes nothing off"),
        pytest.param(Backoff(1, 8, jitter=0.5, random=lambda: 0.5), [0.75, 1.5, 3, 6], id="jitter takes a quarter off"),
    ],
)
def test_waits(backoff: Backoff, expected: list[float]) -> None:
    assert waits(backoff, len(expected)) == expected


def test_progress_makes_the_next_wait_a_first_one() -> None:
    backoff = Backoff(1, 60, jitter=0)
    waits(backoff, 5)
    backoff.reset()
    assert waits(backoff, 2) == [1, 2]


@given(
    initial=st.floats(0.001, 10),
    more=st.floats(0, 100),
    factor=st.floats(1, 1e6),
    jitter=st.floats(0, 1),
    chances=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50),
)
def test_waits_stay_within_their_bounds(
    initial: float, more: float, factor: float, jitter: float, chances: list[float]
) -> None:
    maximum = initial + more
    backoff = Backoff(initial, maximum, factor, jitter, iter(chances).__next__)
    for wait in waits(backoff, len(chances)):
        assert (1 - jitter) * initial <= wait <= maximum


@pytest.mark.parametrize(
    ("initial", "maximum", "factor", "jitter"),
    [
        pytest.param(0, 1, 2, 0.5, id="no first wait"),
        pytest.param(2, 1, 2, 0.5, id="maximum below initial"),
        pytest.param(1, 2, 0.5, 0.5, id="shrinks"),
        pytest.param(1, 2, 2, 1.5, id="jitter over one"),
        pytest.param(1, 2, 2, -0.1, id="negative jitter"),
    ],
)
def test_senseless_bounds_are_refused(initial: float, maximum: float, factor: float, jitter: float) -> None:
    with pytest.raises(ValueError, match="back-off needs"):
        Backoff(initial, maximum, factor, jitter)
