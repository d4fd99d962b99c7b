# SPDX-License-Identifier: Apache-2.0
"""Flows of a client to a server, through a node between: connections and octets, what they cost in CPU time.

The client and the server are `flows.c`, compiled for the run. The kernel forwards and translates in the context of
whoever sends, so that the CPU time of both is that of the node's work too.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.netns.namespaces import Namespace

PORT = 8080
CLIENT, SERVER = 8, 9
"""Numbers of the networks: the server is 10.1.9.2."""
SERVER_IP = f"10.1.{SERVER}.2"


@dataclass(frozen=True)
class Cost:
    """Of one operation, in seconds."""

    wall: float
    cpu: float


class Flows:
    """The two programs around a node."""

    def __init__(self, node: Namespace) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._program = Path(self._scratch.name, "flows")
        subprocess.run(["cc", "-O2", "-o", self._program, Path(__file__).with_suffix(".c")], check=True)
        self._client, self._server = Namespace(), Namespace()
        node.forward()
        node.connect(self._client, "client", CLIENT)
        node.connect(self._server, "server", SERVER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()
        self._server.__exit__()
        self._scratch.cleanup()

    def connect(self, ip: str, port: int, count: int) -> Cost:
        """New connections, one after the other."""
        return self._run("connect", ip, port, count)

    def send(self, ip: str, port: int, mib: int) -> Cost:
        """MiB over one connection."""
        return self._run("send", ip, port, mib)

    def _run(self, verb: str, ip: str, port: int, count: int) -> Cost:
        with self._serving() as server:
            words = self._client.run(str(self._program), verb, ip, str(port), str(count)).split()
            server.terminate()
            assert server.stdout is not None
            served = server.stdout.read().split()
        cpu = sum(map(float, (*words[1:], *served[1:])))
        return Cost(float(words[0]) / count, cpu / count)

    @contextmanager
    def _serving(self) -> Iterator[subprocess.Popen[str]]:
        command = [str(self._program), "serve", SERVER_IP, str(PORT)]
        with self._server.entered():
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield server
        finally:
            server.kill()
            server.wait()
