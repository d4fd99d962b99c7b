# SPDX-License-Identifier: Apache-2.0
import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.rendered import ENTRY_OCTETS, Kept, Rendered
from svcproxy_dns.service import Source

SOURCE = Source()


def kept(octets: int) -> Kept:
    return bytes(octets), [0], SOURCE, 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000)), max_size=60))
def test_both_bounds_hold(steps: list[tuple[int, int]]) -> None:
    rendered = Rendered(entries=8, octets=8000)
    for number, octets in steps:
        rendered.keep(str(number).encode(), kept(octets))
        assert len(rendered.answers) <= 8
        assert rendered.octets <= 8000
        sizes = [len(key) + len(answer) for key, (answer, *_) in rendered.answers.items() if isinstance(answer, bytes)]
        assert rendered.octets == sum(sizes) + ENTRY_OCTETS * len(sizes)


def test_the_oldest_makes_room() -> None:
    rendered = Rendered(entries=3)
    for number in range(5):
        rendered.keep(str(number).encode(), kept(1))
    assert list(rendered.answers) == [b"2", b"3", b"4"]


def test_the_estimate_covers_what_an_entry_takes() -> None:
    gc.collect()
    tracemalloc.start()
    try:
        rendered = Rendered()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10000):
            rendered.keep(number.to_bytes(60, "big"), kept(100))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= rendered.octets
