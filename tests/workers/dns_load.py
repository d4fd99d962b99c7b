# SPDX-License-Identifier: Apache-2.0
"""Clients of a DNS server that have one query at a time under way, and count what becomes of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dnslib

PATIENCE = 25.0
"""Seconds for an answer. A query is sent once, and is lost if none comes."""
_PAUSE = 0.002


@dataclass
class Client:
    """One of them. `failures`: what was lost, and how."""

    family: socket.AddressFamily
    kind: socket.SocketKind
    address: tuple[str, int]
    asked: int = 0
    failures: list[str] = field(default_factory=list)

    async def ask(self, query: bytes) -> bytes:
        """The answer to one query. Raises `OSError`, also for the end of a stream and a timeout."""
        loop = asyncio.get_running_loop()
        with socket.socket(self.family, self.kind) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, self.address)
                if self.kind == socket.SOCK_DGRAM:
                    await loop.sock_sendall(sock, query)
                    return await loop.sock_recv(sock, 65535)
                await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
                received = b""
                while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                    octets = await loop.sock_recv(sock, 65535)
                    if not octets:
                        raise ConnectionResetError("closed without an answer")
                    received += octets
                return received[2:]

    async def run(self, qname: str, stop: asyncio.Event) -> None:
        """Ask again and again."""
        while not stop.is_set():
            self.asked += 1
            query = dnslib.DNSRecord.question(qname)
            try:
                answer = dnslib.DNSRecord.parse(await self.ask(query.pack()))
                if answer.header.id != query.header.id or not answer.rr:
                    self.failures.append(f"answer {answer.header.rcode} {len(answer.rr)}")
            except OSError as exc:
                self.failures.append(repr(exc))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PAUSE)


@asynccontextmanager
async def load(qname: str, addresses: Sequence[tuple[str, int]]) -> AsyncIterator[list[Client]]:
    """Two clients for each address and protocol ask for a name; at the end all have had an answer, or given up."""
    clients = [
        Client(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind, address)
        for address in addresses
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        for _ in range(2)
    ]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number, client in enumerate(clients):
            group.create_task(client.run(qname, stop), name=f"client-{number}")
        try:
            yield clients
        finally:
            stop.set()


def asked(clients: Sequence[Client]) -> int:
    """Queries of all clients."""
    return sum(client.asked for client in clients)
