# SPDX-License-Identifier: Apache-2.0
"""`svcproxy demo`: a Service on loopback addresses, scaled and rolled under load. Needs no privileges and no cluster.

The demo is a user of svcproxy like any other: it writes manifests and a configuration into a scratch directory, starts
`svcproxy run`, asks its DNS and sends requests to the Service's address. What it prints is what it measured.
"""

import asyncio
import contextlib
import random
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import dnslib
import yaml
from aiohttp import web

from svcproxy.errors import SvcproxyError

NAMESPACE, SERVICE, PORT_NAME = "shop", "web", "http"
QNAME = f"{SERVICE}.{NAMESPACE}.svc.cluster.local."
VIP = "127.96.0.10"
POD_NETWORK = "127.97.0"
READY_TIMEOUT = 20.0
"""Seconds until the agent and its DNS worker must be ready."""
LOAD_CLIENTS = 4
"""Requests in flight while the Service is scaled and rolled."""
GRACE = 0.5
"""Seconds between a Pod leaving its EndpointSlice and the Pod stopping, as a preStop hook would wait."""


class DemoError(SvcproxyError):
    """The demo could not go on; the message says what to look at."""


@dataclass
class Pod:
    """A back-end: an HTTP server on a loopback address that answers with its own name."""

    name: str
    ip: str
    port: int
    ready: bool = True
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Bind and serve."""
        application = web.Application()
        application.router.add_get("/", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, self.port).start()

    async def stop(self) -> None:
        """Answer what is in flight and end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(text=self.name)


@dataclass
class Cluster:
    """The Pods of the demo and the manifests that tell of them."""

    manifests: Path
    port: int
    target_port: int
    pods: list[Pod] = field(default_factory=list)
    _count: int = 0

    async def add(self, version: str) -> Pod:
        """Start a Pod; it is in the slice after the next `publish`."""
        self._count += 1
        pod = Pod(f"web-{version}-{self._count}", f"{POD_NETWORK}.{self._count}", self.target_port)
        await pod.start()
        self.pods.append(pod)
        return pod

    async def retire(self, pod: Pod) -> None:
        """Take a Pod out of the slice, wait as long as a preStop hook would, stop it."""
        self.pods.remove(pod)
        self.publish()
        await asyncio.sleep(GRACE)
        await pod.stop()

    def publish(self) -> None:
        """Write the EndpointSlice as it is now, replaced in one step."""
        self._write(
            "endpoints.yaml",
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{SERVICE}-1",
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": SERVICE},
                },
                "addressType": "IPv4",
                "ports": [{"name": PORT_NAME, "port": self.target_port, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [pod.ip], "conditions": {"ready": pod.ready}, "targetRef": {"name": pod.name}}
                    for pod in self.pods
                ],
            },
        )

    def publish_service(self) -> None:
        """Write the Service."""
        self._write(
            "service.yaml",
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": SERVICE, "namespace": NAMESPACE},
                "spec": {
                    "clusterIP": VIP,
                    "clusterIPs": [VIP],
                    "ports": [{"name": PORT_NAME, "port": self.port, "targetPort": self.target_port}],
                },
            },
        )

    def _write(self, name: str, document: object) -> None:
        unfinished = self.manifests / f".{name}"
        unfinished.write_text(yaml.safe_dump(document, sort_keys=False))
        unfinished.rename(self.manifests / name)

    async def stop(self) -> None:
        """Stop every Pod."""
        for pod in self.pods:
            await pod.stop()


class Agent:
    """`svcproxy run` as a child, with a configuration of its own."""

    def __init__(self, directory: Path, manifests: Path, dns_port: int) -> None:
        self.run_dir = directory / "run"
        self.config = directory / "config.yaml"
        self._log = directory / "svcproxy.log"
        self._child: asyncio.subprocess.Process | None = None
        self.config.write_text(
            yaml.safe_dump(
                {
                    "node_name": "demo",
                    "run_dir": str(self.run_dir),
                    "state_dir": str(directory / "state"),
                    "kube": {"manifests": str(manifests)},
                    "dataplane": {"mode": "userspace"},
                    "dns": {"listen": [f"127.0.0.1:{dns_port}"], "lameduck": 0},
                    "admin": {"health_listen": None, "metrics_listen": None},
                },
                sort_keys=False,
            )
        )

    async def __aenter__(self) -> Self:
        with self._log.open("wb") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "svcproxy", "run", "--config", str(self.config), stdout=log, stderr=log
            )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
        await self._child.wait()

    async def wait_ready(self) -> None:
        """Wait until the agent and the DNS worker say that they are ready. Raises `DemoError`."""
        for role in ("agent", "dns"):
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    while not await self._probe(role):
                        if self._child is not None and self._child.returncode is not None:
                            raise DemoError(f"svcproxy ended:\n{self.log_tail()}")
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise DemoError(f"svcproxy {role} is not ready:\n{self.log_tail()}") from None

    async def _probe(self, role: str) -> bool:
        probe = await asyncio.create_subprocess_exec(
            *self.command("status", "--role", role, "--probe", "readyz"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await probe.wait() == 0

    def command(self, *arguments: str) -> list[str]:
        """A svcproxy command line that talks to this instance."""
        return [sys.executable, "-m", "svcproxy", *arguments, "--run-dir", str(self.run_dir)]

    def log_tail(self) -> str:
        """The end of what it logged."""
        return self._log.read_text(errors="replace")[-3000:]


@dataclass
class Load:
    """Requests to the Service's address, one connection each, until told to stop."""

    url: str
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def request(self, session: aiohttp.ClientSession) -> None:
        """One request; its outcome is counted."""
        try:
            async with session.get(self.url) as response:
                body = await response.text()
                if response.status == 200:
                    self.answered[body] += 1
                else:
                    self.failures.append(f"status {response.status}")
        except (aiohttp.ClientError, TimeoutError) as exc:
            self.failures.append(repr(exc))

    @contextlib.asynccontextmanager
    async def running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """Requests go on for the length of the block."""
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                await self.request(session)

        async with asyncio.TaskGroup() as group:
            for number in range(LOAD_CLIENTS):
                group.create_task(client(), name=f"client-{number}")
            try:
                yield
            finally:
                stop.set()


def _free_port(address: str, kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind((address, 0))
        port: int = held.getsockname()[1]
        return port


async def _resolve(dns_port: int) -> list[str]:
    """Ask the demo's DNS worker for the Service's address, as a Pod's resolver would."""
    query = dnslib.DNSRecord.question(QNAME, "A")
    query.header.id = random.randrange(1 << 16)  # noqa: S311  # loopback, nobody to guess it
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(("127.0.0.1", dns_port))
        await loop.sock_sendall(client, query.pack())
        async with asyncio.timeout(2):
            answer = dnslib.DNSRecord.parse(await loop.sock_recv(client, 4096))
    return [str(record.rdata) for record in answer.rr]


def _say(text: str = "") -> None:
    print(text, flush=True)


def _shares(answered: Counter[str]) -> str:
    return "\n".join(f"      {name:<12} {count:>5}  {'█' * min(40, count)}" for name, count in sorted(answered.items()))


async def _scale_and_roll(cluster: Cluster, session: aiohttp.ClientSession, url: str) -> Load:
    load = Load(url)
    async with load.running(session):
        await asyncio.sleep(0.3)
        for _ in range(2):
            await cluster.add("v1")
        cluster.publish()
        await asyncio.sleep(0.7)
        for old in list(cluster.pods):
            await cluster.add("v2")
            cluster.publish()
            await asyncio.sleep(0.1)
            await cluster.retire(old)
        await asyncio.sleep(0.3)
    return load


async def _demo(directory: Path, keep: bool) -> int:
    manifests = directory / "manifests"
    manifests.mkdir()
    port, dns_port = _free_port(VIP, socket.SOCK_STREAM), _free_port("127.0.0.1", socket.SOCK_DGRAM)
    cluster = Cluster(manifests, port, _free_port(f"{POD_NETWORK}.1", socket.SOCK_STREAM))
    url = f"http://{VIP}:{port}/"
    connector = aiohttp.TCPConnector(force_close=True)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session:
            for _ in range(3):
                await cluster.add("v1")
            cluster.publish_service()
            cluster.publish()
            async with Agent(directory, manifests, dns_port) as agent:
                await agent.wait_ready()
                _say(f"1. A Service and three Pods, as manifests in {manifests}; svcproxy serves them.")
                _say(f"\n2. Its DNS:  {QNAME}  A  {', '.join(await _resolve(dns_port))}")
                first = Load(url)
                for _ in range(60):
                    await first.request(session)
                _say(f"\n3. 60 requests to {url}, straight to the Pods:")
                _say(_shares(first.answered))
                _say("\n4. Scaling to five Pods, then replacing each of them, while requests run …")
                load = await _scale_and_roll(cluster, session, url)
                total = sum(load.answered.values()) + len(load.failures)
                _say(f"      {total} requests, {len(load.failures)} failed, {len(load.answered)} Pods answered:")
                for version in ("v1", "v2"):
                    count = sum(n for name, n in load.answered.items() if f"-{version}-" in name)
                    _say(f"      {version}  {count:>6}")
                failures = first.failures + load.failures
                for failure in Counter(failures):
                    _say(f"      failed: {failure}")
                _say(_epilogue(agent, dns_port, url, manifests, keep))
                if keep:
                    await _until_interrupted()
    finally:
        await cluster.stop()
    return 1 if failures else 0


def _epilogue(agent: Agent, dns_port: int, url: str, manifests: Path, keep: bool) -> str:
    if not keep:
        return "\nTry it by hand: svcproxy demo --keep leaves it running.\n"
    run_dir = f"--run-dir {agent.run_dir}"
    return f"""
It goes on until you press Ctrl-C. In another terminal:
      curl {url}
      dig @127.0.0.1 -p {dns_port} {QNAME}
      svcproxy status {run_dir}
      svcproxy trace {url.removeprefix("http://").rstrip("/")}/TCP {run_dir}
      $EDITOR {manifests / "endpoints.yaml"}
"""


async def _until_interrupted() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def main(keep: bool) -> int:
    """Run the demo; returns the exit code. 0 when no request failed."""
    with tempfile.TemporaryDirectory(prefix="svcproxy-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            return asyncio.run(_demo(directory, keep))
        except DemoError as exc:
            print(f"svcproxy demo: {exc}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
