# SPDX-License-Identifier: Apache-2.0
"""A real agent process against a real API server, a proxy that misbehaves between them, and ways to look inside."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.feed.client import FeedClient
from svcproxy.feed.codec import NAMES
from svcproxy.feed.subscriber import Subscriber
from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.decision import SourceKind, decide
from svcproxy.frontends.keys import Refusal
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Changes, EndpointSlice, Service, Store
from svcproxy.names.records import EndpointRecord, Record
from svcproxy.process.instance import RunDirectory
from svcproxy.testing.control_plane import ControlPlane

TIMEOUT = 60.0
"""Seconds that anything awaited may take before the test fails; things take far less."""
NODE = "node-1"


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds. Fails after `TIMEOUT`."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


class AgentProcess:
    """`svcproxy agent` as a child, with directories of its own that survive its restarts."""

    def __init__(self, directory: Path, *arguments: str, prefix: Sequence[str] = (), instance: str = "") -> None:
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.log = directory / f"agent{instance}.log"
        self._instance = instance
        self._command = [
            *prefix,
            *(
                sys.executable,
                "-m",
                "svcproxy",
                "agent",
                "--node-name",
                NODE,
                "--config",
                str(directory / "config.yaml"),
            ),
            *("--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir), *arguments),
        ]
        config = directory / "config.yaml"
        if not config.exists():
            config.write_text(
                json.dumps(
                    {
                        "dataplane": {"mode": "none"},
                        "admin": {"health_listen": None, "metrics_listen": None},
                        "state": {"write_interval": 0.2},
                        "kube": {"backoff_max": 1.0},
                    }
                )
            )
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the running child."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start, or start again."""
        with self.log.open("ab") as log:
            environment = os.environ | {"SVCPROXY_INSTANCE": self._instance}
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def kill(self) -> None:
        """kill -9."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)
        return self._child.wait(TIMEOUT)

    def ended(self) -> int | None:
        """The exit code, None while it runs."""
        assert self._child is not None
        return self._child.poll()

    def api(self) -> StatusClient:
        """The status API of the instance. Raises `ClientError` when it cannot be asked."""
        return StatusClient(find_instance(self.run_dir, self._instance).admin_socket)

    def get(self, path: str) -> Any:
        """An answer of the status API, None while there is none."""
        try:
            return self.api().get_json(path)
        except (ClientError, OSError):
            return None

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz; empty while nobody answers."""
        try:
            return dict(msgspec.json.decode(self.api().ask("/readyz").body))
        except (ClientError, OSError):
            return {}

    def ready_pid(self) -> int:
        """The pid of the agent if it is ready, else 0."""
        status = self.get("/v1/status")
        return int(status["pid"]) if status and status["readiness"]["ready"] else 0

    async def ready(self) -> None:
        """Return once the agent is ready. Fails with its log if it ends."""

        def is_ready() -> bool:
            assert self.ended() is None, self.log.read_text()
            return bool(self.readiness().get("ready"))

        await eventually(is_ready, "the agent is ready")

    def frontends(self) -> dict[str, tuple[str, frozenset[str]]]:
        """(Service port, backends) by frontend, as the status API tells."""
        found: dict[str, tuple[str, frozenset[str]]] = {}
        token = ""
        while True:
            page = self.get(f"/v1/frontends?limit=500{f'&continue={token}' if token else ''}")
            if page is None:
                return {}
            for each in page["items"]:
                found[each["frontend"]] = (f"{each['service']}:{each['port']}", frozenset(each["backends"]))
            token = page.get("continue", "")
            if not token:
                return found


def expected_frontends(plane: ControlPlane, server: int = 0) -> dict[str, tuple[str, frozenset[str]]]:
    """What the agent should say, derived from scratch from what the API says."""
    store = Store()
    for kind, path in ((Service, "/api/v1/services"), (EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices")):
        items = plane.call("GET", path, server=server)["items"]
        store.apply(Changes(kind, tuple(msgspec.convert(item, kind) for item in items)))
    builder = FrontendBuilder(store, NodeView(NODE), FrontendOptions())
    from_scratch = Store()
    for kind, objects in ((Service, store.services), (EndpointSlice, store.slices)):
        builder_changes: Changes[Any] = Changes(kind, tuple(objects.values()))
        touched = from_scratch.apply(builder_changes)
        builder.update(touched)
    expected: dict[str, tuple[str, frozenset[str]]] = {}
    for key, frontend in builder.table.frontends.items():
        served = decide(builder.table, frontend, SourceKind.OTHER)
        backends = () if isinstance(served, Refusal) else builder.table.backends[served]
        port = frontend.service_port
        expected[str(key)] = (f"{port.namespace}/{port.service}:{port.port}", frozenset(map(str, backends)))
    return expected


class ChaosProxy:
    """A TCP proxy to an API server that cuts connections when told to, in the middle of whatever they carry."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._connections: set[asyncio.StreamWriter] = set()
        self.refusing = False
        self.speaking = asyncio.Event()
        """While it is not set, connections stay open and carry nothing to the client."""
        self.speaking.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut(1.0)

    @property
    def url(self) -> str:
        """The URL to use in place of the API server's."""
        return f"https://127.0.0.1:{self.port}"

    def cut(self, share: float, rng: random.Random | None = None) -> None:
        """Reset a share of the connections."""
        for writer in list(self._connections):
            if rng is None or rng.random() < share:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self._connections.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            self._connections.discard(writer)
            writer.transport.abort()
            return
        try:
            with contextlib.suppress(OSError, ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, upstream_writer, towards_client=False), name="to server")
                    group.create_task(self._pump(upstream_reader, writer, towards_client=True), name="to client")
        finally:
            self._connections.discard(writer)
            upstream_writer.close()
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards_client: bool) -> None:
        while data := await reader.read(1 << 14):
            if towards_client:
                await self.speaking.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


def service(name: str, **spec: Any) -> dict[str, Any]:
    """A Service with one port; `spec` overrides."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}], **spec},
    }


def endpoint_slice(name: str, of: str, addresses: Iterable[str], **fields: Any) -> dict[str, Any]:
    """An EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address]} for address in addresses],
        **fields,
    }


SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


class Population:
    """Services that come, change and go at random; some endpoints exist throughout and are known to the test."""

    def __init__(self, plane: ControlPlane, rng: random.Random) -> None:
        self._plane = plane
        self._rng = rng
        self._count = 0
        self.names: list[str] = []
        self.steady: dict[str, str] = {}
        """By Service: an endpoint address that is there from its creation to the end."""
        self.server = 0

    def create(self, steady: bool = False) -> None:
        """A Service with a slice of a few endpoints."""
        self._count += 1
        name = f"svc-{self._count}"
        address = f"10.{128 + self._count // 65536}.{self._count // 256 % 256}.{self._count % 256}"
        self._call("POST", SERVICES, service(name))
        self._call("POST", SLICES, endpoint_slice(f"{name}-1", name, [address, *self._addresses()]))
        if steady:
            self.steady[name] = address
        else:
            self.names.append(name)

    def change(self) -> None:
        """Other endpoints beside the steady one, or other endpoints altogether."""
        name = self._rng.choice([*self.names, *self.steady])
        kept = [self.steady[name]] if name in self.steady else []
        path = f"{SLICES}/{name}-1"
        self._call("PUT", path, endpoint_slice(f"{name}-1", name, [*kept, *self._addresses()]))

    def delete(self) -> None:
        """A Service that is not steady goes, with its slice."""
        if not self.names:
            return
        name = self.names.pop(self._rng.randrange(len(self.names)))
        self._call("DELETE", f"{SERVICES}/{name}")
        self._call("DELETE", f"{SLICES}/{name}-1")

    def step(self) -> None:
        """One of the above."""
        self._rng.choice([self.create, self.change, self.change, self.delete])()

    def _addresses(self) -> list[str]:
        return [
            f"10.200.{self._rng.randrange(256)}.{self._rng.randrange(1, 255)}" for _ in range(self._rng.randrange(4))
        ]

    def _call(self, method: str, path: str, body: Any = None) -> None:
        """Try until an API server has done it: they are being killed meanwhile."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self._plane.request(method, path, body, server=self.server)
            except OSError as exc:  # HTTPError is one
                code = getattr(exc, "code", None)
                if (code == 409 and method == "POST") or (code == 404 and method == "DELETE"):
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class SteadySink:
    """Takes an agent's feed in as a DNS worker does, and notes steady endpoints that go although they exist."""

    def __init__(self, steady: dict[str, str]) -> None:
        self._steady = steady
        self._generation = 0
        self.known: dict[Record, int] = {}
        self.missing: list[EndpointRecord] = []

    def begin_snapshot(self) -> None:
        """See `RecordSink`."""
        self._generation += 1

    def change(self, added: Sequence[Record], removed: Sequence[Record]) -> None:
        """See `RecordSink`."""
        for record in removed:
            self.known.pop(record, None)
        for record in added:
            self.known[record] = self._generation
        self._check(removed)

    def sweep(self, batch: int) -> Iterator[int]:
        """See `RecordSink`."""
        old = [record for record, generation in self.known.items() if generation != self._generation]
        for start in range(0, len(old), batch):
            for record in old[start : start + batch]:
                del self.known[record]
            self._check(old[start : start + batch])
            yield len(old[start : start + batch])

    def _check(self, gone: Sequence[Record]) -> None:
        self.missing += [
            record
            for record in gone
            if isinstance(record, EndpointRecord)
            and self._steady.get(record.name) == record.ip
            and record not in self.known
        ]


def feed_client(agent: AgentProcess, sink: SteadySink) -> FeedClient:
    """Follows the feed of whichever instance is active."""

    def path() -> Path:
        active = RunDirectory(agent.run_dir).active()
        if active is None:
            raise FileNotFoundError(agent.run_dir)
        return active.feed_socket

    return FeedClient(path, Subscriber(NAMES, sink, "test", os.getpid()))


def lines(path: Path, containing: str) -> Iterator[str]:
    """Lines of a log that contain a text."""
    yield from (line for line in path.read_text(errors="replace").splitlines() if containing in line)
