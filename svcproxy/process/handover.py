# SPDX-License-Identifier: Apache-2.0
"""Sockets pass from the running process to its successor, so that nothing queued in them is lost.

Both processes hold the same open sockets for a while. The old one reads on until the new one says that it serves; only
then does it stop and close its descriptors, which leaves the sockets themselves, and what is queued in them, to the new
one. If either fails on the way, the old one has never stopped.

One SOCK_SEQPACKET connection, JSON packets, version 1; descriptors ride along as SCM_RIGHTS (unix(7)):

    new -> old   {"say": "take", "version": 1}
    old -> new   {"names": [...], "last": bool, "metadata": {...}}   with a descriptor for each name, 253 at most
    new -> old   {"say": "more"}                                     after each packet but the last
    new -> old   {"say": "serving"}                                  any time within SERVING_TIMEOUT
    old -> new   {"say": "yours"}                                    it reads no more

One packet is under way at a time: the kernel counts descriptors in flight against RLIMIT_NOFILE. Each side makes sure
that the other is its own user or root.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import msgspec

from svcproxy.errors import HandoverError
from svcproxy.process.descriptors import DESCRIPTORS_MAX, close_all, receive_packet, send_packet
from svcproxy.process.readiness import readable
from svcproxy.process.sockets import connect_unix, listen_unix, peer_of

log = logging.getLogger(__name__)

VERSION = 1
SOCKETS_MAX = 16384
"""Sockets that one process takes over."""
ANSWER_TIMEOUT = 5.0
"""Seconds for the other side's next packet, where it has nothing to do but send it."""
SERVING_TIMEOUT = 60.0
"""Seconds for the new process to start serving what it got; then the old one goes on alone."""

_KIND = socket.SOCK_SEQPACKET
_CONNECT_RETRY = 0.05
_STAGE_TIMEOUT = "the other side said nothing for {} s"


class _Word(StrEnum):
    TAKE = "take"
    MORE = "more"
    SERVING = "serving"
    YOURS = "yours"


class _Say(msgspec.Struct, frozen=True):
    say: _Word
    version: int = VERSION


class _Batch(msgspec.Struct, frozen=True):
    names: list[str]
    last: bool
    metadata: dict[str, str] = {}


class HasDescriptor(Protocol):
    """A socket, or something around one."""

    def fileno(self) -> int:
        """The descriptor; negative when closed."""
        ...


class HandoverServer:
    """The old side: gives its sockets to whoever may have them."""

    def __init__(
        self,
        path: Path,
        sockets: Callable[[], Mapping[str, HasDescriptor]],
        on_taken: Callable[[], None],
        metadata: Callable[[], Mapping[str, str]] = dict,
        on_kept: Callable[[], None] = lambda: None,
    ) -> None:
        """`sockets` is asked once for each attempt; one that is closed by the time it is sent is left out.

        `on_taken` stops reading from all sockets and closes their descriptors before it returns. It must not shut
        them down. `metadata` is small: a few kilobytes at most. `on_kept` hears of attempts that failed.
        """
        self._path = path
        self._sockets = sockets
        self._on_taken = on_taken
        self._metadata = metadata
        self._on_kept = on_kept

    async def run(self) -> None:
        """Listen at the path until the sockets have been taken, then call `on_taken`, say so and return.

        Attempts that fail are logged and change nothing. One taker at a time; the next waits. Returned or cancelled,
        the path is gone.
        """
        with listen_unix(self._path, kind=_KIND) as listener:
            try:
                while not await self._attempt(listener):
                    pass
            finally:
                self._path.unlink(missing_ok=True)

    async def _attempt(self, listener: socket.socket) -> bool:
        await readable(listener)
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        with connection:
            connection.setblocking(False)
            try:
                await self._give(connection)
            except (HandoverError, OSError) as exc:
                log.warning("sockets were not handed over", extra={"cause": str(exc)})
                self._on_kept()
                return False
            self._on_taken()
            try:
                _send(connection, _Say(_Word.YOURS))
            except (HandoverError, OSError) as exc:
                log.warning("successor left just after it had taken the sockets", extra={"cause": str(exc)})
            return True

    async def _give(self, connection: socket.socket) -> None:
        """Return once the peer serves the sockets. Raises `HandoverError` or `OSError` if it does not get there."""
        _check_peer(connection)
        await _expect(connection, _Word.TAKE, ANSWER_TIMEOUT)
        sockets = self._sockets()
        if len(sockets) > SOCKETS_MAX:
            raise HandoverError(f"{len(sockets)} sockets are more than {SOCKETS_MAX}")
        names = iter(sockets)
        metadata = dict(self._metadata())
        for start in range(0, max(len(sockets), 1), DESCRIPTORS_MAX):
            if start:
                await _expect(connection, _Word.MORE, ANSWER_TIMEOUT)
            batch = {
                name: descriptor
                for name in islice(names, DESCRIPTORS_MAX)
                if (descriptor := sockets[name].fileno()) >= 0
            }
            last = start + DESCRIPTORS_MAX >= len(sockets)
            _send(connection, _Batch(list(batch), last, metadata), list(batch.values()))
            metadata = {}
        await _expect(connection, _Word.SERVING, SERVING_TIMEOUT)


class Takeover:
    """The new side's grip on the sockets. Leaving the `with` block unconfirmed closes them: the old side serves on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._confirmed = False
        self.sockets: dict[str, socket.socket] = {}
        """By the old side's names. Being blocking or not is one more thing that they share with it."""
        self.metadata: dict[str, str] = {}

    async def serving(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Tell the old side that the sockets are being read, and return when it has stopped reading them.

        From then on they are the caller's to close. Raises `HandoverError` when the old side does not confirm: it may
        be dead or may still be reading; the node lock tells which.
        """
        try:
            _send(self._connection, _Say(_Word.SERVING))
            await _expect(self._connection, _Word.YOURS, timeout)
        except OSError as exc:
            raise HandoverError(f"not confirmed: {exc.strerror}") from exc
        self._confirmed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        if not self._confirmed:
            for taken in self.sockets.values():
                taken.close()
            self.sockets.clear()


async def take(path: Path, timeout: float = ANSWER_TIMEOUT) -> Takeover:
    """Receive the sockets of the process that listens at `path`, while it goes on serving them.

    Use the result in a `with` statement, start serving, then await `Takeover.serving`. Raises `HandoverError` when
    nobody listens, the peer is somebody else, breaks the protocol or needs more than `timeout` seconds; failed or
    cancelled, it leaves no descriptor open.
    """
    try:
        async with asyncio.timeout(timeout):
            takeover = Takeover(await _connect(path))
            try:
                await _receive_all(takeover)
            except BaseException:
                takeover.__exit__(None, None, None)
                raise
            return takeover
    except TimeoutError as exc:
        raise HandoverError(_STAGE_TIMEOUT.format(timeout)) from exc
    except OSError as exc:
        raise HandoverError(f"no sockets from {path}: {exc.strerror}") from exc


async def _connect(path: Path) -> socket.socket:
    while True:
        try:
            return connect_unix(path, _KIND)
        except BlockingIOError:  # others wait to be accepted; bounded by the caller's timeout
            await asyncio.sleep(_CONNECT_RETRY)


async def _receive_all(takeover: Takeover) -> None:
    connection = takeover._connection  # this function is the part of the constructor that waits
    _check_peer(connection)
    _send(connection, _Say(_Word.TAKE))
    while True:
        await readable(connection)
        data, received = receive_packet(connection)
        try:
            batch = _decode(data, _Batch)
            if len(batch.names) != len(received):
                raise HandoverError(f"{len(received)} descriptors for {len(batch.names)} names")
            for name in batch.names:
                if name in takeover.sockets:
                    raise HandoverError(f"two sockets are named {name}")
                takeover.sockets[name] = taken = socket.socket(fileno=received[0])
                del received[0]
                taken.setblocking(os.get_blocking(taken.fileno()))
        finally:
            close_all(received)
        takeover.metadata.update(batch.metadata)
        if batch.last:
            return
        if len(takeover.sockets) > SOCKETS_MAX:
            raise HandoverError(f"more than {SOCKETS_MAX} sockets")
        _send(connection, _Say(_Word.MORE))


def _send(connection: socket.socket, message: _Say | _Batch, descriptors: Sequence[int] = ()) -> None:
    """Send one packet. The other side waits for each, so there is room for it; `BlockingIOError` if not."""
    send_packet(connection, msgspec.json.encode(message), descriptors)


async def _expect(connection: socket.socket, word: _Word, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await readable(connection)
    except TimeoutError as exc:
        raise HandoverError(_STAGE_TIMEOUT.format(timeout)) from exc
    data, received = receive_packet(connection)
    close_all(received)
    said = _decode(data, _Say)
    if said.version != VERSION:
        raise HandoverError(f"the other side speaks version {said.version}, this one {VERSION}")
    if said.say is not word:
        raise HandoverError(f"the other side said {said.say} in place of {word}")


_Message = TypeVar("_Message", _Say, _Batch)


def _decode(data: bytes, kind: type[_Message]) -> _Message:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        raise HandoverError(f"not understood: {exc}") from exc


def _check_peer(connection: socket.socket) -> None:
    peer = peer_of(connection)
    if not peer.trusted:
        raise HandoverError(f"the other side is uid {peer.uid}, neither this user nor root")
