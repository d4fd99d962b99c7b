# SPDX-License-Identifier: Apache-2.0
"""Many TCP connections, one after the other, in a process of their own: its servers and its clients.

The process takes a `Load` from standard input, a line of JSON, and says when its servers are ready. Another line starts
the clients, and it prints a `Result`. Each connection is opened, asks once, and is reset by the client.
"""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Self

import msgspec
import uvloop

from svcproxy.model.meta import Protocol
from tests.netns.namespaces import inside
from tests.netns.probes import Failed, Flow, Outcome, Refused, Served, Server, Timeout

CHECKOUT = Path(__file__).parents[2]
READY = b"ready\n"
LINE_OCTETS_MAX = 1 << 20
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Place(msgspec.Struct, frozen=True):
    """A server: its namespace as a descriptor, its name, where it is."""

    namespace: int
    name: str
    ip: str
    port: int


class Load(msgspec.Struct, frozen=True):
    """What the process does."""

    servers: list[Place]
    clients: int
    """Their namespace as a descriptor."""
    target: tuple[str, int]
    connections: int
    at_once: int


class Result(msgspec.Struct, frozen=True):
    """What came of it."""

    served: dict[str, int]
    """Connections by server."""
    failures: dict[str, int]
    """Connections by what they met instead."""
    slowest: float
    """Seconds, from connect to answer."""
    seconds: float


class LoadProcess:
    """The process, from here. `async with` waits for its end."""

    def __init__(self, load: Load) -> None:
        self._load = load

    async def __aenter__(self) -> Self:
        """Returns when the servers are ready."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.netns.load_process"),
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE_OCTETS_MAX,
            pass_fds=sorted({self._load.clients} | {server.namespace for server in self._load.servers}),
        )
        await self._say(msgspec.json.encode(self._load))
        if await self._hear() != READY:
            raise RuntimeError("the load's servers did not start")
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        if exc_type is not None and self._process.returncode is None:
            self._process.kill()
        self._process.stdin.close()
        await self._process.wait()

    async def run(self) -> Result:
        """Connect. Returns when all connections have been made."""
        await self._say(b"go")
        return msgspec.json.decode(await self._hear(), type=Result)

    async def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        await self._process.stdin.drain()

    async def _hear(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


async def _main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    for place in load.servers:
        with inside(place.namespace):
            server = Server(place.name, Protocol.TCP, place.ip, place.port)
        await server.start()
    os.write(1, READY)
    if sys.stdin.buffer.readline():
        os.write(1, msgspec.json.encode(await _connect(load)) + b"\n")
    os._exit(0)  # the servers still run


async def _connect(load: Load) -> Result:
    met: Counter[Outcome] = Counter()
    slowest = 0.0
    remaining = iter(range(load.connections))

    async def keep_connecting() -> None:
        nonlocal slowest
        for _ in remaining:
            with inside(load.clients):
                flow = Flow(Protocol.TCP, load.target)
            flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            before = time.monotonic()
            with flow:
                met[await flow.ask()] += 1
            slowest = max(slowest, time.monotonic() - before)

    before = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(load.at_once):
            group.create_task(keep_connecting(), name=f"client {number}")
    seconds = time.monotonic() - before
    served: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for outcome, times in met.items():
        match outcome:
            case Served():
                served[outcome.by] += times
            case Failed():
                failures[outcome.reason] += times
            case Refused() | Timeout():
                failures[type(outcome).__name__] += times
    return Result(served, failures, slowest, seconds)


if __name__ == "__main__":
    uvloop.run(_main())
