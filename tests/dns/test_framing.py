# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.framing import MessageReader, frame

MESSAGES = [b"", b"a", bytes(300), b"last"]
STREAM = b"".join(map(frame, MESSAGES))


@given(cuts=st.lists(st.integers(0, len(STREAM))).map(sorted))
def test_messages_do_not_depend_on_fragmentation(cuts: list[int]) -> None:
    reader, messages = MessageReader(), list[bytes]()
    for start, end in pairwise([0, *cuts, len(STREAM)]):
        reader.feed(STREAM[start:end])
        while (message := reader.next_message()) is not None:
            messages.append(message)
    assert messages == MESSAGES
    assert reader.pending == 0


def test_an_incomplete_message_is_pending() -> None:
    reader = MessageReader()
    reader.feed(frame(b"whole") + frame(b"cut")[:-1])
    assert reader.next_message() == b"whole"
    assert reader.next_message() is None
    assert reader.pending == 4


@given(
    cuts=st.lists(st.integers(0, 2000)).map(sorted),
    sizes=st.lists(st.integers(0, 300), max_size=8),
    kept=st.integers(0, 200),
)
def test_of_long_messages_the_beginning_is_returned_and_no_more_held(
    cuts: list[int], sizes: list[int], kept: int
) -> None:
    whole = [bytes(number % 256 for number in range(size)) for size in sizes]
    stream = b"".join(map(frame, whole))
    reader, messages = MessageReader(kept), list[bytes]()
    for start, end in pairwise([0, *(cut for cut in cuts if cut <= len(stream)), len(stream)]):
        reader.feed(stream[start:end])
        while (message := reader.next_message()) is not None:
            messages.append(message)
        assert reader.pending <= 2 + kept or reader.pending <= end - start
        assert not reader.ready
    assert messages == [message[:kept] for message in whole]
    assert reader.pending == 0


@pytest.mark.parametrize("size", [0, 1, 65535])
def test_the_shortest_and_the_longest_octet_by_octet(size: int) -> None:
    reader = MessageReader(10)
    for octet in frame(bytes(size)):
        assert reader.next_message() is None
        reader.feed(bytes([octet]))
        assert reader.pending <= 2 + 10 + 1
    assert reader.next_message() == bytes(min(size, 10))
