# SPDX-License-Identifier: Apache-2.0
"""What nf_tables says: acknowledgements, refusals, lists, notifications. Performs no I/O.

Notifications and lists are the same messages; `Answer.sequence` and `Answer.port` tell whose they are. Families other
than IPv4 and IPv6, and kinds of objects that are not used here, are passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from svcproxy.dataplane.nftables.expressions import NFPROTO, Code, Verdict
from svcproxy.dataplane.nftables.messages import VERDICTS_KEPT, Element, Kind, Table, TableFlag
from svcproxy.dataplane.nftables.netlink import (
    ATTRIBUTE,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    TYPE_MASK,
    ErrorReport,
    Message,
    aligned,
    attributes,
    error_report,
    messages,
)
from svcproxy.errors import DecodeError
from svcproxy.model.meta import Family


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The kernel's word on one request; `errno` 0 acknowledges it."""

    report: ErrorReport


class ListEnd(msgspec.Struct, frozen=True, gc=False):
    """A list is complete, or with an `errno` ends before."""

    report: ErrorReport


class Generation(msgspec.Struct, frozen=True, gc=False):
    """The ruleset's state and who brought it about."""

    number: int
    pid: int
    program: str


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as it is, or one that went, of which the kernel says the name only."""

    removed: bool
    table: Table
    flags: TableFlag
    use: int
    """Chains, sets and so on in it."""
    owner: int
    """Port of the owner's socket, which is as a rule its process's id; 0 if it has none."""
    comment: str


@dataclass(frozen=True, slots=True)
class ObjectState:
    """A chain, set or rule as it is, or was when it went."""

    removed: bool
    kind: Kind
    """NEW_CHAIN, NEW_SET or NEW_RULE."""
    table: Table
    name: str
    """Of a rule: its chain's."""
    handle: int
    use: int
    """References to a chain, elements of a set (Linux 6.17); 0 where the kernel does not say."""
    leads_to: str = ""
    """Of a rule: the chain it jumps or goes to; empty if it does neither."""
    policy: int | None = None
    """Of a base chain: NF_ACCEPT or NF_DROP."""


class StoredElement(msgspec.Struct, frozen=True, gc=False):
    """An element as it is, with what time and traffic have made of it."""

    element: Element
    expires_ms: int = 0
    """Until it times out; 0 if it does not."""
    packets: int = 0
    octets: int = 0


class Elements(msgspec.Struct, frozen=True, gc=False):
    """Some of the elements of a set or map, or those that went."""

    removed: bool
    table: Table
    name: str
    elements: tuple[StoredElement, ...]


Content = Reply | ListEnd | Generation | TableState | ObjectState | Elements


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One message, understood."""

    sequence: int
    """Of the request it answers or that caused it."""
    port: int
    """Of the socket that made that request."""
    interrupted: bool
    """The list it belongs to is not consistent, for something changed meanwhile: ask again."""
    content: Content


def parse(datagram: bytes) -> Iterator[Answer]:
    """The messages of a datagram. Raises `DecodeError` at the first that is not what it should be."""
    for message in messages(datagram):
        content = _content(message)
        if content is not None:
            yield Answer(message.sequence, message.port, bool(message.flags & NLM_F_DUMP_INTR), content)


COUNTERS_KEPT = 1024
"""Decoded counters remembered: most have counted nothing yet."""

_FAMILIES = {number: family for family, number in NFPROTO.items()}
_SUBSYSTEM = 10
_NFGENMSG_OCTETS = 4
_OBJECTS = {
    Kind.NEW_CHAIN: (Kind.NEW_CHAIN, False),
    Kind.DELETE_CHAIN: (Kind.NEW_CHAIN, True),
    Kind.NEW_RULE: (Kind.NEW_RULE, False),
    Kind.DELETE_RULE: (Kind.NEW_RULE, True),
    Kind.NEW_SET: (Kind.NEW_SET, False),
    Kind.DELETE_SET: (Kind.NEW_SET, True),
}
"""Kind of message: kind of object, whether it went."""
_OBJECT_ATTRIBUTES = {Kind.NEW_CHAIN: (3, 2, 6), Kind.NEW_RULE: (2, 3, 0), Kind.NEW_SET: (2, 16, 20)}
"""NFTA_*: name, handle, use; 0 where there is none."""
_VERDICT_MASK = 0xFF
"""NF_VERDICT_MASK: ACCEPT, DROP and QUEUE may carry more in the bits above."""


def _content(message: Message) -> Content | None:
    if message.kind == NLMSG_ERROR:
        return Reply(error_report(message))
    if message.kind == NLMSG_DONE:
        return ListEnd(error_report(message))
    subsystem, number = divmod(message.kind, 256)
    if subsystem != _SUBSYSTEM:
        return None
    if len(message.payload) < _NFGENMSG_OCTETS:
        raise DecodeError("nf_tables message without its header")
    if number == Kind.NEW_GENERATION:
        return _generation(message.payload)
    family = _FAMILIES.get(message.payload[0])
    return None if family is None else _object(number, family, message.payload[_NFGENMSG_OCTETS:])


def _object(number: int, family: Family, payload: bytes) -> Content | None:
    match number:
        case Kind.NEW_TABLE | Kind.DELETE_TABLE:
            return _table(family, dict(attributes(payload)), removed=number == Kind.DELETE_TABLE)
        case Kind.NEW_ELEMENTS | Kind.DELETE_ELEMENTS:
            return _elements(family, dict(attributes(payload)), removed=number == Kind.DELETE_ELEMENTS)
        case Kind.NEW_CHAIN | Kind.DELETE_CHAIN | Kind.NEW_RULE | Kind.DELETE_RULE | Kind.NEW_SET | Kind.DELETE_SET:
            kind, removed = _OBJECTS[Kind(number)]
            said = dict(attributes(payload))
            name, handle, use = _OBJECT_ATTRIBUTES[kind]
            table = Table(family, _text(said, 1))
            return ObjectState(
                removed,
                kind,
                table,
                name=_text(said, name),
                handle=_number(said, handle),
                use=_number(said, use),
                leads_to=_leads_to(said.get(4, b"")) if kind is Kind.NEW_RULE else "",
                policy=_number(said, 5) if kind is Kind.NEW_CHAIN and 5 in said else None,
            )
        case _:
            return None


def _leads_to(expressions: bytes) -> str:
    """The chain in the verdict of the first `immediate` that has one."""
    for _, octets in attributes(expressions):
        expression = dict(attributes(octets))
        if _text(expression, 1) == "immediate":
            data = dict(attributes(dict(attributes(expression.get(2, b""))).get(2, b"")))
            if chain := _text(dict(attributes(data.get(2, b""))), 2):
                return chain
    return ""


def _generation(payload: bytes) -> Generation:
    said = dict(attributes(payload[_NFGENMSG_OCTETS:]))
    return Generation(_number(said, 1), _number(said, 2), _text(said, 3))


def _table(family: Family, said: dict[int, bytes], *, removed: bool) -> TableState:
    return TableState(
        removed=removed,
        table=Table(family, _text(said, 1)),
        flags=TableFlag(_number(said, 2)),
        use=_number(said, 3),
        owner=_number(said, 7),
        comment=_comment(said.get(6, b"")),
    )


def _comment(user_data: bytes) -> str:
    """The first datum of type 0; what is damaged belongs to somebody else and says nothing."""
    while len(user_data) > 1 and len(user_data) >= 2 + user_data[1]:
        if user_data[0] == 0:
            return user_data[2 : 2 + user_data[1]].rstrip(b"\0").decode(errors="replace")
        user_data = user_data[2 + user_data[1] :]
    return ""


def _elements(family: Family, said: dict[int, bytes], *, removed: bool) -> Elements:
    listed = said.get(3, b"")
    return Elements(removed, Table(family, _text(said, 1)), _text(said, 2), tuple(_listed(listed)))


def _listed(octets: bytes) -> Iterator[StoredElement]:
    at, end = 0, len(octets)
    while at < end:
        after, _ = _attribute(octets, at, end)
        yield _element(octets, at + ATTRIBUTE.size, after)
        at = aligned(after)


def _element(octets: bytes, at: int, end: int) -> StoredElement:
    """By offsets, with no list of attributes in between: there are hundreds of thousands of elements."""
    key = key_end = b""
    data: bytes | Verdict | None = None
    timeout_ms = expires_ms = flags = packets = counted_octets = 0
    while at < end:
        after, kind = _attribute(octets, at, end)
        start = at + ATTRIBUTE.size
        match kind:
            case 1:
                key = _value(octets, start, after)
            case 2:
                data = _data(octets, start, after)
            case 3:
                flags = int.from_bytes(octets[start:after])
            case 4:
                timeout_ms = int.from_bytes(octets[start:after])
            case 5:
                expires_ms = int.from_bytes(octets[start:after])
            case 7:
                packets, counted_octets = _counted(octets[start:after])
            case 10:
                key_end = _value(octets, start, after)
            case _:
                pass
        at = aligned(after)
    element = Element(key, data, key_end, timeout_ms, bool(flags & 1))
    return StoredElement(element, expires_ms, packets, counted_octets)


def _attribute(octets: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the attribute ends, padding not counted, and its type. Raises `DecodeError` where its length is wrong."""
    if end - at < ATTRIBUTE.size:
        raise DecodeError("netlink attribute cut short")
    length, kind = ATTRIBUTE.unpack_from(octets, at)
    if not ATTRIBUTE.size <= length <= end - at:
        raise DecodeError(f"netlink attribute of {length} octets, {end - at} are there")
    return at + length, kind & TYPE_MASK


def _value(octets: bytes, at: int, end: int) -> bytes:
    after, kind = _attribute(octets, at, end) if at < end else (at, 0)
    return octets[at + ATTRIBUTE.size : after] if kind == 1 else b""


def _data(octets: bytes, at: int, end: int) -> bytes | Verdict:
    _, kind = _attribute(octets, at, end) if at < end else (at, 0)
    if kind == 1:
        return _value(octets, at, end)
    return _verdict(dict(attributes(octets[at:end])).get(2, b""))


@lru_cache(maxsize=VERDICTS_KEPT)
def _verdict(payload: bytes) -> Verdict:
    said = dict(attributes(payload))
    number = _number(said, 1)
    code = number - (1 << 32) if number >> 31 else number & _VERDICT_MASK
    try:
        return Verdict(Code(code), _text(said, 2))
    except ValueError as exc:
        raise DecodeError(f"verdict {code}: {exc}") from exc


@lru_cache(maxsize=COUNTERS_KEPT)
def _counted(expression: bytes) -> tuple[int, int]:
    """Packets and octets, if the expression is a counter."""
    said = dict(attributes(expression))
    if _text(said, 1) != "counter":
        return 0, 0
    numbers = dict(attributes(said.get(2, b"")))
    return _number(numbers, 2), _number(numbers, 1)


def _text(said: dict[int, bytes], kind: int) -> str:
    return said.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _number(said: dict[int, bytes], kind: int) -> int:
    """In network order, whatever its length; 0 if it is not there."""
    return int.from_bytes(said.get(kind, b""))
