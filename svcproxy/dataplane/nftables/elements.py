# SPDX-License-Identifier: Apache-2.0
"""Elements of the layout's sets as the kernel has them, and back. Pure.

A range takes two elements in a set of prefixes alone (its start, and the first address after it unless it ends the
address space), and one with two keys in a set of concatenations.
"""

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

from svcproxy.dataplane.nftables.expressions import Verdict as StoredVerdict
from svcproxy.dataplane.nftables.layout import SETS, FieldType, SetSpec
from svcproxy.dataplane.nftables.messages import Element
from svcproxy.dataplane.nftables.operations import (
    FORM_OF,
    Data,
    Drop,
    Field,
    Goto,
    Key,
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


def encode(name: SetName, key: Key, data: Data = None) -> tuple[Element, ...]:
    """The elements that stand for one of the layout's."""
    spec = SETS[name]
    stored = _encode_data(spec, data)
    if not spec.interval:
        return (Element(_join(spec.key, key), stored),)
    first, last = _bounds(str(key[-1]))
    if len(key) == 1:
        start = Element(first.packed)
        if int(last) + 1 == 1 << last.max_prefixlen:
            return (start,)
        return start, Element((last + 1).packed, interval_end=True)
    shared = _join(spec.key[:-1], key[:-1])
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


def _encode_data(spec: SetSpec, data: Data) -> bytes | None:
    match data:
        case None:
            return None
        case Goto() | Drop():
            return number_of(data).to_bytes(4, sys.byteorder)
        case _:
            return _join(spec.data, data)


def _decode_data(family: Family, name: SetName, data: bytes | StoredVerdict | None) -> Data:
    spec = SETS[name]
    match data:
        case bytes() if spec.verdicts:
            return verdict_of(FORM_OF[name], int.from_bytes(data, sys.byteorder))
        case bytes() if spec.data:
            return _split(family, spec.data, data)
        case _:
            return None


def _join(types: tuple[FieldType, ...], fields: Key) -> bytes:
    """A concatenation, each field filled up to whole words."""
    return b"".join(map(_encode_field, types, fields))


def _encode_field(kind: FieldType, value: Field) -> bytes:
    match kind:
        case FieldType.ADDRESS | FieldType.PREFIX:
            return packed(str(value))
        case FieldType.PROTOCOL:
            return _PROTOCOL_WORDS[value]
        case FieldType.PORT:
            return int(value).to_bytes(2) + b"\0\0"
        case FieldType.MARK:
            return int(value).to_bytes(4, sys.byteorder)


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
def packed(ip: str) -> bytes:
    """An address in network order."""
    return ipaddress.IPv6Address(ip).packed if ":" in ip else bytes(map(int, ip.split(".")))


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
