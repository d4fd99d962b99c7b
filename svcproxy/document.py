# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON text as plain values that know their line. Pure.

Configuration and manifests are read with it, so that whatever is wrong with a value can be told with file and line.
Documents are cut at their `---` lines first (YAML 1.2.2 §9.1.2: those can stand inside no scalar), so that one broken
document never takes its neighbours along.

Scalars follow the YAML 1.2 core schema, plus `yes no on off` as booleans as Kubernetes reads them. Dates, sexagesimal
numbers and numbers with a leading zero, about which YAML's versions disagree, stay strings. Aliases are allowed; what
they expand to counts against `VALUES_MAX`, so that a small text cannot become a large value.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import yaml

from svcproxy.errors import Problem

OCTETS_MAX = 16 << 20
"""Size of one text."""
DEPTH_MAX = 64
"""Nesting of mappings and sequences."""
VALUES_MAX = 1_000_000
"""Values of one document with every alias expanded."""
DOCUMENTS_MAX = 50_000
"""Documents of one text."""
PROBLEMS_MAX = 100
"""Problems told of one document; further ones are counted."""

_JSON_LIKE = re.compile(r"(---)?\s*[{\[]")
_DIRECTIVES = re.compile(r"(\s*(#.*)?\n|%.*\n)*\s*")
_DOCUMENT_START = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})")
_RADIX = re.compile(r"0o[0-7]{1,22}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_TAG = "tag:yaml.org,2002:"
_MERGE_KEY = "<<"

Scalar = None | bool | int | float | str
Path = tuple[str | int, ...]
"""Keys and indexes from the root of a document."""


@dataclass(slots=True)
class Value:
    """One value. Aliases share it, so it is never changed once its document has been read."""

    line: int
    """1-based: where its key stands if it is the member of a mapping, else where it begins itself; 0 if nowhere."""
    content: "Scalar | list[Value] | dict[str, Value]"


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a text."""

    file: str
    line: int
    """1-based: where it begins."""
    root: Value | None
    """None if the text could not be read to its end."""
    problems: tuple[Problem, ...] = ()

    @property
    def first_line(self) -> int:
        """Where its value begins, behind a `---` line."""
        return self.root.line if self.root is not None else self.line

    def problem(self, message: str, path: Path = ()) -> Problem:
        """A problem with the value at `path`, placed at its line, or at that of the nearest value around it."""
        return Problem(message, self.file, line_of(self.root, path) or self.line, dotted(path))


def dotted(path: Path) -> str:
    """A path for people, such as `spec.ports[0].port`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def line_of(root: Value | None, path: Path) -> int:
    """The line of the value at `path`, or of the nearest one around it that has a line; 0 if there is none."""
    line = root.line if root is not None else 0
    at = root
    for step in path:
        content = at.content if at is not None else None
        if isinstance(content, dict) and isinstance(step, str):
            at = content.get(step)
        elif isinstance(content, list) and isinstance(step, int) and step < len(content):
            at = content[step]
        else:
            break
        if at is None:
            break
        line = at.line or line
    return line


def read(octets: bytes, file: str) -> list[Document]:
    """Every document of a text that holds something. Raises nothing: what is wrong is in `problems`."""
    if len(octets) > OCTETS_MAX:
        return [_unreadable(file, 1, f"larger than {OCTETS_MAX >> 20} MiB")]
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        return [_unreadable(file, octets.count(b"\n", 0, exc.start) + 1, "not UTF-8")]
    parts = list(islice(_split(text), DOCUMENTS_MAX + 1))
    if len(parts) > DOCUMENTS_MAX:
        return [_unreadable(file, parts[-1][0], f"more than {DOCUMENTS_MAX} documents")]
    documents = (_read_one(part, line, file) for line, part in parts)
    return [document for document in documents if document is not None]


def _split(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of each document, its `---` line included."""
    starts = [match.start() for match in _DOCUMENT_START.finditer(text)]
    line = 1
    for begin, end in zip([0, *starts], [*starts, len(text)], strict=True):
        if part := text[begin:end]:
            yield line, part
            line += part.count("\n")


def _unreadable(file: str, line: int, message: str) -> Document:
    return Document(file, line, None, (Problem(message, file, line),))


def _read_one(text: str, line: int, file: str) -> Document | None:
    if _DIRECTIVES.fullmatch(text):
        return None
    if _JSON_LIKE.match(text.lstrip()):
        text = _SURROGATES.sub(_join_surrogates, text)
    builder = _Builder(file, line)
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            builder.take(event)
    except _RefusedError as exc:
        return _unreadable(file, exc.line, str(exc))
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        parts = (part for part in (exc.context, exc.problem) if part)
        last = text.rstrip().count("\n")
        return _unreadable(file, line + (min(mark.line, last) if mark is not None else 0), ", ".join(parts))
    except yaml.reader.ReaderError as exc:
        before = text.encode()[: exc.position]
        return _unreadable(file, line + before.count(b"\n"), "a character that is not allowed in YAML")
    if builder.root is None or builder.root.content is None:
        return None
    return Document(file, line, builder.root, builder.problems())


def _join_surrogates(match: re.Match[str]) -> str:
    """A character that JSON writes as two escapes (RFC 8259 §7), as the one escape that YAML has for it."""
    high, low = int(match[2], 16), int(match[3], 16)
    return f"{match[1]}\\U{0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF):08x}"


class _RefusedError(Exception):
    """The document breaks a bound; nothing of it is used."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not been seen."""

    value: Value
    anchor: str | None
    size: int = 1
    """Values inside, itself included, aliases expanded."""
    key: str | None = None
    """The key whose value comes next."""
    key_line: int = 0
    merged: list[Value] = field(default_factory=list)
    """Values of `<<`; explicit keys go before them, earlier ones before later ones."""


class _Builder:
    """Turns the events of one document into values, without recursion and within the bounds."""

    def __init__(self, file: str, line: int) -> None:
        self.root: Value | None = None
        self._file = file
        self._first_line = line
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Value, int]] = {}
        self._problems: list[Problem] = []

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the document though it could be read; at most `PROBLEMS_MAX` and one."""
        return capped(self._problems, self._file)

    def take(self, event: yaml.Event) -> None:
        """The next event of the parser."""
        assert event.start_mark is not None  # the parser places every event
        line = self._first_line + event.start_mark.line
        match event:
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._check_tag(event.tag, ("map",) if isinstance(event, yaml.MappingStartEvent) else ("seq",), line)
                self._start({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise _RefusedError(line, f"the alias *{event.anchor} names nothing that ends before it")
                value, size = self._anchors[event.anchor]
                self._place(Value(line, value.content), size, None, line)
            case _:
                pass

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if self._wants_key():
            self._key(event, line)
            return
        content: Scalar = event.value
        if event.tag is not None and event.tag != "!":
            content = self._tagged(event, line)
        elif event.implicit[0] and event.tag is None:
            content = plain(event.value)
        self._place(Value(line, content), 1, event.anchor, line)

    def _tagged(self, event: yaml.ScalarEvent, line: int) -> Scalar:
        self._check_tag(event.tag, ("str", "int", "float", "bool", "null"), line)
        if event.tag == f"{_TAG}str":
            return event.value
        return plain(event.value)

    def _check_tag(self, tag: str | None, allowed: tuple[str, ...], line: int) -> None:
        if tag not in {None, "!", *(_TAG + name for name in allowed)}:
            raise _RefusedError(line, f"the tag {tag} is not supported here")

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value.content, dict) and self._open[-1].key is None

    def _key(self, event: yaml.ScalarEvent, line: int) -> None:
        top = self._open[-1]
        if event.anchor is not None:
            self._anchors[event.anchor] = Value(line, event.value), 1
        top.key, top.key_line = event.value, line

    def _start(self, content: "list[Value] | dict[str, Value]", anchor: str | None, line: int) -> None:
        if self._wants_key():
            raise _RefusedError(line, "a key must be a string")
        if len(self._open) >= DEPTH_MAX:
            raise _RefusedError(line, f"nested deeper than {DEPTH_MAX} levels")
        top = self._open[-1] if self._open else None
        if anchor is not None:
            self._anchors.pop(anchor, None)
        self._open.append(
            _Open(Value(top.key_line if top is not None and top.key is not None else line, content), anchor)
        )

    def _end(self) -> None:
        done = self._open.pop()
        for source in done.merged:
            assert isinstance(done.value.content, dict)
            assert isinstance(source.content, dict)
            for key, value in source.content.items():
                done.value.content.setdefault(key, value)
        self._place(done.value, done.size, done.anchor, done.value.line)

    def _place(self, value: Value, size: int, anchor: str | None, line: int) -> None:
        """Put a finished value where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = value, size
        if not self._open:
            self.root = value
            return
        top = self._open[-1]
        top.size += size
        if top.size > VALUES_MAX:
            raise _RefusedError(line, f"more than {VALUES_MAX} values")
        if isinstance(top.value.content, list):
            top.value.content.append(value)
            return
        assert isinstance(top.value.content, dict)
        if top.key is None:
            if not isinstance(value.content, str):
                raise _RefusedError(line, "a key must be a string")
            top.key, top.key_line = value.content, line
            return
        key, top.key = top.key, None
        value.line = top.key_line
        if key == _MERGE_KEY:
            self._merge(value, top)
        elif key in top.value.content:
            first = top.value.content[key].line
            self._problems.append(
                Problem("set twice, first on line " + str(first), self._file, value.line, self._path(key))
            )
        else:
            top.value.content[key] = value

    def _merge(self, value: Value, top: _Open) -> None:
        sources = value.content if isinstance(value.content, list) else [value]
        if not all(isinstance(source.content, dict) for source in sources):
            raise _RefusedError(value.line, f"{_MERGE_KEY} takes a mapping or a list of mappings")
        top.merged.extend(sources)

    def _path(self, key: str) -> str:
        """The dotted path of a key of the innermost open mapping."""
        steps: list[str | int] = []
        for outer in self._open[:-1]:
            content = outer.value.content
            steps.append(len(content) if isinstance(content, list) else outer.key or "")
        return dotted((*steps, key))


def capped(problems: list[Problem], file: str) -> tuple[Problem, ...]:
    """The first `PROBLEMS_MAX` problems, and one that counts the rest."""
    if len(problems) <= PROBLEMS_MAX:
        return tuple(problems)
    return (*problems[:PROBLEMS_MAX], Problem(f"{len(problems) - PROBLEMS_MAX} further problems", file))


def plain(text: str) -> Scalar:
    """What an unquoted scalar stands for."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _RADIX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text)
    return text
