# SPDX-License-Identifier: Apache-2.0
"""The rows that `docs/reference/config.md` must hold, made from the configuration tree itself.

`python -m tests.config_reference` prints the tables.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as mi

from svcproxy import syntax
from svcproxy.config import LIVE, Config, Seconds

TEXT_FORMS = {
    syntax.path: "path",
    syntax.node_name: "DNS name",
    syntax.zone: "DNS name",
    syntax.zone_or_cidr: "DNS name or CIDR",
    syntax.dns_label: "DNS label",
    syntax.cidr: "CIDR",
    syntax.node_port_addresses: "CIDR or keyword",
    syntax.listen_address: "ADDRESS:PORT",
    syntax.intercepted_address: "ADDRESS",
    syntax.resolver_address: "ADDRESS or ADDRESS:PORT",
    syntax.interface_name: "interface name",
    syntax.api_server_url: "URL",
}


@dataclass(frozen=True)
class Key:
    """One key of the tree."""

    path: str
    type: str
    default: str
    change: str
    meaning: str

    @property
    def row(self) -> str:
        """The key as a row of its table."""
        return f"| `{self.path}` | {self.type} | `{self.default}` | {self.change} | {self.meaning} |"


def sections() -> Iterator[tuple[str, str, list[Key]]]:
    """(path, meaning, keys) of each mapping of the tree, in order."""
    return _sections(Config, "")


def _sections(struct: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str, list[Key]]]:
    meanings = _field_docstrings(struct)
    keys, inner = [], []
    for field in mi.type_info(struct).fields:  # type: ignore[attr-defined]  # the type of a struct has fields
        path = f"{prefix}{field.name}"
        if isinstance(field.type, mi.StructType):
            inner.append((field.type.cls, f"{path}."))
            continue
        value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        default = json.dumps(msgspec.to_builtins(value))
        change = "live" if path in LIVE else "restart"
        keys.append(Key(path, _type(field.type), default, change, meanings[field.name]))
    yield prefix.rstrip("."), inspect.cleandoc(struct.__doc__ or ""), keys
    for cls, path in inner:
        yield from _sections(cls, path)


def _field_docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The strings that stand under the fields of a class."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _type(info: mi.Type) -> str:
    match info:
        case mi.Metadata():
            return TEXT_FORMS.get(info.extra["check"], "") or _type(info.type) if info.extra else _type(info.type)
        case mi.UnionType():
            (member,) = (member for member in info.types if not isinstance(member, mi.NoneType))
            return f"{_type(member)} or null"
        case mi.VarTupleType():
            return f"list of {_type(info.item_type)}"
        case mi.DictType():
            return f"mapping to {_type(info.value_type)}"
        case mi.EnumType():
            return ", ".join(f"`{member.value}`" for member in info.cls)
        case mi.LiteralType():
            return ", ".join(f"`{value}`" for value in info.values)
        case mi.IntType():
            return f"integer, {_range(info)}"
        case mi.FloatType():
            return f"seconds, {_range(info)}"
        case mi.BoolType():
            return "boolean"
        case mi.StrType():
            return "text"
        case _:
            raise TypeError(info)


def _range(info: Any) -> str:
    assert info.ge is not None, "every number has bounds"
    assert info.le is not None, "every number has bounds"
    year = mi.type_info(Seconds)
    assert isinstance(year, mi.FloatType)
    return f"{info.ge:g} to a year" if info.le == year.le else f"{info.ge:g} to {info.le}"


def render() -> str:
    """All tables."""
    parts = []
    for path, meaning, keys in sections():
        title = f"## `{path}`" if path else "## At the top"
        table = ["| Key | Type | Default | Change | Meaning |", "|---|---|---|---|---|", *(key.row for key in keys)]
        parts.append("\n".join([title, "", meaning, "", *table]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(render())
