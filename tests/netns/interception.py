# SPDX-License-Identifier: Apache-2.0
"""A node that intercepts cluster DNS, a pod behind a veth, and a CoreDNS behind the same Service."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import dnslib

from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.model.meta import Family
from svcproxy.testing import binaries
from tests.netns.namespaces import Namespace
from tests.netns.routed import HOSTS, Routed

TIMEOUT = 60.0
"""Seconds that anything awaited may take."""
ANSWER = 1.0
"""Seconds that a client waits for one answer where there may be none."""
RESOLVER = 5.0
"""Seconds that resolvers wait, where there has to be one."""
CLUSTER_IP = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd96::a"}
INTERCEPTED = [*CLUSTER_IP.values(), "169.254.20.10"]
QNAME = "who.shop.svc.cluster.local."
OURS, COREDNS = "10.96.9.9", "192.0.2.1"
"""What svcproxy and CoreDNS say the address is."""
MANIFEST = f"""
apiVersion: v1
kind: Service
metadata: {{name: who, namespace: shop}}
spec: {{clusterIP: {OURS}, ports: [{{name: http, port: 80}}]}}
"""
COREFILE = f"""
.:53 {{
    hosts {{
        {COREDNS} {QNAME}
    }}
}}
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        signal.sigtimedwait([], 0.02)  # other processes are waited for


def ask(place: Namespace, server: str, *, tcp: bool = False, port: int = 53, patience: float = ANSWER) -> str | None:
    """The address that a DNS server at `server` has for QNAME, as a client in `place` sees it; None without one."""
    question = dnslib.DNSRecord.question(QNAME)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with place.entered():
        client = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with client:
        client.settimeout(patience)
        try:
            client.connect((server, port))  # from then on nothing of another address is heard
            packed = question.pack()
            client.sendall(struct.pack("!H", len(packed)) + packed if tcp else packed)
            reply = _exactly(client, struct.unpack("!H", _exactly(client, 2))[0]) if tcp else client.recv(4096)
        except OSError:
            return None
    answer = dnslib.DNSRecord.parse(reply)
    assert answer.header.id == question.header.id
    return str(answer.rr[0].rdata) if answer.rr else None


def _exactly(client: socket.socket, octets: int) -> bytes:
    read = b""
    while len(read) < octets:
        got = client.recv(octets - len(read))
        if not got:
            raise ConnectionError("the stream ended")
        read += got
    return read


class Site:
    """The namespaces of `Routed`, and svcproxy's processes on the node."""

    def __init__(self, directory: Path, routed: Routed, **sections: Any) -> None:
        self.directory = directory
        self.routed = routed
        self.node, self.pod = routed.node, routed.client
        for hosts in HOSTS.values():
            self.node.ip("route", "add", "default", "via", hosts[0])  # or processes had no way to ClusterIPs
        self.run_dir = directory / "run"
        self.objects = directory / "objects"
        self.objects.mkdir()
        self.serve_dns_with()
        (self.objects / "who.yaml").write_text(MANIFEST)
        tree: dict[str, Any] = {
            "run_dir": str(self.run_dir),
            "state_dir": str(directory / "state"),
            "shutdown_timeout": 1,
            "kube": {"manifests": str(self.objects)},
            "dataplane": {"mode": "none"},
            "admin": {"health_listen": None, "metrics_listen": None},
        }
        tree |= sections
        tree["dns"] = {"listen": ["127.0.0.1:9053"], "intercept": INTERCEPTED, "resolv_conf": None} | tree.get(
            "dns", {}
        )
        self.config = directory / "config.yaml"
        self.config.write_text(json.dumps(tree))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def serve_dns_with(self, *endpoints: str) -> None:
        """The DNS Service of the cluster, with the intercepted addresses and these endpoints."""
        documents: list[Mapping[str, Any]] = [
            {
                "kind": "Service",
                "apiVersion": "v1",
                "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {
                    "clusterIP": CLUSTER_IP[Family.IPV4],
                    "clusterIPs": list(CLUSTER_IP.values()),
                    "ipFamilies": [family.label for family in CLUSTER_IP],
                    "ports": [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")],
                },
            }
        ]
        for family in Family:
            meta = {"name": f"dns-{family}", "labels": {"kubernetes.io/service-name": "kube-dns"}}
            documents.append(
                {
                    "kind": "EndpointSlice",
                    "apiVersion": "discovery.k8s.io/v1",
                    "metadata": {**meta, "namespace": "kube-system"},
                    "addressType": family.label,
                    "endpoints": [{"addresses": [ip]} for ip in endpoints if (":" in ip) == (family is Family.IPV6)],
                    "ports": [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")],
                }
            )
        (self.objects / ".new").write_text("\n---\n".join(map(json.dumps, documents)))
        (self.objects / ".new").rename(self.objects / "dns.yaml")

    # --- processes

    def start(self, verb: str, instance: str = "", prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """A process on the node, killed at the end."""
        with (self.directory / f"{verb}{instance}.log").open("ab") as log, self.node.entered():
            child = subprocess.Popen(
                [*prefix, sys.executable, "-m", "svcproxy", verb, "--config", str(self.config)],
                env=os.environ | {"SVCPROXY_INSTANCE": instance},
                stdout=log,
                stderr=log,
            )
        self._stack.callback(kill, child)
        return child

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def start_coredns(self) -> None:
        """At the first address of each family behind the node."""
        (self.directory / "Corefile").write_text(COREFILE)
        command = [str(binaries.find("coredns")), "-conf", str(self.directory / "Corefile")]
        with self.routed.backends.entered(), (self.directory / "coredns.log").open("wb") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(kill, child)
        for hosts in HOSTS.values():
            eventually(lambda ip=hosts[0]: ask(self.node, ip) == COREDNS, "CoreDNS answers")  # type: ignore[misc]  # bound now

    def readiness(self, role: str = "dns-0", instance: str = "") -> dict[str, Any]:
        """The body of /readyz; empty while nobody answers."""
        with contextlib.suppress(ClientError, OSError):
            found = find_instance(self.run_dir / role, instance)
            return dict(json.loads(StatusClient(found.admin_socket).ask("/readyz").body))
        return {}

    def metrics(self) -> list[str]:
        found = find_instance(self.run_dir / "dns-0", "")
        return StatusClient(found.admin_socket).ask("/metrics").body.decode().splitlines()

    def children(self, process: subprocess.Popen[bytes], verb: str) -> list[int]:
        """Processes that a supervisor has started and that run this verb."""
        found = []
        for pid in map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
            with contextlib.suppress(OSError):
                if verb in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    found.append(pid)
        return found

    # --- the kernel

    def standing(self) -> set[str]:
        """Intercepted addresses that are on the loopback interface."""
        (loopback,) = json.loads(self.node.run("ip", "-json", "address", "show", "dev", "lo"))
        return {each["local"] for each in loopback["addr_info"]} & set(INTERCEPTED)

    def stands(self) -> bool:
        """Whether everything that is to be intercepted is."""
        return self.standing() == set(INTERCEPTED)

    def tables(self) -> list[str]:
        """The interception's own."""
        return [line for line in self.node.run("nft", "list", "tables").splitlines() if "svcproxy-dns" in line]

    def tracked(self) -> list[str]:
        """Flows that connection tracking knows and that have to do with DNS."""
        listed = [self.node.run("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6")]
        return [line for text in listed for line in text.splitlines() if "port=53 " in line]


def kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


@contextlib.contextmanager
def site(directory: Path, **sections: Any) -> Iterator[Site]:
    with Routed() as routed, Site(directory, routed, **sections) as made:
        yield made
