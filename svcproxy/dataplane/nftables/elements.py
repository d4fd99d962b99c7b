# SPDX-License-Identifier: Apache-2.0
"""Elements of the layout's sets as the kernel has them, and back. Pure.

A range takes two elements in a set of prefixes alone (its start, and the first address after it unless it ends the
address space), and one with two keys in a set of concatenations.
"""

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

from svcproxy.dataplane.nftables.expressions import DROP as DROP_VERDICT
from svcproxy.dataplane.nftables.expressions import Code, goto
from svcproxy.dataplane.nftables.expressions import Verdict as StoredVerdict
from svcproxy.dataplane.nftables.layout import SETS, FieldType, SetSpec
from svcproxy.dataplane.nftables.messages import Element
from svcproxy.dataplane.nftables.operations import (
    DROP,
    Data,
    Drop,
    Field,
    Goto,
    Key,
    SetName,
    Verdict,
    chain_name,
    chain_of,
)
from svcproxy.model.meta import Family, Protocol

ENCODED_MEMO = 1 << 16
"""Addresses remembered in their other form; as many frontends and backends have names of their own."""

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IPPROTO_*."""
_PROTOCOL_WORDS: dict[Field, bytes] = {protocol: bytes((number, 0, 0, 0)) for protocol, number in NUMBERS.items()}
_PROTOCOLS = {word: protocol for protocol, word in _PROTOCOL_WORDS.items()}
_FOREIGN = "0x"
_ADDRESSES = frozenset((FieldType.ADDRESS, FieldType.PREFIX))
_OCTETS = {Family.IPV4: 4, Family.IPV6: 16}
_BITS = {Family.IPV4: 32, Family.IPV6: 128}


def encode(name: SetName, key: Key, data: Data = None) -> tuple[Element, ...]:
    """The elements that stand for one of the layout's."""
    spec = SETS[name]
    stored = _encode_data(spec, data)
    if len(key) == 1 and str(key[0]).startswith(_FOREIGN):
        first, _, last = str(key[0])[len(_FOREIGN) :].partition("-")
        return (Element(bytes.fromhex(first), stored, bytes.fromhex(last)),)
    if not spec.interval:
        return (Element(_join(spec.key, key), stored),)
    low, high = _bounds(str(key[-1]))
    if len(key) == 1:
        start = Element(low.packed)
        if int(high) + 1 == 1 << high.max_prefixlen:
            return (start,)
        return start, Element((high + 1).packed, interval_end=True)
    shared = _join(spec.key[:-1], key[:-1])
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
        yield _decode_key(family, spec, element), _decode_data(family, spec, element.data)


def _decode_key(family: Family, spec: SetSpec, element: Element) -> Key:
    first = _split(family, spec.key, element.key)
    if first is None:
        return _foreign(element)
    if not spec.interval:
        return first
    last = _split(family, spec.key, element.key_end or element.key)
    if last is None or last[:-1] != first[:-1]:
        return _foreign(element)
    return (*first[:-1], _range(str(first[-1]), str(last[-1])))


def _foreign(element: Element) -> Key:
    end = f"-{element.key_end.hex()}" if element.key_end else ""
    return (f"{_FOREIGN}{element.key.hex()}{end}",)


def _encode_data(spec: SetSpec, data: Data) -> bytes | StoredVerdict | None:
    match data:
        case None:
            return None
        case Goto(chain):
            return goto(chain_name(chain))
        case Drop():
            return DROP_VERDICT
        case _:
            return _join(spec.data, data)


def _decode_data(family: Family, spec: SetSpec, data: bytes | StoredVerdict | None) -> Data:
    match data:
        case StoredVerdict():
            return _decode_verdict(data)
        case bytes() if spec.data:
            return _split(family, spec.data, data)
        case _:
            return None


@lru_cache(maxsize=4096)
def _decode_verdict(data: StoredVerdict) -> Verdict | None:
    if data.code is Code.DROP:
        return DROP
    chain = chain_of(data.chain) if data.code is Code.GOTO else None
    return None if chain is None else Goto(chain)


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


def _split(family: Family, types: tuple[FieldType, ...], octets: bytes) -> Key | None:
    """The fields of a concatenation; None if it is none of the layout's."""
    fields: list[Field] = []
    offset = 0
    if len(octets) != sum(_OCTETS[family] if kind in _ADDRESSES else 4 for kind in types):
        return None
    for kind in types:
        match kind:
            case FieldType.ADDRESS | FieldType.PREFIX:
                length = _OCTETS[family]
                fields.append(text(octets[offset : offset + length]))
                offset += length
            case FieldType.PROTOCOL:
                protocol = _PROTOCOLS.get(octets[offset : offset + 4])
                if protocol is None:
                    return None
                fields.append(protocol)
                offset += 4
            case FieldType.PORT:
                fields.append(int.from_bytes(octets[offset : offset + 2]))
                offset += 4
            case FieldType.MARK:
                fields.append(int.from_bytes(octets[offset : offset + 4], sys.byteorder))
                offset += 4
    return tuple(fields)


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
