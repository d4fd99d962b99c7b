# SPDX-License-Identifier: Apache-2.0
"""Servers that tell whom they see, and clients that tell what they met. TCP and UDP, on real sockets."""

import asyncio
import itertools
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, cast

from svcproxy.model.meta import Protocol

PATIENCE = 10.0
"""Seconds that a client waits for an answer or a refusal it expects."""
SILENCE = 0.3
"""Seconds after which a client that expects no answer believes it."""
SILENCE_FOR_TWO = 1.5
"""The same where a refusal may answer only the second SYN, which comes after a second."""
ANSWER_OCTETS = 512
BACKLOG = 1024
DATAGRAMS_AT_ONCE = 256
SO_RCVBUFFORCE = 33
DATAGRAM_BUFFER = 4 << 20
"""Octets that may wait for a UDP server."""

_questions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Served:
    """A server answered."""

    by: str
    source: str
    """The client's address as the server saw it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection was refused, or the port unreachable."""


@dataclass(frozen=True, slots=True)
class Timeout:
    """Nothing came back."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Something else: no route, a reset connection, another one's answer."""

    reason: str


Outcome = Served | Refused | Timeout | Failed
REFUSED = Refused()
TIMEOUT = Timeout()


class Server:
    """Answers on TCP or UDP with its name, the client's address and what it got. Closed by `close`."""

    def __init__(self, name: str, protocol: Protocol, ip: str, port: int) -> None:
        """Binds in the network namespace of the caller. Raises OSError."""
        self.name = name
        self.sources: list[str] = []
        """The clients' addresses, one for each connection or datagram."""
        self.connections: set[asyncio.Transport] = set()
        self._sock = _socket(protocol, ip)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in ip:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._sock.bind((ip, port))
        self._stream = protocol is Protocol.TCP
        if not self._stream:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, DATAGRAM_BUFFER)
        self._endpoint: asyncio.Server | asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._stream:
            self._endpoint = await loop.create_server(lambda: _Connection(self), sock=self._sock, backlog=BACKLOG)
        else:
            self._endpoint = loop
            loop.add_reader(self._sock, self._answer_datagrams)

    def close(self) -> None:
        """Take no new clients. Connections stay."""
        if isinstance(self._endpoint, asyncio.Server):
            self._endpoint.close()
            return
        if self._endpoint is not None:
            self._endpoint.remove_reader(self._sock)
        self._sock.close()

    def abort(self) -> None:
        """Close everything at once."""
        self.close()
        for connection in list(self.connections):
            connection.abort()

    def _answer_datagrams(self) -> None:
        """Many in one turn of the loop: so they may come."""
        with suppress(BlockingIOError):
            for _ in range(DATAGRAMS_AT_ONCE):
                question, address = self._sock.recvfrom(ANSWER_OCTETS)
                self.sources.append(address[0])
                with suppress(OSError):  # nobody waits for it any more
                    self._sock.sendto(self.answer(address[0], question), address)

    def answer(self, source: str, question: bytes) -> bytes:
        return b" ".join((self.name.encode(), source.encode(), question))


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._source = transport.get_extra_info("peername")[0]
        self._server.sources.append(self._source)
        self._server.connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._server.answer(self._source, data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self._transport)


class Flow:
    """One TCP connection or one connected UDP socket."""

    def __init__(self, protocol: Protocol, target: tuple[str, int], source: tuple[str, int] | None = None) -> None:
        """Opens the socket in the network namespace of the caller; connects with the first question."""
        self._target = target
        self._connected = False
        self.sock = _socket(protocol, target[0])
        if source is not None:
            try:
                self.sock.bind(source)
            except OSError:
                self.sock.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def ask(self, patience: float = PATIENCE) -> Outcome:
        """Ask and say what came of it within `patience` seconds. May be asked again."""
        loop = asyncio.get_running_loop()
        question = b"%d" % next(_questions)
        try:
            async with asyncio.timeout(patience):
                if not self._connected:
                    await loop.sock_connect(self.sock, self._target)
                    self._connected = True
                with suppress(PermissionError):  # what a rule takes out on this very host; what comes back tells more
                    await loop.sock_sendall(self.sock, question)
                answer = await loop.sock_recv(self.sock, ANSWER_OCTETS)
        except TimeoutError:
            return TIMEOUT
        except ConnectionRefusedError:
            return REFUSED
        except OSError as exc:
            return Failed(str(exc))
        words = answer.split(b" ")
        if len(words) != 3 or words[2] != question:
            return Failed(f"answer {answer!r} to {question!r}")
        return Served(words[0].decode(), words[1].decode())

    def send(self, question: bytes = b"?") -> None:
        """Send one way. Raises OSError, a refusal that has come back among them."""
        if not self._connected:
            self.sock.connect(self._target)
            self._connected = True
        self.sock.send(question)


def _socket(protocol: Protocol, ip: str) -> socket.socket:
    sock = socket.socket(
        socket.AF_INET6 if ":" in ip else socket.AF_INET,
        socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM,
    )
    sock.setblocking(False)
    return sock
