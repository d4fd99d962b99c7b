# SPDX-License-Identifier: Apache-2.0
"""How tables, ages and lists are written."""

import io

import pytest

from svcproxy.client.console import Console, Table, duration, or_dash

TABLE = Table(("NAME", "VALUE"), [("a", "1"), ("long-name", "[red]2")], "Things")


def test_a_plain_table_is_aligned() -> None:
    out = io.StringIO()
    Console(out, terminal=False).table(TABLE)
    assert out.getvalue() == "Things\nNAME        VALUE\na           1\nlong-name   [red]2\n"


def test_a_terminal_gets_the_same_words_dressed_up() -> None:
    out = io.StringIO()
    Console(out, terminal=True).table(TABLE)
    text = out.getvalue()
    assert "\x1b[" in text
    assert all(word in text for word in ("Things", "NAME", "long-name", "[red]2")), "what cells say is never markup"


def test_control_characters_from_outside_never_reach_the_terminal() -> None:
    out = io.StringIO()
    Console(out, terminal=False).table(Table(("REASON",), [("\x1b]0;owned\x07\nsecond\x9b31m",)]))
    assert out.getvalue() == "REASON\n ]0;owned  second 31m\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1.0, "0s"),
        (0.4, "0s"),
        (59.9, "59s"),
        (60.0, "1m"),
        (192.0, "3m12s"),
        (600.0, "10m"),
        (3600.0, "1h"),
        (14_700.0, "4h5m"),
        (90_000.0, "1d1h"),
        (1_036_800.0, "12d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("items", "most", "text"),
    [
        ([], None, "-"),
        (["a", "b"], None, "a,b"),
        (["a", "b", "c"], 2, "a,b + 1 more"),
        (["a", "b"], 2, "a,b"),
    ],
)
def test_lists(items: list[str], most: int | None, text: str) -> None:
    assert or_dash(items, most) == text
