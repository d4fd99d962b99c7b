# SPDX-License-Identifier: Apache-2.0
"""Open descriptors that outlive the process that uses them, for the one that is started in its place.

A supervisor makes the store and keeps it; the role's processes, one after the other, inherit it. It is a Unix socket
pair with a message queued in it: the kernel holds the descriptors of a message that nobody has read, and hands out
copies to whoever peeks at it. So nothing has to be running for the sockets in a store to stay open, with what waits in
them, however the process ended.

The message is JSON, version 1: `{"version": 1, "names": [...]}`, with a descriptor for each name. A new message is
queued before the old one is taken out: the last one counts, and there always is one. `systemd`'s FDSTORE is the same
idea with a daemon.
"""

import fcntl
import logging
import os
import socket
import termios
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import msgspec

from svcproxy.errors import ConfigError, HandoverError, Problem
from svcproxy.process.descriptors import close_all, receive_packet, send_packet

log = logging.getLogger(__name__)

STORE_VARIABLE = "SVCPROXY_DESCRIPTOR_STORE"
"""Tells a process the numbers of its store's descriptors."""
VERSION = 1

_NOW = socket.MSG_DONTWAIT
_INT_OCTETS = 4


class _Contents(msgspec.Struct, frozen=True):
    names: list[str]
    version: int


class DescriptorStore:
    """Both ends of the pair. Several processes may have it open; one at a time uses it."""

    def __init__(self, reader: socket.socket, writer: socket.socket) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    def make(cls) -> Self:
        """A new one, empty. Raises `OSError`."""
        return cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    @classmethod
    def inherited(cls) -> Self | None:
        """The one that this process was started with; None if there is none. Programs that it starts do not get it.

        Raises `ConfigError` if what the environment names is none.
        """
        text = os.environ.pop(STORE_VARIABLE, "")
        if not text:
            return None
        try:
            reader, writer = (socket.socket(fileno=int(number)) for number in text.split(","))
        except (ValueError, OSError) as exc:
            raise ConfigError([Problem(f"not the descriptors of a store: {text!r}", path=STORE_VARIABLE)]) from exc
        for end in (reader, writer):
            end.set_inheritable(False)
        return cls(reader, writer)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a process has to inherit to use it, in the order of `STORE_VARIABLE`."""
        return self._reader.fileno(), self._writer.fileno()

    def contents(self) -> dict[str, int]:
        """Copies of what was put in last, by name, the caller's to close; empty if there is nothing.

        What cannot be read is dropped: it is as if nothing had been put in.
        """
        try:
            while True:
                data, found = receive_packet(self._reader, socket.MSG_PEEK | _NOW)
                if self._queued_octets() == len(data):
                    return _by_name(data, found)
                close_all(found)  # whoever put the next one in was killed before it took this one out
                self._reader.recv(1, _NOW)
        except BlockingIOError:
            return {}
        except (HandoverError, OSError) as exc:
            log.warning("what an earlier process left cannot be used", extra={"cause": str(exc)})
            self.clear()
            return {}

    def put(self, descriptors: Mapping[str, int]) -> None:
        """Have these, `DESCRIPTORS_MAX` at most, in place of what is there. If that cannot be, the store is empty."""
        data = msgspec.json.encode(_Contents(list(descriptors), VERSION))
        try:
            send_packet(self._writer, data, list(descriptors.values()))
            while self._queued_octets() > len(data):
                self._reader.recv(1, _NOW)
        except OSError as exc:  # EINVAL for too many of them, ETOOMANYREFS for too many of this user
            log.warning("sockets will not outlive this process", extra={"cause": str(exc)})
            self.clear()

    def clear(self) -> None:
        """Close what is in it, as far as nobody else has it open."""
        with suppress(BlockingIOError):
            while self._reader.recv(1, _NOW):
                pass

    def close(self) -> None:
        """Close this process's end of it."""
        self._reader.close()
        self._writer.close()

    def _queued_octets(self) -> int:
        """Octets of all messages that are queued (unix(7), SIOCINQ)."""
        return int.from_bytes(fcntl.ioctl(self._reader, termios.FIONREAD, bytes(_INT_OCTETS)), "little")


def _by_name(data: bytes, found: list[int]) -> dict[str, int]:
    """The descriptors of a message. Raises `HandoverError` with all of them closed."""
    try:
        contents = msgspec.json.decode(data, type=_Contents)
    except msgspec.DecodeError as exc:
        close_all(found)
        raise HandoverError(f"not understood: {exc}") from exc
    names = contents.names
    if contents.version != VERSION or not len({*names}) == len(names) == len(found):
        close_all(found)
        raise HandoverError(f"version {contents.version}, {len(found)} descriptors for {len(names)} names")
    return dict(zip(names, found, strict=True))
