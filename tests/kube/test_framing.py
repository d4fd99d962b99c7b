# SPDX-License-Identifier: Apache-2.0
"""Lines out of a stream: however it is cut, the lines are the same."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.framing import PREFIX_OCTETS, LineReader, Oversized

LIMIT = 10
BIG = PREFIX_OCTETS * 3


def read(reader: LineReader, *chunks: bytes) -> list[bytes | Oversized]:
    return [item for chunk in chunks for item in reader.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "lines", "pending"),
    [
        pytest.param(b"", [], 0, id="nothing"),
        pytest.param(b"one\ntwo\n", [b"one", b"two"], 0, id="two lines"),
        pytest.param(b"\n\r\n \n", [], 0, id="empty lines"),
        pytest.param(b"one\r\n", [b"one"], 0, id="CRLF"),
        pytest.param(b"one\ntw", [b"one"], 2, id="cut in the middle of a line"),
        pytest.param(b"0123456789\n", [b"0123456789"], 0, id="as large as allowed"),
        pytest.param(b"0123456789a\nb\n", [Oversized(b"0123456789a", 11), b"b"], 0, id="one octet too large"),
        pytest.param(b"x" * BIG + b"\nb\n", [Oversized(b"x" * PREFIX_OCTETS, BIG), b"b"], 0, id="much too large"),
        pytest.param(b"x" * BIG, [], BIG, id="much too large and cut"),
    ],
)
def test_lines(stream: bytes, lines: list[bytes | Oversized], pending: int) -> None:
    reader = LineReader(LIMIT)
    assert read(reader, stream) == lines
    assert reader.pending_octets == pending


STREAM = b'{"a":1}\n\n' + b"y" * 30 + b"\n" + b"z" * BIG + b'\n{"b":2}\r\nrest'


@given(cuts=st.lists(st.integers(0, len(STREAM))).map(sorted))
def test_lines_do_not_depend_on_fragmentation(cuts: list[int]) -> None:
    reader = LineReader(LIMIT)
    lines = read(reader, *(STREAM[start:end] for start, end in pairwise([0, *cuts, len(STREAM)])))
    assert lines == [b'{"a":1}', Oversized(b"y" * 30, 30), Oversized(b"z" * PREFIX_OCTETS, BIG), b'{"b":2}']
    assert reader.pending_octets == 4


def test_what_is_kept_of_an_endless_line_is_bounded() -> None:
    reader = LineReader(LIMIT)
    for _ in range(100):
        reader.feed(b"x" * 4096)
    assert len(reader._pending) <= PREFIX_OCTETS
    assert reader.feed(b"\nnext\n") == [Oversized(b"x" * PREFIX_OCTETS, 409_600), b"next"]
