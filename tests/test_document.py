# SPDX-License-Identifier: Apache-2.0
import json
import math
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from svcproxy.convert import convert
from svcproxy.document import (
    DEPTH_MAX,
    DOCUMENTS_MAX,
    OCTETS_MAX,
    PROBLEMS_MAX,
    VALUES_MAX,
    Document,
    Value,
    line_of,
    plain,
    read,
)


def builtins(value: Value | None) -> Any:
    """The contents of a value, lines left out."""
    match value.content if value is not None else None:
        case dict() as members:
            return {key: builtins(member) for key, member in members.items()}
        case list() as entries:
            return [builtins(entry) for entry in entries]
        case scalar:
            return scalar


def contents(text: str) -> list[Any]:
    documents = read(text.encode(), "f")
    assert [problem for document in documents for problem in document.problems] == []
    return [builtins(document.root) for document in documents]


def problems(text: str | bytes) -> list[str]:
    octets = text.encode() if isinstance(text, str) else text
    return [str(problem) for document in read(octets, "f") for problem in document.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", None, id="empty"),
        pytest.param("Null", None, id="null"),
        pytest.param("yes", True, id="yes, as Kubernetes reads it"),
        pytest.param("OFF", False, id="off"),
        pytest.param("y", "y", id="y is text"),
        pytest.param("-12", -12, id="integer"),
        pytest.param("0x1F", 31, id="hexadecimal"),
        pytest.param("0o17", 15, id="octal"),
        pytest.param("017", "017", id="a leading zero is text: 15 or 17?"),
        pytest.param("1_000", "1_000", id="underscores are text"),
        pytest.param("10:30", "10:30", id="no sexagesimal numbers"),
        pytest.param("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8", id="an IPv6 address is text"),
        pytest.param("2024-01-01", "2024-01-01", id="a date is text"),
        pytest.param("1e3", 1000.0, id="exponent"),
        pytest.param(".5", 0.5, id="fraction"),
        pytest.param("-.INF", -math.inf, id="infinity"),
        pytest.param("1.2.3", "1.2.3", id="version"),
        pytest.param("9" * 30, float("9" * 30), id="more digits than an integer may have"),
        pytest.param("10.0.0.1", "10.0.0.1", id="address"),
    ],
)
def test_plain_scalars(text: str, expected: object) -> None:
    found = plain(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a: 1\n---\nb: 2\n", [{"a": 1}, {"b": 2}], id="documents"),
        pytest.param("# c\n\n---\n# c\n", [], id="comments alone"),
        pytest.param("%YAML 1.2\n---\na: 1\n", [{"a": 1}], id="directive"),
        pytest.param("--- {a: 1}\n--- text\n", [{"a": 1}, "text"], id="contents on the marker's line"),
        pytest.param("a: |\n  ---\n  x\n", [{"a": "---\nx\n"}], id="a marker inside a block scalar is indented"),
        pytest.param("---c: 1\n", [{"---c": 1}], id="no marker without a blank after it"),
        pytest.param("null\n---\n~\n---\n", [], id="documents that hold nothing"),
        pytest.param("a: '1'\nb: \"yes\"\nc: !!str 1\nd: ! 1\n", [{"a": "1", "b": "yes", "c": "1", "d": "1"}], id="text"),  # noqa: E501
        pytest.param("1: a\nyes: b\n", [{"1": "a", "yes": "b"}], id="keys are text"),
        pytest.param("a: &x {b: 1}\nc: *x\n", [{"a": {"b": 1}, "c": {"b": 1}}], id="alias"),
        pytest.param("&k a: 1\nb: *k\n", [{"a": 1, "b": "a"}], id="alias of a key"),
        pytest.param(
            "a: &a {x: 1, y: 1}\nb: &b {x: 2}\nc: {<<: [*b, *a], z: 3}\nd: {<<: *a, y: 4}\n",
            [{"a": {"x": 1, "y": 1}, "b": {"x": 2}, "c": {"z": 3, "x": 2, "y": 1}, "d": {"y": 4, "x": 1}}],
            id="merge keys",
        ),
        pytest.param('{\n\t"a": [1,\n\t\ttrue]}', [{"a": [1, True]}], id="JSON with tabs"),
        pytest.param('{"a": "\\ud83d\\ude00 \\\\ud83d \\/"}', [{"a": "\U0001f600 \\ud83d /"}], id="JSON escapes"),
        pytest.param("\ufeffa: 1\r\nb: 2\r\n", [{"a": 1, "b": 2}], id="byte order mark, CRLF"),
    ],
)  # fmt: skip
def test_documents(text: str, expected: list[object]) -> None:
    assert contents(text) == expected


def test_every_value_knows_its_line() -> None:
    (first, second) = read(b"a:\n  b:\n  - x\n  - y: |\n      long\n    z: 1\n---\n\nc: 1\n", "f")
    lines = [(path, line_of(first.root, path)) for path in [(), ("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1, "z")]]
    assert [line for _, line in lines] == [1, 1, 2, 3, 6]
    assert line_of(first.root, ("a", "b", 7, "q")) == 2, "the nearest value around what is not there"
    assert line_of(first.root, ("a", 0)) == 1
    assert (second.line, line_of(second.root, ("c",))) == (7, 9)


def bomb(levels: int) -> str:
    """Ten to the power of `levels` values in a few lines."""
    return "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, levels))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", ["f:4: b.c: set twice", "f:5: a: set twice"], id="twice"),
        pytest.param("l:\n- x\n- {a: 1, a: 2}\n", ["f:3: l[1].a: set twice, first on line 3"], id="in a list"),
        pytest.param("a: 1\n---\nb: [\n---\nc: }\n", ["f:3: while parsing", "f:5: while"], id="two broken"),
        pytest.param("a: &a [*a]\n", ["f:1: the alias *a names nothing that ends before it"], id="a value in itself"),
        pytest.param("a: *b\n", ["f:1: the alias *b names nothing"], id="unknown alias"),
        pytest.param("a: &x 1\n---\nb: *x\n", ["f:3: the alias *x names nothing"], id="alias of another document"),
        pytest.param(bomb(9), ["f:7: more than 1000000 values"], id="a billion laughs"),
        pytest.param("[" * 65 + "]" * 65, ["f:1: nested deeper than 64 levels"], id="deep"),
        pytest.param("[" * 100_000, ["f:1: while increasing flow level, exceeded maximum"], id="very deep"),
        pytest.param("a: {<<: 1}\n", ["f:1: << takes a mapping or a list of mappings"], id="merge of a number"),
        pytest.param("? [a]\n: 1\n", ["f:1: a key must be a string"], id="a list as key"),
        pytest.param("a: !!python/name:os.system x\n", ["f:1: the tag tag:yaml.org,2002:python/name"], id="tag"),
        pytest.param("a: !x {}\n", ["f:1: the tag !x is not supported"], id="private tag"),
        pytest.param("a: 1\nb: \x01\n", ["f:2: a character that is not allowed in YAML"], id="control character"),
        pytest.param(b"a: 1\nb: \xff\n", ["f:2: not UTF-8"], id="not UTF-8"),
        pytest.param('{"a": 1}\n{"b": 2}\n', ["f:2: did not find expected <document start>"], id="JSON after JSON"),
        pytest.param('{"a": "\\ud83d"}', ["f:1: while parsing a quoted scalar"], id="half a surrogate pair"),
        pytest.param(b"#" * (OCTETS_MAX + 1), ["f:1: larger than 16 MiB"], id="too large"),
        pytest.param("---\n" * (DOCUMENTS_MAX + 1), ["f:50001: more than 50000 documents"], id="too many"),
    ],
)  # fmt: skip
def test_problems(text: str | bytes, expected: list[str]) -> None:
    found = problems(text)
    assert len(found) == len(expected)
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


def test_bounds_are_inclusive() -> None:
    assert problems("[" * DEPTH_MAX + "]" * DEPTH_MAX) == []
    assert VALUES_MAX > 10**5
    assert problems(bomb(5)) == []


def test_problems_of_one_document_are_capped() -> None:
    found = problems("a: 1\n" * (PROBLEMS_MAX + 11))
    assert len(found) == PROBLEMS_MAX + 1
    assert found[-1] == "f: 10 further problems"


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    for document in read(octets, "f"):
        assert document.root is not None or document.problems
        assert all(problem.line is not None and problem.line >= 1 for problem in document.problems)


@given(st.text(alphabet=" \n\t-:{}[],&*!|>'\"%#?<~ab01.", max_size=60))
def test_yaml_like_text_is_read_or_refused(text: str) -> None:
    lines = text.count("\n") + 2
    for document in read(text.encode(), "f"):
        assert document.root is not None or document.problems
        assert all(1 <= (problem.line or 0) <= lines for problem in document.problems)


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**19), 10**19), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8).filter(lambda key: key != "<<"), inner, max_size=4),
    ),
    max_leaves=15,
)


@given(tree=TREES, ascii_only=st.booleans())
def test_json_reads_back(tree: Any, ascii_only: bool) -> None:
    text = json.dumps(tree, ensure_ascii=ascii_only).replace("\x7f", "\\u007f")
    (document,) = read(text.encode(), "f") or [Document("f", 1, Value(1, None))]
    if not document.problems:
        assert builtins(document.root) == tree
    else:
        # Pairs are joined in objects and lists, as JSON has them; a document that is one string is YAML.
        escaped_pair = isinstance(tree, str) and any(f"\\ud{digit}" in text for digit in "89ab")
        assert escaped_pair or not ascii_only, "only what is outside YAML's set may be refused"


@given(tree=TREES)
def test_what_another_yaml_writer_wrote_reads_back(tree: Any) -> None:
    text = yaml.safe_dump(tree, allow_unicode=False)
    (document,) = read(text.encode(), "f") or [Document("f", 1, Value(1, None))]
    assert document.problems == ()
    assert builtins(document.root) == tree


# --- conversion


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: Annotated[int, Meta(ge=1, lt=10)] = 1


class Outer(msgspec.Struct, frozen=True, rename="camel"):
    inner: Inner = Inner("none")
    many: tuple[Inner, ...] = ()
    some_text: str | None = "x"
    flag: bool = False
    ratio: float = 0.5
    colour: Colour = Colour.RED
    word: Literal["a", "b"] = "a"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    halved: Annotated[int, Meta(extra={"check": even})] = 0
    numbers: list[int] | None = None


def converted(text: str, **checks: Any) -> tuple[Outer | None, list[str]]:
    (document,) = read(text.encode(), "f")
    result, found = convert(document, Outer, checks)
    return result, [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("{}", Outer(), id="defaults"),
        pytest.param("unknown: 1", Outer(), id="an open struct takes no notice of other keys"),
        pytest.param("inner: null\nflag: null\nmany:\n", Outer(), id="null is the default"),
        pytest.param("someText: null", Outer(some_text=None), id="where null is a value it is one"),
        pytest.param("inner: {name: a, size: 9}", Outer(inner=Inner("a", 9)), id="nested"),
        pytest.param("many: [{name: a}, {name: b}]", Outer(many=(Inner("a"), Inner("b"))), id="list"),
        pytest.param("ratio: 2", Outer(ratio=2.0), id="an integer is a number"),
        pytest.param("colour: blue\nword: b", Outer(colour=Colour.BLUE, word="b"), id="choices"),
        pytest.param("labels: {a: b}", Outer(labels={"a": "b"}), id="mapping"),
        pytest.param("halved: 8", Outer(halved=4), id="a check gives the canonical form, once"),
        pytest.param("numbers: [1, 2]", Outer(numbers=[1, 2]), id="optional list"),
    ],
)
def test_conversion(text: str, expected: Outer) -> None:
    assert converted(text) == (expected, [])


def test_every_mismatch_is_told_and_the_rest_converted() -> None:
    result, found = converted("""\
inner: {size: 10, nam: x}
many:
- {name: ok}
- {name: 5}
- text
someText: [a]
flag: 1
ratio: true
colour: green
word: {}
labels: {a: 1}
halved: 3
numbers: [1, x, 2.5]
""")
    assert found == [
        "f:1: inner.name: required",
        "f:1: inner.size: 10 is out of range: at least 1 and below 10",
        "f:1: inner.nam: unknown key, did you mean name?",
        "f:4: many[1].name: expected a string, found 5; quote it to make it one",
        "f:5: many[2]: expected a mapping, found 'text'",
        "f:6: someText: expected a string, found a list",
        "f:7: flag: expected true or false, found 1",
        "f:8: ratio: expected a number, found true",
        "f:9: colour: expected one of red, blue, found 'green'",
        "f:10: word: expected one of a, b, found a mapping",
        "f:11: labels.a: expected a string, found 1; quote it to make it one",
        "f:12: halved: 3 is odd",
        "f:13: numbers[1]: expected an integer, found 'x'",
        "f:13: numbers[2]: expected an integer, found 2.5",
    ]
    assert result == Outer(), "what is bad gives way to its default"


def test_checks_by_path() -> None:
    def short(text: str) -> str:
        if len(text) > 1:
            raise ValueError("too long")
        return text.upper()

    (document,) = read(b"many:\n- {name: a}\n- {name: bb}\n- {name: cc}\n", "f")
    result, found = convert(document, Outer, {"many[].name": short})
    assert [str(problem) for problem in found] == ["f:3: many[1].name: too long", "f:4: many[2].name: too long"]
    (document,) = read(b"many: [{name: a}]", "f")
    result, _ = convert(document, Outer, {"many[].name": short})
    assert result == Outer(many=(Inner("A"),))


def test_a_required_value_without_default_leaves_nothing() -> None:
    (document,) = read(b"size: 3", "f")
    result, found = convert(document, Inner)
    assert result is None
    assert [str(problem) for problem in found] == ["f:1: name: required"]


def test_long_values_are_not_repeated_in_full() -> None:
    _, (problem,) = converted(f"colour: {'x' * 500}")
    assert len(problem) < 200


@given(tree=TREES)
def test_conversion_agrees_with_msgspec(tree: Any) -> None:
    """What msgspec takes strictly is taken, with the same result."""
    mapping = {"someText": tree, "flag": tree, "numbers": tree, "ratio": tree, "labels": tree}
    for key, value in mapping.items():
        (document,) = read(json.dumps({key: value}).encode(), "f")
        result, found = convert(document, Outer)
        try:
            expected = msgspec.convert({key: value}, Outer)
        except msgspec.ValidationError:
            assert found or value is None
        else:
            assert (result, found) == (expected, ())
