# SPDX-License-Identifier: Apache-2.0
"""Local addresses in rtnetlink's words: requests and messages as octets. Performs no I/O.

Addresses that are put here expire unless they are put again in time, and are nobody's source address but their own.

Covers RTM_GETADDR, RTM_NEWADDR and RTM_DELADDR (rtnetlink(7), `linux/if_addr.h`, `linux/netlink.h`) and nothing else.
Integers are in host order. pyroute2 does the same for 13 MB and 120 ms at import, which is why this exists.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import ip_address

from svcproxy.errors import DecodeError


class MessageType(IntEnum):
    """`nlmsg_type`, those used here."""

    ERROR = 2
    DONE = 3
    NEW_ADDRESS = 20
    DELETE_ADDRESS = 21
    GET_ADDRESS = 22


class AddressFlag(IntFlag):
    """`IFA_F_*`, those that decide whether an address can be used."""

    NODAD = 0x02
    """It serves at once: nobody is asked whether he has it."""
    OPTIMISTIC = 0x04
    DAD_FAILED = 0x08
    TENTATIVE = 0x40


class Group(IntFlag):
    """`RTMGRP_*`: multicast groups to bind to."""

    IPV4_ADDRESS = 0x10
    IPV6_ADDRESS = 0x100


@dataclass(frozen=True, slots=True)
class AddressChange:
    """An address of an interface exists in this form, or does so no longer."""

    added: bool
    interface: int
    """Index of the interface."""
    prefix_length: int
    address: str
    """Canonical text."""
    usable: bool
    """Whether one can bind to it: IPv6 addresses have to pass duplicate address detection first (RFC 4862 §5.4)."""
    expires: bool = False
    """Whether it goes by itself some time."""


@dataclass(frozen=True, slots=True)
class DumpEnd:
    """The list that was asked for is complete, or is known not to become so."""

    consistent: bool
    """False if addresses changed while the kernel wrote it (NLM_F_DUMP_INTR): ask again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The kernel refuses a request."""

    errno: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A request that asked for it has been carried out."""


Message = AddressChange | DumpEnd | Failure | Acknowledgement

_HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
_ADDRESS = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, interface."""
_ATTRIBUTE = struct.Struct("=HH")
"""rtattr: length, type."""
_INT = struct.Struct("=i")
_FLAGS = struct.Struct("=I")
_CACHEINFO = struct.Struct("=IIII")
"""ifa_cacheinfo: preferred and valid seconds, time of creation and of the last change."""

_NLM_F_REQUEST = 0x001
_NLM_F_ACK = 0x004
_NLM_F_REPLACE = 0x100
_NLM_F_CREATE = 0x400
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x010
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_CACHEINFO = 6
_IFA_FLAGS = 8
_FOREVER = 0xFFFFFFFF
"""INFINITY_LIFE_TIME."""
_SCOPE_UNIVERSE, _SCOPE_HOST = 0, 254
_ATTRIBUTE_TYPE_MASK = 0x3FFF
"""Less NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_OCTETS = {2: 4, 10: 16}
"""Octets of an address by family: AF_INET, AF_INET6."""


def get_addresses(sequence: int) -> bytes:
    """The request for a list of all addresses of all families."""
    length = _HEADER.size + _ADDRESS.size
    header = _HEADER.pack(length, MessageType.GET_ADDRESS, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0)
    return header + _ADDRESS.pack(0, 0, 0, 0, 0)


def put_address(address: str, interface: int, valid: int, sequence: int) -> bytes:
    """The request for a single address to stand on an interface for the next `valid` seconds, wanting or standing now.

    IPv4 has scope host, IPv6 is deprecated from the start: the kernel takes neither as source towards others.
    """
    packed = ip_address(address).packed
    scope = _SCOPE_HOST if len(packed) == 4 else _SCOPE_UNIVERSE
    lifetime = _attribute(_IFA_CACHEINFO, _CACHEINFO.pack(0, valid, 0, 0))
    flags = _attribute(_IFA_FLAGS, _FLAGS.pack(AddressFlag.NODAD))
    body = _one_address(packed, scope, interface) + lifetime + flags
    return _request(MessageType.NEW_ADDRESS, _NLM_F_CREATE | _NLM_F_REPLACE, sequence, body)


def delete_address(address: str, interface: int, sequence: int) -> bytes:
    """The request for a single address to leave an interface."""
    body = _one_address(ip_address(address).packed, _SCOPE_UNIVERSE, interface)
    return _request(MessageType.DELETE_ADDRESS, 0, sequence, body)


def _one_address(packed: bytes, scope: int, interface: int) -> bytes:
    family = next(family for family, octets in _OCTETS.items() if octets == len(packed))
    head = _ADDRESS.pack(family, len(packed) * 8, 0, scope, interface)
    return head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


def _request(kind: MessageType, flags: int, sequence: int, body: bytes) -> bytes:
    """One that is acknowledged."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    """Values here are in whole words of four octets."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def parse(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram, as far as they are about addresses.

    Messages of other types and families are passed over. Raises `DecodeError` when a length is wrong, for then the
    rest cannot be told apart.
    """
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise DecodeError("netlink message cut short")
        length, kind, flags, _, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise DecodeError(f"netlink message of {length} octets, {len(datagram) - offset} are there")
        payload = datagram[offset + _HEADER.size : offset + length]
        match kind:
            case MessageType.NEW_ADDRESS | MessageType.DELETE_ADDRESS:
                change = _address(payload, added=kind == MessageType.NEW_ADDRESS)
                if change is not None:
                    yield change
            case MessageType.DONE:
                yield DumpEnd(consistent=not flags & _NLM_F_DUMP_INTR)
            case MessageType.ERROR:
                errno = _errno(payload)
                yield Failure(errno) if errno else Acknowledgement()
            case _:
                pass
        if flags & _NLM_F_DUMP_INTR and kind != MessageType.DONE:  # the kernel says it on one message, not on all
            yield DumpEnd(consistent=False)
        offset += _aligned(length)


def _errno(payload: bytes) -> int:
    if len(payload) < _INT.size:
        raise DecodeError("netlink error cut short")
    number: int = -_INT.unpack_from(payload)[0]
    return number


def _address(payload: bytes, *, added: bool) -> AddressChange | None:
    if len(payload) < _ADDRESS.size:
        raise DecodeError("netlink address cut short")
    family, prefix_length, short_flags, _, interface = _ADDRESS.unpack_from(payload)
    octets = _OCTETS.get(family)
    if octets is None:
        return None
    attributes = dict(_attributes(payload[_ADDRESS.size :]))
    # On a point-to-point link IFA_ADDRESS is the other end.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if len(packed) != octets:
        raise DecodeError(f"address of {len(packed)} octets in family {family}")
    long_flags = attributes.get(_IFA_FLAGS, b"")
    flags = _FLAGS.unpack(long_flags)[0] if len(long_flags) == _FLAGS.size else short_flags
    lifetime = attributes.get(_IFA_CACHEINFO, b"")
    expires = len(lifetime) == _CACHEINFO.size and _CACHEINFO.unpack(lifetime)[1] != _FOREVER
    return AddressChange(added, interface, prefix_length, str(ip_address(packed)), _usable(flags), expires)


def _usable(flags: int) -> bool:
    if flags & AddressFlag.DAD_FAILED:
        return False
    return not flags & AddressFlag.TENTATIVE or bool(flags & AddressFlag.OPTIMISTIC)


def _attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while len(payload) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if not _ATTRIBUTE.size <= length <= len(payload) - offset:
            raise DecodeError(f"netlink attribute of {length} octets, {len(payload) - offset} are there")
        yield kind & _ATTRIBUTE_TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def _aligned(length: int) -> int:
    """NLMSG_ALIGN and RTA_ALIGN: the next multiple of four."""
    return (length + 3) & ~3
