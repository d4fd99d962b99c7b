# SPDX-License-Identifier: Apache-2.0
"""Many datagrams with one system call, `recvmmsg(2)` and `sendmmsg(2)`, in slots that are made once. A shell.

A slot holds one datagram, its sender, and perhaps the address that it was sent to. What is written back into a slot
goes to that sender, from that address.

ctypes' objects are for setting up. What is touched for each datagram is so through memoryviews, at a tenth of the cost,
and pointers are made beforehand, which halves that of a call.
"""

import ctypes
import socket
import sys
from typing import Any

SLOTS = 32
"""Datagrams of one system call; more made nothing faster."""
SLOT_OCTETS = 4096
"""Of one datagram. A query is at most a few hundred, and what lies beyond is ignored."""

Ancillary = tuple[int, int, bytes]
"""Level, type and octets of a control message (cmsg(3))."""


class _Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("octets", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr` as the kernel knows it."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_octets", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vectors_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_octets", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = (("header", _Header), ("octets", ctypes.c_uint))


class _Control(ctypes.Structure):
    """`struct cmsghdr`."""

    _fields_ = (("octets", ctypes.c_size_t), ("level", ctypes.c_int), ("type", ctypes.c_int))


_libc = ctypes.CDLL(None)

_NAME_OCTETS = 32
"""Room for a `sockaddr_in6`."""
_CONTROL_OCTETS = 64
"""Room for an `in6_pktinfo` behind its header."""
_CONTROL_AT = ctypes.sizeof(_Control)
_INT, _SIZE = ctypes.sizeof(ctypes.c_uint), ctypes.sizeof(ctypes.c_size_t)
_CONTROL_SIZE_AT, _CONTROL_SIZE_STRIDE = _Header.control_octets.offset // _SIZE, ctypes.sizeof(_Message) // _SIZE
RECEIVED_AT, RECEIVED_STRIDE = _Message.octets.offset // _INT, ctypes.sizeof(_Message) // _INT
"""How many octets slot `n` received is at `RECEIVED_AT + n * RECEIVED_STRIDE` of `Slots.received`."""
SENT_AT, SENT_STRIDE = _Vector.octets.offset // _SIZE, ctypes.sizeof(_Vector) // _SIZE
"""The same of how many are sent, and `Slots.sent`."""


class Slots:
    """The slots of a non-blocking UDP socket."""

    def __init__(self, sock: socket.socket, *, destinations: bool) -> None:
        """`destinations`: the kernel tells where each datagram was sent to, see
        `svcproxy_dns.listeners.report_destination`."""
        self._socket = sock
        self._ipv6 = sock.family == socket.AF_INET6
        self._destinations = destinations
        self._octets = bytearray(SLOTS * SLOT_OCTETS)
        self._names = bytearray(SLOTS * _NAME_OCTETS)
        self._control = bytearray(SLOTS * _CONTROL_OCTETS)
        self._structures = (_Vector * SLOTS)(), (_Message * SLOTS)(), (_Vector * SLOTS)(), (_Message * SLOTS)()
        vectors_in, messages_in, vectors_out, messages_out = self._structures
        self._lay_out(vectors_in, messages_in)
        self._lay_out(vectors_out, messages_out)
        self.slots = _cut(self._octets, SLOT_OCTETS)
        """The octets of each."""
        self.names = _cut(self._names, _NAME_OCTETS)
        """Who sent each, as a `sockaddr_in` or `sockaddr_in6`."""
        self.received = memoryview(messages_in).cast("B").cast("I")
        self.sent = memoryview(vectors_out).cast("B").cast("P")
        self._sizes_in = memoryview(messages_in).cast("B").cast("P")
        self._sizes_out = memoryview(messages_out).cast("B").cast("P")
        self._receive, self._send = _libc.recvmmsg, _libc.sendmmsg
        self._first = ctypes.c_void_p(ctypes.addressof(messages_in))
        self._from = [ctypes.c_void_p(ctypes.addressof(each)) for each in messages_out]

    def _lay_out(self, vectors: "ctypes.Array[_Vector]", messages: "ctypes.Array[_Message]") -> None:
        octets, names, control = map(_address, (self._octets, self._names, self._control))
        for number, (vector, message) in enumerate(zip(vectors, messages, strict=True)):
            vector.base, vector.octets = octets + number * SLOT_OCTETS, SLOT_OCTETS
            header = message.header
            header.name, header.name_octets = names + number * _NAME_OCTETS, 28 if self._ipv6 else 16
            header.vectors, header.vectors_count = ctypes.addressof(vector), 1
            header.control = control + number * _CONTROL_OCTETS

    def receive(self) -> int:
        """Fill slots with what waits; how many. With fewer than `SLOTS` nothing more waited, or there was an error."""
        if not self._destinations:
            return self._fill()
        room, source = self._sizes_in, self._sizes_out
        for at in range(_CONTROL_SIZE_AT, len(room), _CONTROL_SIZE_STRIDE):
            room[at] = _CONTROL_OCTETS
        count = self._fill()
        for number in range(count):
            at = _CONTROL_SIZE_AT + number * _CONTROL_SIZE_STRIDE
            source[at] = room[at]
            self._release_interface(number * _CONTROL_OCTETS + _CONTROL_AT)
        return count

    def _fill(self) -> int:
        count: int = self._receive(self._socket.fileno(), self._first, SLOTS, 0, None)
        return max(0, count)

    def _release_interface(self, at: int) -> None:
        """Leave to the routes which interface the response goes out on; the address that was asked is its source
        (ip(7), ipv6(7)). Link-local ones say nothing without their interface."""
        control = self._control
        if not self._ipv6:
            control[at : at + 4] = bytes(4)
        elif control[at] != 0xFE or control[at + 1] & 0xC0 != 0x80:
            control[at + 16 : at + 20] = bytes(4)

    def send(self, start: int, end: int) -> int:
        """Send what is in the slots from `start` to before `end`. One that the kernel refuses holds up no other;
        returns how many those were."""
        refused = 0
        while start < end:
            sent = self._send(self._socket.fileno(), self._from[start], end - start, 0)
            if sent <= 0:  # the first of them; an error of a later one comes when that is the first
                sent = 1
                refused += 1
            start += sent
        return refused

    def sender(self, number: int) -> Any:
        """Who sent what is in a slot, as `socket.sendto` takes it."""
        name = bytes(self.names[number])
        port = int.from_bytes(name[2:4], "big")
        if not self._ipv6:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope

    def source(self, number: int) -> list[Ancillary]:
        """With what `socket.sendmsg` sends from the address that a slot's datagram was sent to."""
        if not self._sizes_out[_CONTROL_SIZE_AT + number * _CONTROL_SIZE_STRIDE]:
            return []
        control = _Control.from_buffer(self._control, number * _CONTROL_OCTETS)
        start = number * _CONTROL_OCTETS + _CONTROL_AT
        return [(control.level, control.type, bytes(self._control[start : start + control.octets - _CONTROL_AT]))]


def _cut(buffer: bytearray, octets: int) -> list[memoryview]:
    whole = memoryview(buffer)
    return [whole[start : start + octets] for start in range(0, len(whole), octets)]


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
