# SPDX-License-Identifier: Apache-2.0
"""CoreDNS and svcproxy on one node, with one API server and one upstream, and a client that asks both."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from svcproxy.model.meta import Family
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane, Process
from tests.dns.upstream import Upstream, upstream
from tests.e2e.dns_differential.cluster import SERVER, SYSTEM, ZONE
from tests.e2e.dns_differential.questions import Question
from tests.e2e.dns_differential.replies import Reply, read
from tests.e2e.objects import Object, Objects
from tests.netns.namespaces import Namespace

CONVERGENCE: Final = 60.0
"""Seconds that either side may take for a batch of changes; both take far less."""
PATIENCE: Final = 6.0
"""Seconds until silence is believed: more than any upstream is given."""
TRIES: Final = 3
PAUSE: Final = 0.5
"""Seconds until a client whose connection was closed connects again."""
AT_ONCE: Final = 32
"""Questions on their way."""
PORTS: Final = {"coredns": 53, "svcproxy": 5353}
_COREFILE: Final = """\
.:{port} {{
    errors
    kubernetes {zone} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods {pods}
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
        {more}
    }}
    forward . {upstream} {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success {zone} in-addr.arpa ip6.arpa
        disable denial {zone} in-addr.arpa ip6.arpa
    }}
    loadbalance
}}
"""
"""kubeadm's, without what serves health and metrics; addresses are not cached either, for they change here."""


@dataclass(frozen=True, slots=True)
class Options:
    """Which names are made of what is known; kubeadm's unless said."""

    pods: str = "insecure"
    endpoint_pod_names: bool = False


@dataclass(slots=True)
class Side:
    """A server."""

    name: str
    processes: list[Process]
    client: "Client"

    def check(self) -> None:
        """Fails with its log if a process has ended."""
        for process in self.processes:
            assert process.popen is not None
            assert process.popen.poll() is None, f"{self.name} ended: {process.tail()}"


class Client(asyncio.DatagramProtocol):
    """Asks one server. Questions without a reply are asked again."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._ident = 0
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._transport: Any = None

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, remote_addr=self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.DatagramProtocol`."""
        self._transport = transport

    def error_received(self, exc: Exception) -> None:
        """Nobody listens yet: as good as silence."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """See `asyncio.DatagramProtocol`."""
        waiting = self._waiting.pop(int.from_bytes(data[:2], "big"), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(data)

    async def ask(self, question: Question, patience: float = PATIENCE) -> Reply | None:
        """The reply, None if there is none."""
        async with self._slots:
            for _ in range(TRIES):
                self._ident = (self._ident + 1) & 0xFFFF
                message = question.wire(self._ident)
                try:
                    async with asyncio.timeout(patience):
                        octets = await (self._over_tcp(message) if question.tcp else self._over_udp(message))
                except TimeoutError:
                    continue
                except (OSError, asyncio.IncompleteReadError):  # closed: one of us has been slow
                    await asyncio.sleep(PAUSE)
                    continue
                assert octets[:2] == message[:2], "the ID is the query's"
                return read(octets)
        return None

    async def _over_udp(self, message: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[int.from_bytes(message[:2], "big")] = future
        self._transport.sendto(message)
        return await future

    async def _over_tcp(self, message: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(len(message).to_bytes(2, "big") + message)
            return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        finally:
            writer.close()


@dataclass(slots=True)
class Servers:
    """Both sides, the API that they follow, and whom they ask."""

    coredns: Side
    svcproxy: Side
    objects: Objects
    upstream: Upstream
    _round: int = field(default=0)

    async def ask(self, question: Question) -> tuple[Reply | None, Reply | None]:
        """CoreDNS' reply and svcproxy's."""
        async with asyncio.TaskGroup() as group:
            sides = [
                group.create_task(side.client.ask(question), name=side.name) for side in (self.coredns, self.svcproxy)
            ]
        return sides[0].result(), sides[1].result()

    async def bring(self, wanted: Mapping[str, Object]) -> None:
        """Make the API have these objects, and return when both sides answer from them."""
        self._round += 1
        self.objects.bring({**wanted, **_marker(self._round)})
        async with asyncio.TaskGroup() as group:
            for side in (self.coredns, self.svcproxy):
                group.create_task(self._marked(side, _told(self._round)), name=side.name)

    async def _marked(self, side: Side, expected: Mapping[Question, list[str]]) -> None:
        """Return once the side knows what was written last, and nothing of it as it was before."""
        deadline = time.monotonic() + CONVERGENCE
        for question, rdata in expected.items():
            while True:
                reply = await side.client.ask(question, 0.5)
                if reply is not None and reply.rcode == "NOERROR" and [each.rdata for each in reply.answer] == rdata:
                    break
                side.check()
                assert time.monotonic() < deadline, f"{side.name} does not follow: {question} {reply}"
                await asyncio.sleep(0.05)


def _marker(number: int) -> dict[str, Object]:
    """One object of each kind, different each time, that tells whether what was written before it is known."""
    metadata, ip, namespace = {"name": "marker", "namespace": SYSTEM}, _marker_ip(number), f"marker-{number}"
    return {
        f"/api/v1/namespaces/{namespace}": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        f"/api/v1/namespaces/{SYSTEM}/services/marker": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": "10.96.0.40", "clusterIPs": ["10.96.0.40"], "ports": [{"port": number}]},
        },
        f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices/marker": {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "marker"}},
            "addressType": "IPv4",
            "ports": [{"name": "m", "port": 1, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": True}, "hostname": "m"}],
        },
        f"/api/v1/namespaces/{SYSTEM}/pods/{namespace}": {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": namespace, "namespace": SYSTEM},
            "spec": {"containers": [{"name": "c", "image": "none"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        },
    }


def _marker_ip(number: int) -> str:
    return f"10.255.{number // 250}.{number % 250 + 1}"


def _told(number: int) -> dict[Question, list[str]]:
    """What a server answers that knows the marker."""
    name, ip = f"marker.{SYSTEM}.svc.{ZONE}.", _marker_ip(number)
    return {
        Question(f"marker-{number}.svc.{ZONE}.", "A"): [],
        Question(name, "SRV"): [f"0 100 {number} {name}"],
        Question(f"m.{name}", "A"): [ip],
        Question(f"{ip.replace('.', '-')}.{SYSTEM}.pod.{ZONE}.", "A"): [ip],
    }


@asynccontextmanager
async def two_servers(directory: Path, options: Options) -> AsyncIterator[Servers]:
    """Everything runs, without objects; the caller's thread is in its network namespace meanwhile."""
    async with AsyncExitStack() as stack:
        node = stack.enter_context(Namespace())
        for ip in SERVER.values():
            node.ip("addr", "add", ip, "dev", "lo")
        stack.enter_context(node.entered())
        plane = stack.enter_context(ControlPlane(flags=["--disable-admission-plugins=ServiceAccount"]))
        resolver = await stack.enter_async_context(upstream())
        sides = []
        for name, commands in (
            ("coredns", [_coredns(directory, plane, resolver, options)]),
            ("svcproxy", _svcproxy(directory, plane, resolver, options)),
        ):
            processes = [
                Process(name, command, directory / f"{name}-{number}.log") for number, command in enumerate(commands)
            ]
            stack.enter_context(_running(processes))
            client = await stack.enter_async_context(Client(SERVER[Family.IPV4], PORTS[name]))
            sides.append(Side(name, processes, client))
        yield Servers(sides[0], sides[1], Objects(plane), resolver)


@contextmanager
def _running(processes: list[Process]) -> Iterator[None]:
    with ExitStack() as stack:
        for process in processes:
            process.start()
            stack.callback(process.kill)
        yield


def _coredns(directory: Path, plane: ControlPlane, resolver: Upstream, options: Options) -> list[str]:
    path = directory / "Corefile"
    path.write_text(
        _COREFILE.format(
            port=PORTS["coredns"],
            zone=ZONE,
            kubeconfig=plane.kubeconfig(),
            pods=options.pods,
            upstream=resolver.address,
            more="endpoint_pod_names" if options.endpoint_pod_names else "",
        )
    )
    return [str(binaries.find("coredns")), "-conf", str(path)]


def _svcproxy(directory: Path, plane: ControlPlane, resolver: Upstream, options: Options) -> list[list[str]]:
    port = PORTS["svcproxy"]
    config = {
        "node_name": "n1",
        "run_dir": str(directory / "run"),
        "state_dir": str(directory / "state"),
        "kube": {"kubeconfig": str(plane.kubeconfig())},
        "dataplane": {"mode": "none"},
        "admin": {"health_listen": None, "metrics_listen": None},
        "dns": {
            "listen": [f"{SERVER[Family.IPV4]}:{port}", f"[{SERVER[Family.IPV6]}]:{port}"],
            "upstreams": [resolver.address],
            "pods": options.pods,
            "endpoint_pod_names": options.endpoint_pod_names,
        },
    }
    path = directory / "svcproxy.json"
    path.write_text(json.dumps(config))
    return [[sys.executable, "-m", "svcproxy", role, "--config", str(path)] for role in ("agent", "dns")]
