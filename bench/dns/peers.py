# SPDX-License-Identifier: Apache-2.0
"""The DNS servers of the comparison, as processes: `svcproxy dns` beside an agent, CoreDNS, Knot DNS.

Each is one process on one core, answers on a port of the loopback, counts what it answers (Prometheus, mod-stats), logs
no queries, and is ready when it knows everything. They die with the benchmark, however it ends.
"""

import http.client
import json
import os
import random
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import dnslib

from bench.dns.objects import DOMAIN, ELSEWHERE, Cluster, cluster_ip, elsewhere_zone
from svcproxy.api import Readiness, Status
from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane, Process

HOST = "127.0.0.1"
READY_TIMEOUT = 180.0
"""Seconds that a server may take until it knows everything."""
SERVER_PRIORITY = 10
"""Of what goes before others (SCHED_RR)."""
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """One server. A context manager: it runs inside, and all its files are in `directory`."""

    name: str
    environment: tuple[str, ...] = ()

    def __init__(self, directory: Path, core: int) -> None:
        self.directory = directory
        self.core = core
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self.process = self._process(type(self).__name__.lower(), *self.command())

    def command(self) -> list[str]:
        """The command line; what it reads is written."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.process.start()
        self.wait(self.is_ready, self.process)
        for task in _tasks(self.pid):  # Knot chooses cores for its threads
            os.sched_setaffinity(task, {self.core})
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    @property
    def pid(self) -> int:
        assert self.process.popen is not None
        return self.process.popen.pid

    def cpu(self) -> float:
        """Seconds of CPU used, user and system, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / TICKS

    def urge(self) -> None:
        """Have it go before whatever else the machine does: latencies are then of its own making."""
        urge(self.pid)

    def _process(self, name: str, *command: str) -> Process:
        pinned = ["taskset", "--cpu-list", str(self.core), "env", *self.environment, *command]
        return Process(name, pinned, self.directory / f"{name}.log")

    def wait(self, condition: Callable[[], bool], process: Process) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while not condition():
            assert process.popen is not None
            assert process.popen.poll() is None, f"{process.name} ended: {process.tail()}"
            assert time.monotonic() < deadline, f"{process.name} is not ready: {process.tail()}"
            time.sleep(0.05)


class Svcproxy(Server):
    """One worker. The agent that feeds it runs on the other core, with a data plane that does nothing."""

    name = "svcproxy"
    environment = ("SVCPROXY_WORKER=0",)
    """The process that is started is the worker, without its supervisor."""

    def __init__(self, directory: Path, core: int, source: ControlPlane | Cluster, upstream: int | None = None) -> None:
        """`source`: a control plane, or a cluster whose names come from a feed without an agent. `upstream`: a port."""
        self._source = source
        self._upstream = upstream
        self._run_dir = directory / "run"
        super().__init__(directory, core)
        if isinstance(source, Cluster):
            feeder = [str(Path(__file__).with_name("feeder.py")), str(self._run_dir)]
            arguments = [*feeder, str(source.services), str(source.endpoints)]
        else:
            arguments = ["-m", "svcproxy", "agent", "--config", str(directory / "config.yaml")]
        self.agent = Process("agent", [sys.executable, *arguments], directory / "agent.log")

    def command(self) -> list[str]:
        """See `Server`."""
        plane = self._source if isinstance(self._source, ControlPlane) else None
        config = {
            "node_name": "bench",
            "run_dir": str(self._run_dir),
            "state_dir": str(self.directory / "state"),
            "kube": {"kubeconfig": str(plane.kubeconfig()) if plane else None, "backoff_max": 1.0},
            "dataplane": {"mode": "none"},
            "dns": {
                "listen": [f"{HOST}:{self.port}"],
                "upstreams": [f"{HOST}:{self._upstream}"] if self._upstream else [],
                "resolv_conf": None,
                "forward": {"per_client_max": 1000},  # one client asks everything here
            },
            "admin": {"health_listen": None, "metrics_listen": f"{HOST}:{free_port()}"},
        }
        path = self.directory / "config.yaml"
        path.write_text(json.dumps(config))
        return [sys.executable, "-m", "svcproxy", "dns", "--config", str(path)]

    def is_ready(self) -> bool:
        """Whether the worker has everything that the agent has, and that everything there is."""
        if not self._worker_is_current():
            return False
        if isinstance(self._source, Cluster):
            return True
        status = self.status()
        return status is not None and bool(status.workers) and not any(worker.lag for worker in status.workers)

    def status(self) -> Status | None:
        """What the agent says, None while there is none."""
        with suppress(ClientError, OSError):
            return StatusClient(find_instance(self._run_dir).admin_socket).get("/v1/status", Status)
        return None

    def _worker_is_current(self) -> bool:
        """Whether the worker serves a complete set that is not out of date."""
        with suppress(ClientError, OSError):
            readiness = StatusClient(find_instance(self._run_dir / "dns-0").admin_socket).get("/readyz", Readiness)
            return readiness.ready and not readiness.stale
        return False

    def __enter__(self) -> Self:
        self.agent.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.agent.kill()

    def restart_worker(self) -> None:
        """A new worker, which has answered nothing yet."""
        self.process.kill()
        super().__enter__()

    def relists(self) -> float:
        """Complete lists that the agent has taken after its first."""
        text = StatusClient(find_instance(self._run_dir).admin_socket).get_text("/metrics")
        return sum(float(found) for found in re.findall(r"^svcproxy_relists_total{.*} (\S+)", text, re.MULTILINE))


class CoreDns(Server):
    """CoreDNS with the Corefile of kubeadm, on one processor."""

    name = "CoreDNS"
    environment = ("GOMAXPROCS=1",)

    def __init__(self, directory: Path, core: int, plane: ControlPlane, upstream: int) -> None:
        self._plane = plane
        self._upstream = upstream
        self._ready_port, self._metrics_port = free_port(), free_port()
        super().__init__(directory, core)

    def command(self) -> list[str]:
        """See `Server`."""
        corefile = self.directory / "Corefile"
        corefile.write_text(
            f""".:{self.port} {{
    bind {HOST}
    errors
    health {HOST}:{free_port()} {{
        lameduck 5s
    }}
    ready {HOST}:{self._ready_port}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {self._plane.kubeconfig()} test
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus {HOST}:{self._metrics_port}
    forward . {HOST}:{self._upstream} {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success cluster.local
        disable denial cluster.local
    }}
    loop
    reload
    loadbalance
}}
"""
        )
        return [str(binaries.find("coredns")), "-conf", str(corefile)]

    def is_ready(self) -> bool:
        """Whether it says so: its caches are complete."""
        connection = http.client.HTTPConnection(HOST, self._ready_port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        return False


class Knot(Server):
    """Knot DNS with zone files and one worker of each kind."""

    name = "Knot"

    def __init__(self, directory: Path, core: int, cluster: Cluster | None) -> None:
        """`cluster`: the one whose zone it has; else it has the domain elsewhere, and is the others' upstream."""
        self._cluster = cluster
        super().__init__(directory, core)

    def command(self) -> list[str]:
        """See `Server`."""
        directory, cluster = self.directory, self._cluster
        domain = "cluster.local" if cluster else ELSEWHERE
        with (directory / "zone").open("w") as zone:
            zone.writelines(cluster.zone() if cluster else elsewhere_zone())
        config = directory / "knot.conf"
        config.write_text(
            f"""server:
    rundir: {directory}
    listen: {HOST}@{self.port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: {directory}
template:
  - id: default
    storage: {directory}
    global-module: mod-stats
    zonefile-sync: -1
    journal-content: none
zone:
  - domain: {domain}
    file: zone
"""
        )
        return ["knotd", "--config", str(config)]

    def is_ready(self) -> bool:
        """Whether it answers for the zone."""
        cluster = self._cluster
        return bool(ask(self.port, f"s0.{DOMAIN}") == {cluster_ip(0)} if cluster else ask(self.port, f"a.{ELSEWHERE}"))


def ask(port: int, name: str) -> set[str]:
    """The addresses that a server answers; empty if it does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.settimeout(1.0)
        sock.connect((HOST, port))
        sock.send(dnslib.DNSRecord.question(name).pack())
        return {str(record.rdata) for record in dnslib.DNSRecord.parse(sock.recv(4096)).rr}
    return set()


def urge(pid: int) -> None:
    """Have a process, and the threads and children that it will have, go before others."""
    for task in _tasks(pid):
        os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(SERVER_PRIORITY))


def _tasks(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def free_port() -> int:
    """A port that is free for UDP and TCP, and that nobody gets who asks for any: it may be bound much later."""
    lowest_given_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(lowest_given_out // 2, lowest_given_out)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            suppress(OSError),
        ):
            udp.bind((HOST, port))
            tcp.bind((HOST, port))
            return port
    raise OSError("no free port")


def resident(pid: int) -> tuple[float, float]:
    """MiB resident, and the same with pages shared with other processes counted in part (Pss)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {key: int(value) for key, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.MULTILINE)}
    return found["Rss"] / 1024, found["Pss"] / 1024
