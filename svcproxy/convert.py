# SPDX-License-Identifier: Apache-2.0
"""Documents as typed structs, with everything that is wrong with them at once. Pure.

msgspec's own conversion stops at the first mismatch and knows no lines. Here the type is walked field by field beside
the document, and every mismatch becomes a `Problem`. Two things go beyond msgspec:

- a check: a function that returns the canonical form of a value or raises ValueError, given with the type as
  `Annotated[str, Meta(extra={"check": function})]` or by the path of the value;
- null stands for the default wherever the type does not take null, as Kubernetes reads it.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import inspect as mi

from svcproxy.document import Document, Path, Value, capped
from svcproxy.errors import Problem

T = TypeVar("T")
Check = Callable[[Any], Any]
"""Returns what stands in place of the value; raises ValueError with a message for people."""

_NO_CHECKS: Final[Mapping[str, Check]] = {}


class _Bad:
    """Stands for a value that has a problem."""


_BAD = _Bad()


def convert(
    document: Document, type_: type[T], checks: Mapping[str, Check] = _NO_CHECKS
) -> tuple[T | None, tuple[Problem, ...]]:
    """The document as a `type_`, and all problems, those of reading it included.

    `checks` are keyed by path with `[]` for every index, such as `spec.ports[].name`. A value with a problem gives way
    to its default, so that the rest can be examined further; None comes back where there is no default.
    """
    if document.root is None:
        return None, document.problems
    walk = _Walk(document, checks)
    result = walk.convert(document.root, _type_info(cast("Hashable", type_)), (), "")
    problems = capped([*document.problems, *walk.problems], document.file)
    return (None if result is _BAD else result), problems


@cache
def _type_info(type_: Hashable) -> mi.Type:
    return mi.type_info(type_)


class _Walk:
    def __init__(self, document: Document, checks: Mapping[str, Check]) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._checks = checks

    def _refuse(self, message: str, path: Path) -> _Bad:
        self.problems.append(self._document.problem(message, path))
        return _BAD

    def convert(self, value: Value, info: mi.Type, path: Path, pattern: str) -> Any:
        """The value as a built-in or struct of that type, or `_BAD`. `pattern`: the path as `checks` spells it."""
        check: Check | None = self._checks.get(pattern)
        while isinstance(info, mi.Metadata | mi.UnionType):
            if isinstance(info, mi.Metadata):
                check = check or (info.extra or {}).get("check")
                info = info.type
            elif value.content is None and info.includes_none:
                return None
            else:
                info = _only_member(info)
        result = self._convert(value, info, path, pattern)
        if check is None or result is _BAD or result is None:
            return result
        try:
            return check(result)
        except ValueError as exc:
            return self._refuse(str(exc), path)

    def _convert(self, value: Value, info: mi.Type, path: Path, pattern: str) -> Any:
        match info:
            case mi.StructType():
                return self._struct(value, info, path, pattern)
            case mi.VarTupleType() | mi.ListType():
                return self._sequence(value, info, path, pattern)
            case mi.DictType():
                return self._mapping(value, info, path, pattern)
            case mi.EnumType():
                return self._choice(value, [member.value for member in info.cls], info.cls, path)
            case mi.LiteralType():
                return self._choice(value, list(info.values), lambda chosen: chosen, path)
            case mi.IntType() | mi.FloatType():
                return self._number(value, info, path)
            case mi.StrType() | mi.BoolType() | mi.NoneType():
                wanted = {mi.StrType: str, mi.BoolType: bool, mi.NoneType: type(None)}[type(info)]
                if isinstance(value.content, wanted):
                    return value.content
                return self._refuse(_mismatch(_expected(info), value), path)
            case _:
                raise TypeError(f"no conversion to {info}")

    def _struct(self, value: Value, info: mi.StructType, path: Path, pattern: str) -> Any:
        if not isinstance(value.content, dict):
            return self._refuse(_mismatch(_expected(info), value), path)
        arguments: dict[str, Any] = {}
        complete = True
        for field in info.fields:
            name = field.encode_name
            member = value.content.get(name)
            absent = member is None or (member.content is None and not _takes_null(field.type))
            if absent and field.required:
                self._refuse("required", (*path, name))
                complete = False
            elif not absent and member is not None:
                result = self.convert(member, field.type, (*path, name), f"{pattern}.{name}" if pattern else name)
                if result is not _BAD:
                    arguments[field.name] = result
                elif field.required:
                    complete = False
        if info.forbid_unknown_fields:
            self._report_unknown(value.content, [field.encode_name for field in info.fields], path)
        return info.cls(**arguments) if complete else _BAD

    def _report_unknown(self, content: Mapping[str, Value], known: list[str], path: Path) -> None:
        for key in content:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f", did you mean {near[0]}?" if near else f", known are {', '.join(known)}"
                self._refuse(f"unknown key{hint}", (*path, key))

    def _sequence(self, value: Value, info: mi.VarTupleType | mi.ListType, path: Path, pattern: str) -> Any:
        if not isinstance(value.content, list):
            return self._refuse(_mismatch("a list", value), path)
        items = [
            self.convert(item, info.item_type, (*path, index), f"{pattern}[]")
            for index, item in enumerate(value.content)
        ]
        if any(item is _BAD for item in items):
            return _BAD
        return tuple(items) if isinstance(info, mi.VarTupleType) else items

    def _mapping(self, value: Value, info: mi.DictType, path: Path, pattern: str) -> Any:
        if not isinstance(value.content, dict):
            return self._refuse(_mismatch("a mapping", value), path)
        items = {
            key: self.convert(item, info.value_type, (*path, key), f"{pattern}.{{}}")
            for key, item in value.content.items()
        }
        return _BAD if any(item is _BAD for item in items.values()) else items

    def _choice(self, value: Value, choices: list[Any], make: Callable[[Any], Any], path: Path) -> Any:
        if any(value.content == choice and type(value.content) is type(choice) for choice in choices):
            return make(value.content)
        return self._refuse(_mismatch(f"one of {', '.join(map(str, choices))}", value), path)

    def _number(self, value: Value, info: mi.IntType | mi.FloatType, path: Path) -> Any:
        number = value.content
        integral = isinstance(info, mi.IntType)
        if (
            isinstance(number, bool)
            or not isinstance(number, int if integral else int | float)
            or not math.isfinite(number)
        ):
            return self._refuse(_mismatch(_expected(info), value), path)
        low_enough = (info.le is None or number <= info.le) and (info.lt is None or number < info.lt)
        high_enough = (info.ge is None or number >= info.ge) and (info.gt is None or number > info.gt)
        if not (low_enough and high_enough):
            return self._refuse(f"{number} is out of range: {_range(info)}", path)
        return number if integral else float(number)


def _only_member(info: mi.UnionType) -> mi.Type:
    members = [member for member in info.types if not isinstance(member, mi.NoneType)]
    if len(members) != 1:
        raise TypeError(f"no conversion to {info}")
    return members[0]


def _takes_null(info: mi.Type) -> bool:
    if isinstance(info, mi.Metadata):
        return _takes_null(info.type)
    return isinstance(info, mi.NoneType | mi.AnyType) or (isinstance(info, mi.UnionType) and info.includes_none)


def _expected(info: mi.Type) -> str:
    names: dict[type, str] = {
        mi.StrType: "a string",
        mi.BoolType: "true or false",
        mi.NoneType: "null",
        mi.IntType: "an integer",
        mi.FloatType: "a number",
        mi.StructType: "a mapping",
    }
    return names[type(info)]


def _range(info: mi.IntType | mi.FloatType) -> str:
    bounds = [("over", info.gt), ("at least", info.ge), ("below", info.lt), ("at most", info.le)]
    return " and ".join(
        f"{word} {bound:g}" if bound < 1e6 else f"{word} {bound}" for word, bound in bounds if bound is not None
    )


_SHOWN_MAX = 80
"""Characters of a wrong value that its message shows."""


def _mismatch(expected: str, value: Value) -> str:
    match value.content:
        case dict():
            found = "a mapping"
        case list():
            found = "a list"
        case None:
            found = "nothing"
        case str(text):
            found = repr(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…")
        case other:
            found = str(msgspec.to_builtins(other)).lower() if isinstance(other, bool) else str(other)
    quote = (
        "; quote it to make it one" if expected == "a string" and isinstance(value.content, bool | int | float) else ""
    )
    return f"expected {expected}, found {found}{quote}"
