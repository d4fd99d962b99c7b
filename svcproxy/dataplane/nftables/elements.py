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
from svcproxy.dataplane.nftables.messages import VERDICTS_KEPT, Element, plain_content
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
from svcproxy.dataplane.nftables.ways import number_of, verdict_of
from svcproxy.model.meta import Family, Protocol

ENCODED_MEMO = 1 << 16
"""Addresses remembered in their other form; as many frontends and backends have names of their own."""

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IPPROTO_*."""
_PROTOCOLS = {number: protocol for protocol, number in NUMBERS.items()}
_PROTOCOL_WORDS: dict[Field, bytes] = {protocol: bytes((number, 0, 0, 0)) for protocol, number in NUMBERS.items()}
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
    return [plain_content(_joined(into_key, each.key), b"") for each in operations]


def encode(name: SetName, key: Key, data: Data = None) -> tuple[Element, ...]:
    """The elements that stand for one of the layout's."""
    spec = SETS[name]
    into_key, into_data = _ENCODERS[name]
    stored = None if data is None else _number(data) if spec.verdicts else _joined(into_data, _fields(data))
    if not spec.interval:
        return (Element(_joined(into_key, key), stored),)
    first, last = _bounds(str(key[-1]))
    if len(key) == 1:
        start = Element(first.packed)
        if int(last) + 1 == 1 << last.max_prefixlen:
            return (start,)
        return start, Element((last + 1).packed, interval_end=True)
    shared = _joined(into_key[:-1], key[:-1])
    return (Element(shared + first.packed, key_end=shared + last.packed),)


def decode(family: Family, name: SetName, elements: Iterable[Element]) -> Iterator[tuple[Key, Data]]:
    """The layout's elements that the kernel's stand for. A verdict that is none of ours comes out as None.

    Raises ValueError for an element that cannot be one of this set's.
    """
    spec = SETS[name]
    if spec.interval and len(spec.key) == 1:
        yield from (((each,), None) for each in _decode_ranges(family, elements))
        return
    for element in elements:
        key = _split(family, spec.key, element.key)
        if spec.interval:
            end = _split(family, spec.key, element.key_end or element.key)
            key = (*key[:-1], _range(str(key[-1]), str(end[-1])))
        yield key, _decode_data(family, name, element.data)


def _decode_data(family: Family, name: SetName, data: bytes | StoredVerdict | None) -> Data:
    spec = SETS[name]
    match data:
        case bytes() if spec.verdicts:
            return verdict_of(FORM_OF[name], int.from_bytes(data, sys.byteorder))
        case bytes() if spec.data:
            return _split(family, spec.data, data)
        case _:
            return None


def _joined(encoders: Iterable[_Encoder], fields: Key) -> bytes:
    """A concatenation, each field filled up to whole words."""
    return b"".join([encode(field) for encode, field in zip(encoders, fields, strict=True)])


@lru_cache(maxsize=VERDICTS_KEPT)
def _number(verdict: Data) -> bytes:
    assert isinstance(verdict, Goto | Drop)
    return number_of(verdict).to_bytes(4, sys.byteorder)


def _fields(data: Data) -> Key:
    assert data is None or isinstance(data, tuple)
    return data or ()


def _split(family: Family, types: tuple[FieldType, ...], octets: bytes) -> Key:
    fields: list[Field] = []
    offset = 0
    for kind in types:
        match kind:
            case FieldType.ADDRESS | FieldType.PREFIX:
                length = _OCTETS[family]
                fields.append(text(octets[offset : offset + length]))
                offset += length
            case FieldType.PROTOCOL:
                fields.append(_protocol(octets[offset : offset + 1]))
                offset += 4
            case FieldType.PORT:
                fields.append(int.from_bytes(octets[offset : offset + 2]))
                offset += 4
            case FieldType.MARK:
                fields.append(int.from_bytes(octets[offset : offset + 4], sys.byteorder))
                offset += 4
    return tuple(fields)


def _protocol(octet: bytes) -> Protocol | int:
    """The protocol, or the number of one that is none of ours."""
    number = int.from_bytes(octet)
    return _PROTOCOLS.get(number, number)


@lru_cache(maxsize=ENCODED_MEMO)
def text(octets: bytes) -> str:
    """An address in canonical form."""
    return str(ipaddress.IPv4Address(octets)) if len(octets) == 4 else str(ipaddress.IPv6Address(octets))


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
