# SPDX-License-Identifier: Apache-2.0
"""Backends that answer with their name, and clients that tell what they met. TCP and UDP, on real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Self

from svcproxy.frontends.keys import Backend
from svcproxy.model.meta import Protocol

PATIENCE = 10.0
"""Seconds that a client waits for an answer it expects."""
SILENCE = 0.05
"""Seconds after which a client that expects no answer believes it."""
QUESTION_OCTETS = 65507
"""The largest question."""


class Met(StrEnum):
    """What a client met that reached no backend."""

    REFUSED = "refused"
    """An error at once: connection refused or reset, port unreachable."""
    SILENCE = "silence"


class Server:
    """A backend. Answers every read or datagram with its name, a space and what it got."""

    def __init__(self, name: str, protocol: Protocol, ip: str, port: int = 0) -> None:
        """Binds; port 0 takes a free one. Raises OSError."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        stream = protocol is Protocol.TCP
        self.name = name
        self.seen: list[str] = []
        """Addresses of the clients, one for each connection or datagram."""
        self.open: set[socket.socket] = set()
        """Connections now."""
        self._stream = stream
        self._sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        if stream:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((ip, port))
        if stream:
            self._sock.listen(128)
        self.backend = Backend(ip, self._sock.getsockname()[1])

    async def run(self) -> None:
        """Serve until cancelled, then close everything."""
        loop = asyncio.get_running_loop()
        try:
            if not self._stream:
                await self._answer_datagrams(loop)
            async with asyncio.TaskGroup() as connections:
                while True:
                    connection, address = await loop.sock_accept(self._sock)
                    self.seen.append(address[0])
                    self.open.add(connection)
                    connections.create_task(self._answer(loop, connection), name=f"{self.name} connection")
        finally:
            self._sock.close()

    async def _answer(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        try:
            with suppress(OSError):
                while data := await loop.sock_recv(connection, QUESTION_OCTETS):
                    await loop.sock_sendall(connection, self.name.encode() + b" " + data)
        finally:
            self.open.discard(connection)
            connection.close()

    async def _answer_datagrams(self, loop: asyncio.AbstractEventLoop) -> None:
        """uvloop has no `sock_recvfrom`."""
        loop.add_reader(self._sock, self._answer_datagram)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(self._sock)

    def _answer_datagram(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            data, address = self._sock.recvfrom(QUESTION_OCTETS)
            self.seen.append(address[0])
            self._sock.sendto(self.name.encode() + b" " + data, address)


@asynccontextmanager
async def serving(*servers: Server) -> AsyncIterator[None]:
    """Run servers for the length of the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(server.run(), name=f"backend {server.name}") for server in servers]
        await asyncio.sleep(0)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


class Client:
    """One TCP connection or one connected UDP socket to a frontend."""

    def __init__(self, protocol: Protocol, source: str, target: tuple[str, int]) -> None:
        """Comes from `source`, an address of this node."""
        self._stream = protocol is Protocol.TCP
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self._target = target
        self._connected = False
        try:
            self.sock.bind((source, 0))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def ask(self, question: bytes = b"?", patience: float = PATIENCE) -> str:
        """The name of the backend that answered, or a value of `Met`. May be asked again."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                if not self._connected:
                    await loop.sock_connect(self.sock, self._target)
                    self._connected = True
                with suppress(PermissionError):  # a rule took it out on this very host: what comes back tells more
                    await loop.sock_sendall(self.sock, question)
                answer = await loop.sock_recv(self.sock, QUESTION_OCTETS)
        except TimeoutError:
            return Met.SILENCE
        except ConnectionError:
            return Met.REFUSED
        name, _, echo = answer.partition(b" ")
        return name.decode() if echo == question else Met.REFUSED


async def ask(protocol: Protocol, source: str, target: tuple[str, int], patience: float = PATIENCE) -> str:
    """Ask once, over a flow of its own."""
    with Client(protocol, source, target) as client:
        return await client.ask(patience=patience)
