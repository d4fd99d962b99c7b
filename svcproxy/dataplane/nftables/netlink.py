# SPDX-License-Identifier: Apache-2.0
"""Netlink framing: messages and attributes as octets (netlink(7), `linux/netlink.h`). Performs no I/O.

Headers are in host order. What is in an attribute is its owner's affair; nf_tables wants network order there. The
kernel's attributes are trusted no more than a peer's: a wrong length is a `DecodeError`, never an index error.
"""

import struct
from collections.abc import Iterable, Iterator

import msgspec

from svcproxy.errors import DecodeError

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_ECHO = 0x008
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
"""In an NLMSG_ERROR: the request is not echoed, only its header."""
NLM_F_ACK_TLVS = 0x200
"""In an NLMSG_ERROR: attributes follow (NETLINK_EXT_ACK)."""

NLMSG_ERROR = 2
NLMSG_DONE = 3

MAX_ATTRIBUTE_OCTETS = 0xFFFF
"""`nla_len` has 16 bits; it counts its own header."""

HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
ATTRIBUTE = struct.Struct("=HH")
"""nlattr: length, type."""

NESTED = 0x8000
TYPE_MASK = 0x3FFF
"""Less NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_ERRNO = struct.Struct("=i")
_ACKNOWLEDGEMENT_OCTETS = 2 * HEADER.size + _ERRNO.size
_U32 = struct.Struct("=I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""By length modulo four."""
_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2


class Message(msgspec.Struct, frozen=True, gc=False):
    """One netlink message as it came."""

    kind: int
    """nlmsg_type."""
    flags: int
    sequence: int
    port: int
    """The socket that asked for it or, in a notification, that caused it; 0 is the kernel itself."""
    payload: bytes


class ErrorReport(msgspec.Struct, frozen=True, gc=False):
    """An NLMSG_ERROR or NLMSG_DONE: an errno, 0 for success, and what the kernel says to it."""

    errno: int
    text: str
    """Extended acknowledgement; empty if there is none."""
    offset: int | None
    """Of the offending attribute in the request, counted from its nlmsghdr; None if the kernel does not say."""


def aligned(length: int) -> int:
    """NLMSG_ALIGN and NLA_ALIGN: the next multiple of four."""
    return (length + 3) & ~3


def padded(octets: bytes) -> bytes:
    """With zeros up to the next multiple of four."""
    return octets + _PADDING[len(octets) & 3]


def frame(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message, for the kernel."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload + _PADDING[len(payload) & 3]


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded. Raises ValueError when `value` does not fit into one."""
    if len(value) > MAX_ATTRIBUTE_OCTETS - ATTRIBUTE.size:
        raise ValueError(f"{len(value)} octets do not fit into a netlink attribute")
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + padded(value)


def nested(kind: int, attributes: Iterable[bytes]) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A string attribute, with its final zero."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """An unsigned number of 32 bits in network order, as nf_tables has nearly all its numbers."""
    return attribute(kind, value.to_bytes(4))


def u64(kind: int, value: int) -> bytes:
    """An unsigned number of 64 bits in network order."""
    return attribute(kind, value.to_bytes(8))


def messages(datagram: bytes) -> Iterator[Message]:
    """Cut a datagram into messages. Raises `DecodeError` where a length is wrong: the rest cannot be told apart."""
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < HEADER.size:
            raise DecodeError("netlink message cut short")
        length, kind, flags, sequence, port = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= len(datagram) - offset:
            raise DecodeError(f"netlink message of {length} octets, {len(datagram) - offset} are there")
        yield Message(kind, flags, sequence, port, datagram[offset + HEADER.size : offset + length])
        offset += aligned(length)


def attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute, in order. Raises `DecodeError` where a length is wrong."""
    offset, end = 0, len(payload)
    while offset < end:
        if end - offset < ATTRIBUTE.size:
            raise DecodeError("netlink attribute cut short")
        length, kind = ATTRIBUTE.unpack_from(payload, offset)
        if not ATTRIBUTE.size <= length <= end - offset:
            raise DecodeError(f"netlink attribute of {length} octets, {end - offset} are there")
        yield kind & TYPE_MASK, payload[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def error_report(message: Message) -> ErrorReport:
    """What an NLMSG_ERROR or NLMSG_DONE says. Raises `DecodeError`."""
    payload = message.payload
    if len(payload) < _ERRNO.size:
        raise DecodeError("netlink error cut short")
    (number,) = _ERRNO.unpack_from(payload)
    said: dict[int, bytes] = {}
    if message.flags & NLM_F_ACK_TLVS:
        said = dict(attributes(payload[_after_echo(message) :]))
    offset = said.get(_NLMSGERR_ATTR_OFFS, b"")
    return ErrorReport(
        errno=-number,
        text=said.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace"),
        offset=_U32.unpack(offset)[0] if len(offset) == _U32.size else None,
    )


def is_acknowledgement(datagram: bytes, sequence: int) -> bool:
    """Whether it is just the bare acknowledgement of that request; one that says more is not recognised."""
    if len(datagram) != _ACKNOWLEDGEMENT_OCTETS:
        return False
    length, kind, _, answered, _ = HEADER.unpack_from(datagram)
    (number,) = _ERRNO.unpack_from(datagram, HEADER.size)
    return (length, kind, answered, number) == (_ACKNOWLEDGEMENT_OCTETS, NLMSG_ERROR, sequence, 0)


def _after_echo(message: Message) -> int:
    """Where the attributes of an error begin: behind errno and what is echoed of the request."""
    if message.kind == NLMSG_DONE:
        return _ERRNO.size
    start = _ERRNO.size + HEADER.size
    if len(message.payload) < start:
        raise DecodeError("netlink error without the header it answers")
    if message.flags & NLM_F_CAPPED:
        return start
    (length,) = _U32.unpack_from(message.payload, _ERRNO.size)
    if not HEADER.size <= length <= len(message.payload) - _ERRNO.size:
        raise DecodeError(f"netlink error about a message of {length} octets, {len(message.payload)} are there")
    return _ERRNO.size + aligned(length)
