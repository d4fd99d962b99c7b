# SPDX-License-Identifier: Apache-2.0
"""Corefiles are read as CoreDNS reads them; what cannot be read is refused with file and line."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.errors import ConfigError
from svcproxy.migrate import caddyfile
from svcproxy.migrate.caddyfile import Corefile, Directive, ServerBlock, parse, tokens, unresolved


def read(text: str, **variables: str) -> Corefile:
    return parse(text, "Corefile", variables)


def words(text: str) -> list[tuple[str, int, bool]]:
    return [(each.text, each.line, each.starts) for each in tokens(text, "Corefile")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a  b\n\tc", [("a", 1, True), ("b", 1, False), ("c", 2, True)], id="blanks and lines"),
        pytest.param("\ufeffa", [("a", 1, True)], id="byte order mark"),
        pytest.param("a\r\nb", [("a", 1, True), ("b", 2, True)], id="carriage return"),
        pytest.param("a # b\nc", [("a", 1, True), ("c", 2, True)], id="comment"),
        pytest.param("a#b\nc", [("a", 1, True), ("c", 2, True)], id="a comment begins within a word"),
        pytest.param('"a # b" c', [("a # b", 1, True), ("c", 1, False)], id="quotes hold blanks and #"),
        pytest.param(r'"a\"b\n\\"', [(r"a\"b\n\\".replace(r"\"", '"'), 1, True)], id="only a quote is escaped"),
        pytest.param('a"b"', [('a"b"', 1, True)], id="a quote within a word is a quote"),
        pytest.param('""', [("", 1, True)], id="empty quotes are a word"),
        pytest.param('"a\nb" c\nd', [("a\nb", 1, True), ("c", 2, False), ("d", 3, True)], id="quotes over lines"),
        pytest.param("{ }", [("{", 1, True), ("}", 1, False)], id="braces are words"),
        pytest.param("a{ b}", [("a{", 1, True), ("b}", 1, False)], id="but only by themselves"),
    ],
)
def test_words(text: str, expected: list[tuple[str, int, bool]]) -> None:
    assert words(text) == expected


def block(text: str, **variables: str) -> ServerBlock:
    [found] = read(text, **variables).blocks
    return found


def test_a_block_has_zones_and_directives() -> None:
    found = block(".:53 example.org {\n  errors\n  cache 30 {\n    prefetch 1\n  }\n  loop\n}\n")
    assert found.keys == (".:53", "example.org")
    assert [each.words for each in found.directives] == ["errors", "cache 30", "loop"]
    assert [each.words for each in found.directives[1].block] == ["prefetch 1"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        pytest.param(". {\n}", (".",), id="one"),
        pytest.param("a b {\n}", ("a", "b"), id="several"),
        pytest.param("a, b {\n}", ("a", "b"), id="with a comma"),
        pytest.param("a,\nb {\n}", ("a", "b"), id="a comma goes on in the next line"),
        pytest.param("{$ZONE}:53 {\n}", ("x.example:53",), id="a variable"),
    ],
)
def test_zones_of_a_block(text: str, keys: tuple[str, ...]) -> None:
    assert block(text, ZONE="x.example").keys == keys


def test_braces_are_not_needed_for_a_single_block() -> None:
    found = block("example.org:53\nerrors\ncache 30\n")
    assert (found.keys, [each.words for each in found.directives]) == (("example.org:53",), ["errors", "cache 30"])


def test_the_last_brace_may_close_two_blocks() -> None:
    """As in CoreDNS; of all but the last it is an error."""
    [directive] = block(". {\n cache {\n  success 1\n}\n").directives
    assert [each.words for each in directive.block] == ["success 1"]


def test_directives_nest() -> None:
    [directive] = block(". {\n a b {\n  c d {\n   e\n  }\n  f\n }\n}").directives
    inner = (Directive("c", ("d",), 3, (Directive("e", (), 4),)), Directive("f", (), 6))
    assert directive == Directive("a", ("b",), 2, inner)


def test_snippets_are_put_in_place_with_their_own_lines() -> None:
    found = block("(s) {\n errors\n cache 30\n}\n. {\n import s\n loop\n forward . 192.0.2.1\n}\n")
    assert [(each.words, each.line) for each in found.directives] == [
        ("errors", 2),
        ("cache 30", 3),
        ("loop", 7),
        ("forward . 192.0.2.1", 8),
    ]


def test_snippets_serve_inside_of_directives() -> None:
    [directive] = block(
        "(s) {\n force_tcp\n expire 5s\n}\n. {\n forward . 192.0.2.1 {\n  import s\n  max_fails 0\n }\n}"
    ).directives
    assert [each.words for each in directive.block] == ["force_tcp", "expire 5s", "max_fails 0"]


def test_an_import_of_a_file_is_left_out_and_noted() -> None:
    found = read(". {\n import /etc/coredns/*.conf\n errors\n}\nimport other\n")
    assert [(each.words, each.line) for each in found.imports] == [
        ("import /etc/coredns/*.conf", 2),
        ("import other", 5),
    ]
    assert [each.name for each in found.blocks[0].directives] == ["errors"]


def test_variables() -> None:
    found = read(". {\n forward . {$A}:53 {%B%} x{$C}\n bind {$C}\n}", A="192.0.2.1", B="two words")
    assert found.blocks[0].directives[0].args == (".", "192.0.2.1:53", "two words", "x{$C}")
    assert found.unknown == {"C": 2}
    assert unresolved("x{$C}")
    assert not unresolved("{}$C")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param('. {\n errors "x\n}\n', 2, "the quote that is opened here is never closed", id="quote"),
        pytest.param(". {\n errors\n", 2, "the file ends before the block does", id="block not closed"),
        pytest.param(". {\n cache {\n  success 1\n", 3, "the file ends before the block does", id="inner block"),
        pytest.param(". {\n}\n}\n", 3, "a } without a {", id="one brace too many"),
        pytest.param(".\n errors\n}\n", 3, "a } without a {", id="a brace that nothing opened"),
        pytest.param("a, {\n}\n", 1, "a zone is missing", id="comma before the block"),
        pytest.param("(s) {\n}\n(s) {\n}\n", 3, "the snippet (s) is there twice", id="snippet twice"),
        pytest.param("(s)\n", 1, "the snippet (s) has no block", id="snippet without a block"),
        pytest.param("(s) {\n a {\n}\n", 3, "the file ends before the block does", id="snippet not closed"),
        pytest.param("(s) {\n import s\n}\n. {\n import s\n}\n", 2, "one that imports itself", id="snippet of itself"),
        pytest.param(". {\n import\n}\n", 2, "import needs the name", id="import of nothing"),
        pytest.param(". {\n import a b\n}\n", 2, "import takes one name", id="import of two"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    [problem] = refused.value.problems
    assert (problem.file, problem.line) == ("Corefile", line)
    assert message in problem.message


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nested deeper"):
        read(". {\n" + "a {\n" * (caddyfile.DEPTH_MAX + 1))
    with pytest.raises(ConfigError, match="words"):
        read("a " * (caddyfile.TOKENS_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read("#" * (caddyfile.OCTETS_MAX + 1))
    doubling = "(a0) {\n x\n}\n" + "".join(
        f"(a{number}) {{\n import a{number - 1}\n import a{number - 1}\n}}\n" for number in range(1, 30)
    )
    with pytest.raises(ConfigError, match=r"imports|words"):
        read(f"{doubling}. {{\n import a29\n}}\n")


SPECIAL = st.sampled_from(
    ["{", "}", '"', "#", "\n", " ", "import", "(s)", "s", ",", "{$A}", "{%A%}", "\\", ".:53", "\r"]
)


@given(st.lists(st.one_of(SPECIAL, st.text(max_size=4))).map("".join))
def test_any_text_is_read_or_refused_with_file_and_line(text: str) -> None:
    try:
        places = [each.line for each in read(text, A="{").blocks]
    except ConfigError as exc:
        places = [problem.line or 0 for problem in exc.problems if problem.file == "Corefile"]
        places = places or [0]
    assert all(1 <= line <= text.count("\n") + 1 for line in places)


NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8).filter(lambda name: name != "import")
ARGS = st.text(max_size=12).filter(
    lambda arg: arg not in {"{", "}"} and not any(part in arg for part in ("{$", "{%", "\\"))
)
"""No variables, and no backslashes, which there is no way to write before a quote."""
LINES = st.recursive(
    st.builds(Directive, NAMES, st.lists(ARGS, max_size=3).map(tuple), st.just(0)),
    lambda inner: st.builds(
        Directive, NAMES, st.lists(ARGS, max_size=3).map(tuple), st.just(0), st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=8,
)


def written(each: Directive) -> str:
    """A directive as text, every argument in quotes."""
    arguments = "".join(' "' + arg.replace('"', '\\"') + '"' for arg in each.args)
    block = " {\n" + "".join(map(written, each.block)) + "}" if each.block else ""
    return f"{each.name}{arguments}{block}\n"


def without_lines(each: Directive) -> Directive:
    return Directive(each.name, each.args, 0, tuple(map(without_lines, each.block)))


@given(st.lists(LINES, max_size=5))
def test_what_is_written_is_read(directives: list[Directive]) -> None:
    [found] = read(f".:53 {{\n{''.join(map(written, directives))}}}\n").blocks
    assert list(map(without_lines, found.directives)) == directives
