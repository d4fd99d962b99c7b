# SPDX-License-Identifier: Apache-2.0
"""What can be asked of connection tracking and what it says (`linux/netfilter/nfnetlink_conntrack.h`). Performs no I/O.

A flow is removed by what the kernel itself said of it, its original tuple octet by octet, and by its id: another flow
that has taken its place meanwhile stays, unless the kernel keeps it in the same memory, which makes the same id.
"""

import errno
import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from svcproxy.dataplane.nftables.expressions import NFPROTO
from svcproxy.dataplane.nftables.netlink import (
    NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    ErrorReport,
    Message,
    attribute,
    attributes,
    error_report,
    frame,
    messages,
    nested,
)
from svcproxy.errors import ConntrackError, DecodeError
from svcproxy.frontends.keys import Address, Backend
from svcproxy.model.meta import Family, Protocol

ADDRESSES_KEPT = 16384
"""Addresses remembered as text."""


Translation = tuple[Address, Backend]
"""What flows were addressed to, and where their packets go."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which flows are asked for, by what they were addressed to."""

    family: Family
    protocol: Protocol
    ip: str | None = None
    """Canonical; None is any."""
    port: int | None = None

    def admits(self, flow: "Flow") -> bool:
        """Whether the flow is one of them: the kernel may list more, before Linux 5.8 every flow of the family."""
        destination = flow.destination
        return (
            destination.protocol is self.protocol
            and destination.family is self.family
            and (self.port is None or destination.port == self.port)
            and (self.ip is None or destination.ip == self.ip)
        )


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A flow over UDP, SCTP or TCP as the kernel tracks it."""

    source: Backend
    destination: Address
    """What the first packet was addressed to."""
    answering: Backend
    """Where its packets go: the source of the reply tuple. It is the destination where that was not translated."""
    id: int
    tuple: bytes
    """CTA_TUPLE_ORIG as it came."""
    zone: bytes
    """CTA_ZONE as it came; empty for the default zone."""

    @property
    def translation(self) -> Translation:
        """What it has in common with flows of other clients."""
        return self.destination, self.answering


class CpuStatistics(msgspec.Struct, frozen=True, gc=False):
    """What one CPU has counted since boot, modulo 2^32."""

    found: int
    invalid: int
    insert: int
    insert_failed: int
    """Flows whose packet was dropped because another flow had the same tuple when it was to be entered."""
    drop: int
    """Packets dropped for want of memory or room."""
    early_drop: int
    """Flows removed to make room."""
    error: int
    search_restart: int
    clash_resolve: int
    chain_too_long: int


class Occupancy(msgspec.Struct, frozen=True, gc=False):
    """Flows tracked in this network namespace, and how many there may be (0: the kernel does not say)."""

    entries: int
    maximum: int


@dataclass(frozen=True, slots=True)
class End:
    """The kernel's word on one request, or the end of a list."""

    report: ErrorReport


Content = Flow | CpuStatistics | Occupancy | End


@dataclass(frozen=True, slots=True)
class Answer:
    """One message, understood."""

    sequence: int
    """Of the request."""
    interrupted: bool
    """The list it belongs to is not consistent."""
    content: Content


def list_flows(wanted: Filter, sequence: int) -> bytes:
    """Ask for the flows that `wanted` admits, and over IPv6 for those of all addresses. Answered with a `Flow` each.

    The kernel has its comparison of IPv6 addresses the wrong way round (Linux 5.8 to 6.18): it lists all but those.
    """
    address = b""
    if wanted.ip is not None and wanted.family is Family.IPV4:
        address = nested(_TUPLE_IP, (attribute(_IP_V4_DST, ipaddress.IPv4Address(wanted.ip).packed),))
    port = b"" if wanted.port is None else attribute(_PROTO_DST_PORT, wanted.port.to_bytes(2))
    protocol = nested(_TUPLE_PROTO, (attribute(_PROTO_NUM, bytes((_NUMBERS[wanted.protocol],))), port))
    compared = _F_PROTO_NUM | (_F_IP_DST if address else 0) | (_F_PROTO_DST_PORT if port else 0)
    # Flags are in host order, unlike every other number of this subsystem.
    flags = nested(_FILTER, (attribute(_FILTER_ORIG_FLAGS, compared.to_bytes(4, sys.byteorder)),))
    tuple_ = nested(_TUPLE_ORIG, (address, protocol))
    return _request(_GET, NLM_F_DUMP, sequence, wanted.family, tuple_ + flags)


def delete_flow(flow: Flow, sequence: int) -> bytes:
    """Ask for a flow's removal. Answered with an `End`, ENOENT if it is not there."""
    zone = attribute(_ZONE, flow.zone) if flow.zone else b""
    body = attribute(_TUPLE_ORIG | NESTED, flow.tuple) + zone + attribute(_ID, flow.id.to_bytes(4))
    return _request(_DELETE, NLM_F_ACK, sequence, flow.destination.family, body)


def get_statistics(sequence: int) -> bytes:
    """Ask what each CPU has counted. Answered with a list of `CpuStatistics`."""
    return _request(_GET_STATS_CPU, NLM_F_DUMP, sequence, None, b"")


def get_occupancy(sequence: int) -> bytes:
    """Ask how full the table is. Answered with one `Occupancy`."""
    return _request(_GET_STATS, 0, sequence, None, b"")


def parse(datagram: bytes) -> Iterator[Answer]:
    """The messages of a datagram; flows of other protocols than a Service can have are passed over.

    Raises `DecodeError` at the first that is not what it should be.
    """
    for message in messages(datagram):
        content = _content(message)
        if content is not None:
            yield Answer(message.sequence, bool(message.flags & NLM_F_DUMP_INTR), content)


def refusal(report: ErrorReport) -> ConntrackError:
    """What the kernel says, as an error."""
    said = f": {report.text}" if report.text else ""
    return ConntrackError(f"{errno.errorcode.get(report.errno, report.errno)} ({os.strerror(report.errno)}){said}")


_SUBSYSTEM = 1
_NEW, _GET, _DELETE, _GET_STATS_CPU, _GET_STATS = 0, 1, 2, 4, 5
"""IPCTNL_MSG_CT_*."""
NEW_FLOW = _SUBSYSTEM << 8 | _NEW
"""nlmsg_type of a flow in a list."""
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
"""CTA_*."""
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
_F_IP_DST, _F_PROTO_NUM, _F_PROTO_DST_PORT = 0x02, 0x08, 0x20
"""CTA_FILTER_F_*: which fields of the original tuple are compared."""
_OCCUPANCY = (1, 2)
_COUNTERS = (2, 4, 8, 9, 10, 11, 12, 13, 14, 15)
"""CTA_STATS_*, in the order of `CpuStatistics`."""
_NFGENMSG_OCTETS = 4
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_PROTOCOLS = {bytes((number,)): protocol for protocol, number in _NUMBERS.items()}


def _request(kind: int, flags: int, sequence: int, family: Family | None, body: bytes) -> bytes:
    number = 0 if family is None else NFPROTO[family]
    return frame(_SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, sequence, bytes((number, 0, 0, 0)) + body)


def _content(message: Message) -> Content | None:
    if message.kind in (NLMSG_ERROR, NLMSG_DONE):
        return End(error_report(message))
    subsystem, kind = divmod(message.kind, 256)
    if subsystem != _SUBSYSTEM or kind not in (_NEW, _GET_STATS_CPU, _GET_STATS):
        return None
    if len(message.payload) < _NFGENMSG_OCTETS:
        raise DecodeError("ctnetlink message without its header")
    said = dict(attributes(message.payload[_NFGENMSG_OCTETS:]))
    if kind == _NEW:
        return _flow(said)
    if kind == _GET_STATS:
        return Occupancy(*(_number(said, each) for each in _OCCUPANCY))
    return CpuStatistics(*(_number(said, each) for each in _COUNTERS))


def _flow(said: dict[int, bytes]) -> Flow | None:
    original, reply = said.get(_TUPLE_ORIG), said.get(_TUPLE_REPLY)
    if original is None or reply is None:
        raise DecodeError("a flow without its tuples")
    forth = _ends(original)
    back = _ends(reply)
    if forth is None or back is None:
        return None
    protocol, source, (ip, port) = forth
    return Flow(
        source=Backend(*source),
        destination=Address(ip, protocol, port),
        answering=Backend(*back[1]),
        id=_number(said, _ID),
        tuple=original,
        zone=said.get(_ZONE, b""),
    )


def _ends(tuple_: bytes) -> tuple[Protocol, tuple[str, int], tuple[str, int]] | None:
    """Protocol, source and destination; None if the protocol is of no interest."""
    said = dict(attributes(tuple_))
    transport = dict(attributes(said.get(_TUPLE_PROTO, b"")))
    protocol = _PROTOCOLS.get(transport.get(_PROTO_NUM, b""))
    if protocol is None:
        return None
    network = dict(attributes(said.get(_TUPLE_IP, b"")))
    source = network.get(_IP_V4_SRC) or network.get(_IP_V6_SRC, b"")
    destination = network.get(_IP_V4_DST) or network.get(_IP_V6_DST, b"")
    return (
        protocol,
        (_text(source), _number(transport, _PROTO_SRC_PORT)),
        (_text(destination), _number(transport, _PROTO_DST_PORT)),
    )


@lru_cache(maxsize=ADDRESSES_KEPT)
def _text(packed: bytes) -> str:
    try:
        return str(ipaddress.ip_address(packed))
    except ValueError as exc:
        raise DecodeError(f"an address of {len(packed)} octets") from exc


def _number(said: dict[int, bytes], kind: int) -> int:
    """In network order, whatever its length; 0 if it is not there."""
    return int.from_bytes(said.get(kind, b""))
