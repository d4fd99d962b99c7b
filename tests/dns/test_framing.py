# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

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
