# SPDX-License-Identifier: Apache-2.0
"""Elements of the layout's sets as the kernel has them, and back. Pure.

A range takes two elements in a set of prefixes alone (its start, and the first address after it unless it ends the
address space), and one with two keys in a set of concatenations.
"""

import ipaddress
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from svcproxy.dataplane.nftables.expressions import Verdict as StoredVerdict
from svcproxy.dataplane.nftables.layout import SETS, FieldType
from svcproxy.dataplane.nftables.messages import VERDICTS_KEPT, Element, content, plain_content
from svcproxy.dataplane.nftables.operations import (
    FORM_OF,
    AddElement,
    Data,
    DeleteElement,
    Drop,
    Field,
    Goto,
    Key,
    ReplaceElement,
    SetName,
)
from svcproxy.dataplane.nftables.ways import NUMBER_OCTETS, number_of, verdict_of
from svcproxy.model.meta import Family, Protocol

ENCODED_MEMO = 1 << 16
"""Addresses remembered in their other form; as many frontends and backends have names of their own."""

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IPPROTO_*."""
_PROTOCOL_WORDS: dict[Field, bytes] = {protocol: bytes((number, 0, 0, 0)) for protocol, number in NUMBERS.items()}
_PROTOCOLS = {word: protocol for protocol, word in _PROTOCOL_WORDS.items()}
_FOREIGN = "0x"
WORD_OCTETS = 4
_ADDRESSES = frozenset((FieldType.ADDRESS, FieldType.PREFIX))
_OCTETS = {Family.IPV4: 4, Family.IPV6: 16}
_BITS = {Family.IPV4: 32, Family.IPV6: 128}


@lru_cache(maxsize=ENCODED_MEMO)
def packed(ip: str) -> bytes:
    """An address in network order."""
    return ipaddress.IPv6Address(ip).packed if ":" in ip else bytes(map(int, ip.split(".")))


_Encoder = Callable[[Any], bytes]
_ENCODE: dict[FieldType, _Encoder] = {
    FieldType.ADDRESS: packed,
    FieldType.PREFIX: packed,
    FieldType.PROTOCOL: _PROTOCOL_WORDS.__getitem__,
    FieldType.PORT: struct.Struct(">H2x").pack,
    FieldType.MARK: struct.Struct("=I").pack,
}
_ENCODERS = {
    name: (tuple(_ENCODE[each] for each in spec.key), tuple(_ENCODE[each] for each in spec.data))
    for name, spec in SETS.items()
}
"""Of the fields of key and data."""


def contents(name: SetName, operations: Iterable[AddElement | ReplaceElement]) -> list[bytes]:
    """The elements that operations put in, of a set without ranges, as requests have them: one for each."""
    spec = SETS[name]
    into_key, into_data = _ENCODERS[name]
    if spec.verdicts:
        return [plain_content(_joined(into_key, each.key), _number(each.data)) for each in operations]
    return [plain_content(_joined(into_key, each.key), _joined(into_data, _fields(each.data))) for each in operations]


def keys(name: SetName, operations: Iterable[ReplaceElement | DeleteElement]) -> list[bytes]:
    """The elements that operations take out, likewise."""
    into_key, _ = _ENCODERS[name]
    return [
        plain_content(_joined(into_key, each.key), b"") if len(each.key) > 1 else content(encode(name, each.key)[0])
        for each in operations
    ]


def encode(name: SetName, key: Key, data: Data = None) -> tuple[Element, ...]:
    """The elements that stand for one of the layout's."""
    spec = SETS[name]
    into_key, into_data = _ENCODERS[name]
    stored = None if data is None else _number(data) if spec.verdicts else _joined(into_data, _fields(data))
    if len(key) == 1 and str(key[0]).startswith(_FOREIGN):
        first, _, last = str(key[0])[len(_FOREIGN) :].partition("-")
        return (Element(bytes.fromhex(first), stored, bytes.fromhex(last)),)
    if not spec.interval:
        return (Element(_joined(into_key, key), stored),)
    low, high = _bounds(str(key[-1]))
    if len(key) == 1:
        start = Element(low.packed)
        if int(high) + 1 == 1 << high.max_prefixlen:
            return (start,)
        return start, Element((high + 1).packed, interval_end=True)
    shared = _joined(into_key[:-1], key[:-1])
    return (Element(shared + low.packed, key_end=shared + high.packed),)


def decode(family: Family, name: SetName, elements: Iterable[Element]) -> Iterator[tuple[Key, Data]]:
    """The layout's elements that the kernel's stand for, and others'.

    A key that the layout has not (of another protocol, a range of ports, the one for all other keys) comes out as one
    field, its octets in hexadecimal, and data that it has not as None: enough to delete them.
    """
    spec = SETS[name]
    if spec.interval and len(spec.key) == 1:
        bounds = []
        for element in elements:
            if len(element.key) == _OCTETS[family]:
                bounds.append(element)
            else:
                yield _foreign(element), None
        yield from (((each,), None) for each in _decode_ranges(family, bounds))
        return
    for element in elements:
        yield _decode_key(family, name, element), _decode_data(family, name, element.data)


def _decode_key(family: Family, name: SetName, element: Element) -> Key:
    fields = _KEYS[family, name]
    first = _split(fields, element.key)
    if first is None:
        return _foreign(element)
    if not SETS[name].interval:
        return first
    last = _split(fields, element.key_end or element.key)
    if last is None or last[:-1] != first[:-1]:
        return _foreign(element)
    return (*first[:-1], _range(str(first[-1]), str(last[-1])))


def _foreign(element: Element) -> Key:
    end = f"-{element.key_end.hex()}" if element.key_end else ""
    return (f"{_FOREIGN}{element.key.hex()}{end}",)


def _decode_data(family: Family, name: SetName, data: bytes | StoredVerdict | None) -> Data:
    if not isinstance(data, bytes):
        return None
    if SETS[name].verdicts:
        return verdict_of(FORM_OF[name], int.from_bytes(data, sys.byteorder)) if len(data) == NUMBER_OCTETS else None
    return _split(_DATA[family, name], data) or None


def _joined(encoders: Iterable[_Encoder], fields: Key) -> bytes:
    """A concatenation, each field filled up to whole words."""
    return b"".join([encode(field) for encode, field in zip(encoders, fields, strict=True)])


@lru_cache(maxsize=VERDICTS_KEPT)
def _number(verdict: Data) -> bytes:
    assert isinstance(verdict, Goto | Drop)
    return number_of(verdict).to_bytes(NUMBER_OCTETS, sys.byteorder)


def _fields(data: Data) -> Key:
    assert data is None or isinstance(data, tuple)
    return data or ()


@lru_cache(maxsize=ENCODED_MEMO)
def text(octets: bytes) -> str:
    """An address in canonical form."""
    return ".".join(map(str, octets)) if len(octets) == 4 else str(ipaddress.IPv6Address(octets))


_Decoder = Callable[[bytes], Field | None]
_Fields = tuple[int, tuple[tuple[int, int, _Decoder], ...]]
"""A concatenation: its octets, and begin, end and meaning of each field."""
_DECODE: dict[FieldType, _Decoder] = {
    FieldType.ADDRESS: text,
    FieldType.PREFIX: text,
    FieldType.PROTOCOL: _PROTOCOLS.get,
    FieldType.PORT: lambda octets: octets[0] << 8 | octets[1],
    FieldType.MARK: lambda octets: int.from_bytes(octets, sys.byteorder),
}


def _fields_of(family: Family, types: Iterable[FieldType]) -> _Fields:
    fields, end = [], 0
    for kind in types:
        start, end = end, end + (_OCTETS[family] if kind in _ADDRESSES else WORD_OCTETS)
        fields.append((start, end, _DECODE[kind]))
    return end, tuple(fields)


_KEYS = {(family, name): _fields_of(family, spec.key) for family in Family for name, spec in SETS.items()}
_DATA = {(family, name): _fields_of(family, spec.data) for family in Family for name, spec in SETS.items()}


def _split(fields: _Fields, octets: bytes) -> Key | None:
    """The fields of a concatenation; None if it is none of the layout's."""
    length, each = fields
    if len(octets) != length:
        return None
    found = [decode(octets[start:end]) for start, end, decode in each]
    known = tuple([field for field in found if field is not None])
    return known if len(known) == len(found) else None


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _bounds(range_or_prefix: str) -> tuple[_Ip, _Ip]:
    """First and last address of `CIDR` or of `FIRST-LAST`."""
    first, dash, last = range_or_prefix.partition("-")
    if dash:
        return ipaddress.ip_address(first), ipaddress.ip_address(last)
    network = ipaddress.ip_network(range_or_prefix)
    return network.network_address, network.broadcast_address


def _range(first: str, last: str) -> str:
    """A range as CIDR, or as `FIRST-LAST` if it is none: then somebody else put it there."""
    low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
    size = int(high) - int(low) + 1
    if size > 0 and size & (size - 1) == 0 and int(low) % size == 0:
        return f"{low}/{low.max_prefixlen - size.bit_length() + 1}"
    return f"{low}-{high}"


def _decode_ranges(family: Family, elements: Iterable[Element]) -> Iterator[str]:
    """Ranges out of their bounds. nft marks the start of the address space as an end, which ends nothing."""
    bounds = sorted((int.from_bytes(each.key), not each.interval_end) for each in elements)
    beyond = 1 << _BITS[family]
    start: int | None = None
    for number, opens in bounds:
        if start is not None:
            yield _numbered(family, start, number - 1)
            start = None
        if opens:
            start = number
    if start is not None:
        yield _numbered(family, start, beyond - 1)


def _numbered(family: Family, first: int, last: int) -> str:
    octets = _OCTETS[family]
    return _range(text(first.to_bytes(octets)), text(last.to_bytes(octets)))
