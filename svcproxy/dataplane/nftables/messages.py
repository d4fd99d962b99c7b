# SPDX-License-Identifier: Apache-2.0
"""What can be asked of nf_tables, as values and as octets (`linux/netfilter/nf_tables.h`). Performs no I/O.

Attributes are in the order in which nft 1.0.6 sends them, sets carry the user data by which it lists their types.
Numbers are in network order. Keys and data are octets as the kernel compares them: what is read from packets in network
order, marks and interface indices in host order; `concatenation` joins fields as the kernel's registers do.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache

import msgspec

from svcproxy.dataplane.nftables.expressions import NFPROTO, Expression, Verdict, verdict_data
from svcproxy.dataplane.nftables.netlink import (
    ATTRIBUTE,
    HEADER,
    MAX_ATTRIBUTE_OCTETS,
    NESTED,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_REQUEST,
    aligned,
    attribute,
    frame,
    nested,
    padded,
    text,
    u32,
    u64,
)
from svcproxy.model.meta import Family

MAX_ELEMENTS_PER_MESSAGE = 1000
"""Elements in one request. The list has to fit into one attribute of 64 KiB as well."""
MAX_VALUE_OCTETS = 64
"""NFT_DATA_VALUE_MAXLEN: octets of a key or datum."""
MAX_COMMENT_OCTETS = 253
"""User data is 256 octets at most: two of head, and the final zero."""
VERDICTS_KEPT = 4096
"""Encoded verdicts remembered; there is one for each chain that elements point to."""


class Kind(IntEnum):
    """NFT_MSG_*."""

    NEW_TABLE = 0
    GET_TABLE = 1
    DELETE_TABLE = 2
    NEW_CHAIN = 3
    GET_CHAIN = 4
    DELETE_CHAIN = 5
    NEW_RULE = 6
    GET_RULE = 7
    DELETE_RULE = 8
    NEW_SET = 9
    GET_SET = 10
    DELETE_SET = 11
    NEW_ELEMENTS = 12
    GET_ELEMENTS = 13
    DELETE_ELEMENTS = 14
    NEW_GENERATION = 15
    GET_GENERATION = 16


class TableFlag(IntFlag):
    """NFT_TABLE_F_*."""

    NONE = 0
    DORMANT = 0x1
    OWNER = 0x2
    """Only the socket that made or claimed the table may change it (Linux 5.12); other sockets get EPERM."""
    PERSIST = 0x4
    """The table outlives its owner's socket and can be claimed again (Linux 6.9)."""


class SetFlag(IntFlag):
    """NFT_SET_*, those that are the caller's to choose; `new_set` adds what follows from the types."""

    NONE = 0
    CONSTANT = 0x2
    INTERVAL = 0x4
    TIMEOUT = 0x10
    DYNAMIC = 0x20
    """Rules put elements in (NFT_SET_EVAL)."""


class Hook(IntEnum):
    """NF_INET_*."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class ByteOrder(IntEnum):
    """What nft notes for a type, to print its values."""

    NONE = 0
    HOST = 1
    NETWORK = 2


@dataclass(frozen=True, slots=True)
class DataType:
    """A type of a field, in nft's numbers (`include/datatype.h` of nftables 1.0.6)."""

    number: int
    octets: int
    byte_order: ByteOrder


IPV4_ADDR = DataType(7, 4, ByteOrder.NETWORK)
IPV6_ADDR = DataType(8, 16, ByteOrder.NETWORK)
INET_PROTO = DataType(12, 1, ByteOrder.NONE)
INET_SERVICE = DataType(13, 2, ByteOrder.NETWORK)
MARK = DataType(19, 4, ByteOrder.HOST)
CLASSID = DataType(23, 4, ByteOrder.HOST)
"""Of the packet's priority."""
IFNAME = DataType(41, 16, ByteOrder.HOST)
VERDICT = DataType(0xFFFFFF00, 0, ByteOrder.NONE)
"""Data of a map only, and alone."""


class Table(msgspec.Struct, frozen=True, gc=False):
    """A table's name is its own in each family."""

    family: Family
    name: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a base chain hangs."""

    type: str
    """`nat` or `filter`."""
    hook: Hook
    priority: int
    policy: int | None = None
    """NF_ACCEPT or NF_DROP; None leaves the kernel's ACCEPT."""


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `data` a map."""

    name: str
    key: tuple[DataType, ...]
    """More than one is a concatenation."""
    data: tuple[DataType, ...] = ()
    flags: SetFlag = SetFlag.NONE
    size: int = 0
    """Elements it may have; 0 does not bound it."""
    timeout_ms: int = 0
    """Default for elements; 0 has none."""
    expression: Expression | None = None
    """What each element does when it is found, such as `counter()`."""
    id: int = 1
    """Names the set within its batch. Rules that use the name do not need it to be unique."""


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a set or map."""

    key: bytes
    """Empty: all keys that no other element has (NFT_SET_ELEM_CATCHALL)."""
    data: bytes | Verdict | None = None
    key_end: bytes = b""
    """Last key of a range, inclusive, in a set of concatenations and intervals."""
    timeout_ms: int = 0
    """0 is the set's default."""
    interval_end: bool = False
    """The first key after a range, in a set of intervals without concatenation."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One message for the kernel, without the header that gives it its place in a batch."""

    kind: Kind
    flags: int
    body: bytes
    """nfgenmsg and attributes."""


def concatenation(*fields: bytes) -> bytes:
    """A key or datum of several fields, each filled up to words of four octets."""
    return b"".join(map(padded, fields))


def content(element: Element) -> bytes:
    """An element in octets, without the attribute around it. Raises ValueError, see `new_elements`."""
    flags = element.interval_end | (not element.key) << 1
    octets = u32(3, flags) if flags else b""
    if element.timeout_ms:
        octets += u64(4, element.timeout_ms)
    if element.key:
        octets += _value(1, element.key)
    if element.key_end:
        octets += _value(10, element.key_end)
    match element.data:
        case None:
            return octets
        case bytes():
            return octets + _value(2, element.data)
        case verdict:
            return octets + _verdict(verdict)


def plain_content(key: bytes, data: bytes) -> bytes:
    """The same of an element that is a key, and data unless they are empty; both in whole words."""
    start = _value_head(1, len(key)) + key
    return start + _value_head(2, len(data)) + data if data else start


def new_table(table: Table, flags: TableFlag = TableFlag.NONE, comment: str = "") -> Request:
    """Make the table or, with OWNER, claim one that has lost its owner.

    `comment` has at most MAX_COMMENT_OCTETS; raises ValueError if more.
    """
    noted = attribute(6, _user_datum(0, comment.encode() + b"\0")) if comment else b""
    return _request(Kind.NEW_TABLE, 0, table, text(1, table.name), u32(2, flags), noted)


def delete_table(table: Table) -> Request:
    """Remove the table and all that is in it."""
    return _request(Kind.DELETE_TABLE, 0, table, text(1, table.name))


def new_chain(table: Table, name: str, at: Attachment | None = None) -> Request:
    """Make a chain that rules and verdicts lead to or, with `at`, one that packets come to. It may exist already."""
    names = (text(1, table.name), text(3, name))
    if at is None:
        return _request(Kind.NEW_CHAIN, NLM_F_CREATE, table, *names)
    policy = b"" if at.policy is None else u32(5, at.policy)
    hook = nested(4, (u32(1, at.hook), u32(2, at.priority & 0xFFFFFFFF)))
    return _request(Kind.NEW_CHAIN, NLM_F_CREATE, table, *names, text(7, at.type), policy, hook)


def delete_chain(table: Table, name: str) -> Request:
    """Remove a chain that nothing leads to, with its rules."""
    return _request(Kind.DELETE_CHAIN, 0, table, text(1, table.name), text(3, name))


def flush_chain(table: Table, name: str) -> Request:
    """Remove a chain's rules."""
    return _request(Kind.DELETE_RULE, 0, table, text(1, table.name), text(2, name))


def new_rule(table: Table, chain: str, expressions: Iterable[Expression]) -> Request:
    """Put a rule at the end of a chain."""
    listed = nested(4, (attribute(1 | NESTED, expression) for expression in expressions))
    return _request(Kind.NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, table, text(1, table.name), text(2, chain), listed)


def delete_rule(table: Table, chain: str, handle: int) -> Request:
    """Remove one rule."""
    return _request(Kind.DELETE_RULE, 0, table, text(1, table.name), text(2, chain), u64(3, handle))


def new_set(table: Table, made: Set) -> Request:
    """Make a set or map. It may exist already, if it is the same."""
    concatenated = len(made.key) > 1
    flags = int(made.flags) | (_MAP if made.data else 0)
    if concatenated and SetFlag.INTERVAL in made.flags:
        flags |= _CONCAT
    return _request(
        Kind.NEW_SET,
        NLM_F_CREATE,
        table,
        text(1, table.name),
        text(2, made.name),
        u32(3, flags),
        u32(4, _type_number(made.key)),
        u32(5, _octets(made.key)),
        u32(6, _type_number(made.data)) + u32(7, _octets(made.data)) if made.data else b"",
        u32(10, made.id),
        _description(made),
        u64(11, made.timeout_ms) if made.timeout_ms else b"",
        attribute(13, _set_user_data(made)),
        attribute(17 | NESTED, made.expression) if made.expression else b"",
    )


def delete_set(table: Table, name: str) -> Request:
    """Remove a set or map that no rule uses."""
    return _request(Kind.DELETE_SET, 0, table, text(1, table.name), text(2, name))


def flush_set(table: Table, name: str) -> Request:
    """Remove all elements."""
    return _request(Kind.DELETE_ELEMENTS, 0, table, text(2, name), text(1, table.name))


def new_elements(table: Table, name: str, elements: Iterable[Element], *, set_id: int = 0) -> Iterator[Request]:
    """Put elements in: as few requests as hold them. Raises ValueError for a key or datum that no set can hold.

    A key that is there already must have the same data, or the kernel refuses it with EEXIST or EBUSY.
    """
    named = u32(4, set_id) if set_id else b""
    return _elements(Kind.NEW_ELEMENTS, NLM_F_CREATE, table, name, named, map(content, elements))


def delete_elements(table: Table, name: str, elements: Iterable[Element], *, echo: bool = False) -> Iterator[Request]:
    """Take elements out: as few requests as hold them. Only keys count; one not there is ENOENT.

    With `echo` the kernel says what it took out.
    """
    return _elements(Kind.DELETE_ELEMENTS, NLM_F_ECHO if echo else 0, table, name, b"", map(_bare, elements))


def new_contents(table: Table, name: str, contents: Iterable[bytes]) -> Iterator[Request]:
    """As `new_elements`, of elements as `content` and `plain_content` have them."""
    return _elements(Kind.NEW_ELEMENTS, NLM_F_CREATE, table, name, b"", contents)


def delete_contents(table: Table, name: str, contents: Iterable[bytes], *, echo: bool = False) -> Iterator[Request]:
    """As `delete_elements`, likewise; data must not be in them."""
    return _elements(Kind.DELETE_ELEMENTS, NLM_F_ECHO if echo else 0, table, name, b"", contents)


def get_generation() -> Request:
    """Ask for the number of the ruleset's last commit and who made it."""
    return Request(Kind.GET_GENERATION, 0, _NFGENMSG.pack(0, 0, 0))


def list_tables(family: Family) -> Request:
    """Ask for a family's tables."""
    return Request(Kind.GET_TABLE, NLM_F_DUMP, _NFGENMSG.pack(NFPROTO[family], 0, 0))


def list_chains(table: Table) -> Request:
    """Ask for the chains of the table's family: the kernel does not filter, the caller has to."""
    return _request(Kind.GET_CHAIN, NLM_F_DUMP, table)


def list_sets(table: Table) -> Request:
    """Ask for a table's sets and maps."""
    return _request(Kind.GET_SET, NLM_F_DUMP, table, text(1, table.name))


def list_rules(table: Table) -> Request:
    """Ask for a table's rules."""
    return _request(Kind.GET_RULE, NLM_F_DUMP, table, text(1, table.name))


def list_elements(table: Table, name: str) -> Request:
    """Ask for the elements of a set or map."""
    return _request(Kind.GET_ELEMENTS, NLM_F_DUMP, table, text(1, table.name), text(2, name))


def get_element(table: Table, name: str, element: Element) -> Request:
    """Ask for one element by its key."""
    (request,) = _elements(Kind.GET_ELEMENTS, 0, table, name, b"", (_bare(element),))
    return request


def encode(request: Request, sequence: int, flags: int = 0) -> bytes:
    """The message of a request. `flags`: NLM_F_*, added to its own."""
    return frame(_SUBSYSTEM | request.kind, NLM_F_REQUEST | request.flags | flags, sequence, request.body)


def batch(requests: Sequence[Request], sequence: int) -> bytes:
    """A transaction: all or nothing. The kernel answers the last request and those that fail.

    It takes the sequence numbers from `sequence` on, two more than there are requests; `position` undoes it.
    """
    last = len(requests) - 1
    parts = [frame(_BATCH_BEGIN, NLM_F_REQUEST, sequence, _BATCH_BODY)]
    for index, request in enumerate(requests):
        flags = NLM_F_ACK if index == last else 0
        parts.append(encode(request, wrapped(sequence + 1 + index), flags))
    parts.append(frame(_BATCH_END, NLM_F_REQUEST, wrapped(sequence + 2 + last), _BATCH_BODY))
    return b"".join(parts)


def position(answered: int, sequence: int) -> int:
    """Which request of the batch begun with `sequence` an answer is about; -1 is the batch as a whole."""
    return wrapped(answered - sequence) - 1


def batch_octets(requests: Iterable[Request]) -> int:
    """Length of the batch of these requests."""
    return 2 * (HEADER.size + len(_BATCH_BODY)) + sum(HEADER.size + aligned(len(each.body)) for each in requests)


def wrapped(sequence: int) -> int:
    """A sequence number in its 32 bits."""
    return sequence & 0xFFFFFFFF


def element_at(request: Request, offset: int) -> int | None:
    """Which element of a request an offset from the start of its message lies in; None if it is in none.

    By this an `ErrorReport.offset` names the element that the kernel refused.
    """
    start, end = HEADER.size + _NFGENMSG.size, HEADER.size + len(request.body)
    for kind, value_at, following in _spans(request.body, start, end):
        if kind == _ELEMENTS:
            spans = enumerate(_spans(request.body, value_at, min(following, end)))
            return next((index for index, (_, at, after) in spans if at - ATTRIBUTE.size <= offset < after), None)
    return None


_NFGENMSG = struct.Struct(">BBH")
"""nfgenmsg: family, version, resource."""
_SUBSYSTEM = 10 << 8
"""NFNL_SUBSYS_NFTABLES."""
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_BATCH_BODY = _NFGENMSG.pack(0, 0, 10)
_MAP, _CONCAT = 0x8, 0x80
_ELEMENTS = 3
_LISTED = _ELEMENTS | NESTED
_TYPE_BITS = 6
"""Of each field in the number of a concatenation."""
_CONCATENATION = b"\x00\x04" + struct.pack("=I", 13) + b"\x01\x00"
"""User data of a concatenation: its expression is EXPR_CONCAT, of which nothing is said."""
_KEY = struct.Struct("=HHHH")
"""Heads of an attribute that holds a value and of the value."""


def _request(kind: Kind, flags: int, table: Table, *attributes: bytes) -> Request:
    return Request(kind, flags, _NFGENMSG.pack(NFPROTO[table.family], 0, 0) + b"".join(attributes))


def _elements(
    kind: Kind, flags: int, table: Table, name: str, set_id: bytes, contents: Iterable[bytes]
) -> Iterator[Request]:
    head = _elements_head(table, name) + set_id
    room = MAX_ATTRIBUTE_OCTETS - ATTRIBUTE.size
    parts: list[bytes] = []
    octets = 0
    for each in contents:
        length = ATTRIBUTE.size + len(each)
        if parts and (len(parts) == MAX_ELEMENTS_PER_MESSAGE or octets + length > room):
            yield Request(kind, flags, head + ATTRIBUTE.pack(ATTRIBUTE.size + octets, _LISTED) + b"".join(parts))
            parts, octets = [], 0
        # nft numbers the elements of a list; the kernel does not look.
        parts.append(ATTRIBUTE.pack(length, NESTED | len(parts) + 1) + each)
        octets += length
    if parts:
        yield Request(kind, flags, head + ATTRIBUTE.pack(ATTRIBUTE.size + octets, _LISTED) + b"".join(parts))


@lru_cache
def _elements_head(table: Table, name: str) -> bytes:
    return _NFGENMSG.pack(NFPROTO[table.family], 0, 0) + text(1, table.name) + text(2, name)


def _bare(element: Element) -> bytes:
    """Only what tells it from others."""
    return content(Element(element.key, None, element.key_end, 0, element.interval_end))


def _value(kind: int, octets: bytes) -> bytes:
    return _value_head(kind, len(octets)) + padded(octets)


@lru_cache
def _value_head(kind: int, length: int) -> bytes:
    if length > MAX_VALUE_OCTETS:
        raise ValueError(f"a key or datum has {MAX_VALUE_OCTETS} octets at most, not {length}")
    return _KEY.pack(_KEY.size + aligned(length), kind | NESTED, ATTRIBUTE.size + length, 1)


@lru_cache(maxsize=VERDICTS_KEPT)
def _verdict(verdict: Verdict) -> bytes:
    return verdict_data(2, verdict)


def _type_number(types: Sequence[DataType]) -> int:
    number = 0
    for each in types:
        number = number << _TYPE_BITS | each.number
    return number


def _octets(types: Sequence[DataType]) -> int:
    return types[0].octets if len(types) == 1 else sum(aligned(each.octets) for each in types)


def _description(made: Set) -> bytes:
    parts = u32(1, made.size) if made.size else b""
    if len(made.key) > 1 and SetFlag.INTERVAL in made.flags:
        parts += nested(2, (nested(1, (u32(1, each.octets),)) for each in made.key))
    return nested(9, (parts,)) if parts else b""


def _set_user_data(made: Set) -> bytes:
    """What nft 1.0.6 notes with a set: byte orders, concatenations, that data are no ranges."""
    data = _user_datum(0, _byte_order(made.key))
    if made.data:
        data += _user_datum(1, _byte_order(made.data))
    if len(made.key) > 1:
        data += _user_datum(3, _CONCATENATION)
    if len(made.data) > 1:
        data += _user_datum(4, _CONCATENATION)
    return data + (_user_datum(6, struct.pack("=I", 0)) if made.data else b"")


def _byte_order(types: Sequence[DataType]) -> bytes:
    return struct.pack("=I", types[0].byte_order if len(types) == 1 else ByteOrder.NONE)


def _user_datum(kind: int, value: bytes) -> bytes:
    if len(value) > MAX_COMMENT_OCTETS + 1:
        raise ValueError(f"{len(value)} octets do not fit into user data")
    return bytes((kind, len(value))) + value


def _spans(body: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, begin of the value and begin of the next attribute, in offsets of the whole message."""
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(body, start - HEADER.size)
        yield kind & ~NESTED, start + ATTRIBUTE.size, start + aligned(length)
        start += aligned(length)
