# SPDX-License-Identifier: Apache-2.0
"""The roles as processes, on manifests: what a kill, a successor and a changed configuration do to those they serve."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dnslib
import pytest

from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.process.supervision import WORKER_VARIABLE

TIMEOUT = 30.0
QNAME = "web.shop.svc.cluster.local."

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 127.96.0.20, ports: [{name: http, port: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints: [{addresses: [127.97.0.1]}]
"""

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
status: {phase: Running, podIPs: [{ip: 127.97.0.1}]}
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        signal.sigtimedwait([], 0.02)  # other processes are waited for, so there is nothing to be told by


def free_port() -> int:
    """A port that is free for UDP and TCP, and below those that the kernel gives to clients: it is bound anew later."""
    for port in random.sample(range(20_000, 32_000), 1000):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            contextlib.suppress(OSError),
        ):
            udp.bind(("127.0.0.1", port))
            tcp.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class World:
    """A directory with manifests and a configuration, and the processes that use it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self.run_dir = directory / "run"
        self.config = directory / "config.yaml"
        (directory / "manifests").mkdir()
        (directory / "manifests" / "web.yaml").write_text(MANIFEST)
        self.tree: dict[str, Any] = {
            "node_name": "n1",
            "run_dir": str(self.run_dir),
            "state_dir": str(directory / "state"),
            "shutdown_timeout": 1,
            "kube": {"manifests": str(directory / "manifests")},
            "dataplane": {"mode": "none"},
            "dns": {"listen": [f"127.0.0.1:{self.port}"]},
            "admin": {"health_listen": None, "metrics_listen": None},
        }
        self.write_config()
        self.children: list[subprocess.Popen[bytes]] = []

    def write_config(self, text: str | None = None) -> None:
        following = self.config.with_suffix(".next")
        following.write_text(text if text is not None else json.dumps(self.tree))
        following.rename(self.config)

    def start(self, verb: str, instance: str = "", prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        with (self.directory / f"{verb}{instance}.log").open("ab") as log:
            child = subprocess.Popen(
                [*prefix, sys.executable, "-m", "svcproxy", verb, "--config", str(self.config)],
                env=os.environ | {"SVCPROXY_INSTANCE": instance},
                stdout=log,
                stderr=log,
            )
        self.children.append(child)
        return child

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def ask(self, path: str, role: str = "", instance: str = "") -> Any:
        with contextlib.suppress(ClientError, OSError):
            found = find_instance(self.run_dir / role, instance)
            return json.loads(StatusClient(found.admin_socket).ask(path).body)
        return None

    def ready(self, role: str = "", instance: str = "") -> bool:
        return bool((self.ask("/readyz", role, instance) or {}).get("ready"))

    def resolves(self) -> bool:
        return self.answer(QNAME) == ["127.96.0.20"]

    def answer(self, qname: str, qtype: str = "A") -> list[str] | None:
        """The rdata of the answer; None without one."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.connect(("127.0.0.1", self.port))
            try:
                client.send(dnslib.DNSRecord.question(qname, qtype).pack())
                return [str(record.rdata) for record in dnslib.DNSRecord.parse(client.recv(512)).rr]
            except OSError:
                return None

    def roles(self) -> dict[str, Any]:
        return {role["name"]: role for role in (self.ask("/v1/status") or {}).get("roles", ())}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def test_a_killed_agent_leaves_dns_answering_and_comes_back(world: World) -> None:
    world.start("run")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both roles are ready")
    agent = world.roles()["agent"]["pid"]
    os.kill(agent, signal.SIGKILL)
    assert world.resolves()
    eventually(lambda: world.roles().get("agent", {}).get("restarts") == 1, "the agent is started again")
    eventually(world.ready, "the agent is ready again")
    assert world.resolves()


def test_a_killed_dns_worker_costs_the_agent_nothing(world: World) -> None:
    world.start("run")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both roles are ready")
    before = world.roles()
    os.kill(before["dns-0"]["pid"], signal.SIGKILL)
    eventually(lambda: world.ready("dns-0") and world.resolves(), "DNS answers again")
    after = world.roles()
    assert after["agent"]["pid"] == before["agent"]["pid"]
    assert after["dns-0"]["restarts"] == 1


def test_names_of_every_kind_go_from_objects_to_the_wire(world: World) -> None:
    (world.directory / "manifests" / "pod.yaml").write_text(POD)
    world.tree["dns"] |= {"pods": "verified", "zones": ["one.local", "two.local", "127.0.0.0/8"]}
    world.write_config()
    world.start("run")
    eventually(lambda: world.ready("dns-0"), "the worker is ready")
    for domain in ("one.local.", "two.local."):
        service = f"web.shop.svc.{domain}"
        assert world.answer(service) == ["127.96.0.20"]
        assert world.answer(f"_http._tcp.{service}", "SRV") == [f"0 100 8080 {service}"]
        assert world.answer(f"127-97-0-1.{service}") == ["127.97.0.1"]
        assert world.answer(f"127-97-0-1.shop.pod.{domain}") == ["127.97.0.1"]
        assert world.answer(f"127-97-0-2.shop.pod.{domain}") == []
    assert world.answer("20.0.96.127.in-addr.arpa.", "PTR") == ["web.shop.svc.one.local."]
    assert world.answer("1.0.97.127.in-addr.arpa.", "PTR") == ["127-97-0-1.web.shop.svc.one.local."]


def test_a_killed_supervisor_leaves_nobody(world: World) -> None:
    supervisor = world.start("run")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both roles are ready")
    pids = [role["pid"] for role in world.roles().values()]
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the roles have gone")


async def test_no_query_is_lost_while_one_dns_worker_takes_over_from_another(world: World) -> None:
    world.start("agent")
    old = world.start("dns", "old")
    await asyncio.to_thread(eventually, lambda: world.ready("dns-0", "old"), "the old worker serves")
    stop, asked, answered = asyncio.Event(), 0, 0

    async def client() -> None:
        nonlocal asked, answered
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            udp.connect(("127.0.0.1", world.port))
            while not stop.is_set():
                asked += 1
                await loop.sock_sendall(udp, dnslib.DNSRecord.question(QNAME).pack())
                async with asyncio.timeout(5):
                    answer = await loop.sock_recv(udp, 512)
                answered += len(dnslib.DNSRecord.parse(answer).rr)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(client(), name=f"client-{number}")
        world.start("dns", "new")
        await asyncio.to_thread(eventually, lambda: world.ready("dns-0", "new"), "the new worker serves")
        assert world.ask("/readyz", "dns-0", "old")["waiting"] is True
        old.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(old.wait, TIMEOUT) == 0
        stop.set()
    assert asked == answered > 100


def test_a_new_dns_worker_that_dies_leaves_the_node_to_the_old_one(world: World) -> None:
    world.start("agent")
    world.start("dns", "old")
    eventually(lambda: world.ready("dns-0", "old"), "the old worker serves")
    new = world.start("dns", "new")
    eventually(lambda: world.ready("dns-0", "new"), "the new worker serves")
    new.kill()
    eventually(lambda: world.ready("dns-0", "old") and world.resolves(), "the old worker serves again")


def test_a_bad_configuration_is_named_and_the_good_one_stays(world: World) -> None:
    agent = world.start("agent")
    eventually(world.ready, "the agent is ready")
    world.write_config("node_name: [1]\ndns: {ttl: 99999}\nnonsense: 1\n")
    eventually(lambda: len(world.ask("/v1/status")["configErrors"]) == 3, "each error is in status")
    assert any("config.yaml:2" in error and "dns.ttl" in error for error in world.ask("/v1/status")["configErrors"])
    assert agent.poll() is None
    world.tree["log"] = {"level": "debug"}
    world.write_config()
    eventually(lambda: world.ask("/v1/status")["configErrors"] == [], "the error is gone")
    eventually(lambda: "configuration changed" in world.log("agent"), "a live key takes effect without a restart")
    assert agent.poll() is None


def test_a_key_that_is_not_live_restarts_the_role(world: World) -> None:
    world.start("run")
    eventually(lambda: world.ready() and world.ready("dns-0"), "both roles are ready")
    world.tree["dns"]["ttl"] = 7
    world.write_config()
    eventually(lambda: world.roles().get("dns-0", {}).get("restarts") == 1, "the worker is started again")
    eventually(lambda: world.ready("dns-0") and world.resolves(), "it answers")


def test_an_unusable_configuration_ends_everything_with_2(world: World) -> None:
    world.tree["dns"]["ttl"] = -1
    world.write_config()
    assert world.start("run").wait(TIMEOUT) == 2
    assert "dns.ttl" in world.log("run")


@contextlib.contextmanager
def echo_server(ip: str, port: int) -> Iterator[None]:
    """A back-end that sends back what it gets, in a process of its own."""
    code = (
        "import socketserver as s\n"
        "class H(s.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(100): self.request.sendall(data)\n"
        "class T(s.ThreadingTCPServer): allow_reuse_address = daemon_threads = True\n"
        f"T(('{ip}', {port}), H).serve_forever()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def test_a_connection_outlives_the_take_over_and_the_predecessor_still_ends(world: World) -> None:
    world.tree["dataplane"]["mode"] = "userspace"
    world.write_config()
    old = world.start("agent", "old")
    eventually(lambda: world.ready("", "old"), "the old agent serves")
    with echo_server("127.97.0.1", 9000):

        def exchange(client: socket.socket) -> bool:
            client.sendall(b"hello")
            return client.recv(100) == b"hello"

        def works() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.96.0.20", 8080), 1) as client:
                return exchange(client)
            return False

        eventually(works, "the Service answers")
        with socket.create_connection(("127.96.0.20", 8080), 5) as established:
            assert exchange(established)
            new = world.start("agent", "new")
            eventually(lambda: world.ready("", "new"), "the new agent serves")
            assert world.ask("/readyz", "", "old")["waiting"] is True
            assert exchange(established), "relayed by the old agent"
            assert works(), "accepted by the new agent"
            old.send_signal(signal.SIGTERM)
            assert old.wait(TIMEOUT) == 0
            assert works()
        new.send_signal(signal.SIGTERM)
        assert new.wait(TIMEOUT) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
def test_each_role_runs_as_a_user_of_its_own(world: World) -> None:
    """They share a group; the worker's directory is made for it beforehand."""
    group, agent_user, dns_user = 4242, 4343, 4344
    for path, owner in ((world.run_dir, agent_user), (world.run_dir / "dns-0", dns_user)):
        path.mkdir(mode=0o750)
        os.chown(path, owner, group)
    (world.directory / "state").mkdir()
    os.chown(world.directory / "state", agent_user, group)
    for parent in [world.directory, *world.directory.parents]:
        if parent != Path(tempfile.gettempdir()) and parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o011)  # so that other users get to what is theirs

    def as_user(uid: int) -> list[str]:
        return ["setpriv", f"--reuid={uid}", f"--regid={group}", "--clear-groups"]

    world.start("agent", prefix=as_user(agent_user))
    # One worker without a supervisor: the interpreter that tests run on may be where no other user can start it anew.
    world.start("dns", prefix=["env", f"{WORKER_VARIABLE}=0", *as_user(dns_user)])
    eventually(lambda: world.ready() and world.ready("dns-0") and world.resolves(), "both serve, each as itself")
    assert [each["name"] for each in world.ask("/v1/status")["workers"]] == ["dns-0"]
