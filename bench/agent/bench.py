# SPDX-License-Identifier: Apache-2.0
"""The agent next to kube-proxy on one real API server: cold list, one change at a time, memory.

    sudo .venv/bin/python bench/agent/bench.py [--services 10000] [--endpoints 10] [--changes 200] [--no-peer]

Everything runs in a network namespace of its own, so that kube-proxy (mode nftables, needs `nft`) may write its rules.
Costs are CPU time of the process, user and system, read from /proc; latencies are the agent's own, from the octets of
the watch event to its frontends, its data plane (`none`) and the acknowledgement of one DNS worker.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from svcproxy.client.connection import ClientError, StatusClient, find_instance
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane

NODE = "bench"
WRITERS = 24
TIMEOUT = 900.0
TICKS = os.sysconf("SC_CLK_TCK")
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
KUBE_PROXY_METRICS = "http://127.0.0.1:10249/metrics"


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, with the children that it has waited for (kube-proxy's `nft`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def rss(pid: int) -> float:
    """MB of resident memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def slice_of(number: int, endpoints: int, shift: int = 0) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"s{number}-1", "labels": {"kubernetes.io/service-name": f"s{number}"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address(number * endpoints + index + (shift if index == 0 else 0))],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{(number + index) % 100}",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": f"s{number}-pod-{index}"},
            }
            for index in range(endpoints)
        ],
    }


async def populate(plane: ControlPlane, services: int, endpoints: int) -> None:
    """Create everything, many writes at a time."""
    numbers = iter(range(services))
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    headers = {"Authorization": f"Bearer {plane.admin_token}"}

    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def write() -> None:
            for number in numbers:
                spec = {"clusterIP": f"10.97.{number >> 8}.{number & 255}", "ports": [{"name": "http", "port": 80}]}
                service = {"metadata": {"name": f"s{number}"}, "spec": spec}
                for path, body in ((SERVICES, service), (SLICES, slice_of(number, endpoints))):
                    async with session.post(plane.url + path, json=body) as answer:
                        assert answer.status == 201, await answer.text()

        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(write(), name=f"writer-{number}")


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=output, stderr=output)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def svcproxy(directory: Path, plane: ControlPlane, verb: str) -> list[str]:
    config = directory / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "node_name": NODE,
                "run_dir": str(directory / "run"),
                "state_dir": str(directory / "state"),
                "kube": {"kubeconfig": str(plane.kubeconfig())},
                "dataplane": {"mode": "none"},
                "dns": {"listen": ["127.0.0.1:9053"]},
                "admin": {"health_listen": None, "metrics_listen": None},
            }
        )
    )
    return [sys.executable, "-m", "svcproxy", verb, "--config", str(config)]


def status(directory: Path) -> dict[str, Any]:
    with suppress(ClientError, OSError):
        answer = StatusClient(find_instance(directory / "run").admin_socket).get_json("/v1/status")
        assert isinstance(answer, dict)
        return answer
    return {}


def wait(condition: Any, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert child.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)


def kube_proxy_synced() -> bool:
    with suppress(OSError), urllib.request.urlopen(KUBE_PROXY_METRICS, timeout=5) as answer:
        text = answer.read().decode()
        found = re.search(r'last_timestamp_seconds{ip_family="IPv4"} (\S+)', text)
        return found is not None and float(found[1]) > 0
    return False


def kube_proxy(plane: ControlPlane) -> list[str]:
    flags = ["--proxy-mode=nftables", "--cluster-cidr=10.0.0.0/8", f"--hostname-override={NODE}", "--oom-score-adj=0"]
    conntrack = ["--conntrack-max-per-core=0", "--conntrack-min=0"]
    timeouts = ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]
    return [str(binaries.find("kube-proxy")), f"--kubeconfig={plane.kubeconfig()}", *flags, *conntrack, *timeouts]


def agent_cold(directory: Path, plane: ControlPlane) -> None:
    shutil.rmtree(directory / "state", ignore_errors=True)
    with process(*svcproxy(directory, plane, "agent"), log=directory / "agent.log") as child:
        started = time.monotonic()
        wait(lambda: status(directory).get("readiness", {}).get("ready"), child)
        print(
            f"  svcproxy     {cpu(child.pid):7.2f} s CPU  {time.monotonic() - started:7.2f} s  {rss(child.pid):6.0f} MB"
        )


def kube_proxy_cold(directory: Path, plane: ControlPlane) -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with process(*kube_proxy(plane), log=directory / "kube-proxy.log") as child:
        started = time.monotonic()
        wait(kube_proxy_synced, child)
        print(
            f"  kube-proxy   {cpu(child.pid):7.2f} s CPU  {time.monotonic() - started:7.2f} s  {rss(child.pid):6.0f} MB"
        )


def changes(plane: ControlPlane, services: int, endpoints: int, count: int) -> None:
    for index in range(count):
        number = index * 7919 % services
        plane.request(
            "PUT", f"{SLICES}/s{number}-1", json.dumps(slice_of(number, endpoints, (200 + index) << 16)).encode()
        )
        time.sleep(0.02)


def one_by_one(directory: Path, plane: ControlPlane, options: argparse.Namespace) -> None:
    """Both followers see the same changes at the same time."""
    with process(*svcproxy(directory, plane, "agent"), log=directory / "agent.log") as agent:
        wait(lambda: status(directory).get("readiness", {}).get("ready"), agent)
        command = ("env", "SVCPROXY_WORKER=0", *svcproxy(directory, plane, "dns"))  # without its supervisor
        with process(*command, log=directory / "dns.log") as worker:
            wait(lambda: any(each["revision"] for each in status(directory).get("workers", ())), worker)
            peers = [("svcproxy agent", agent), ("svcproxy dns", worker)]
            if options.peer:
                with process(*kube_proxy(plane), log=directory / "kube-proxy.log") as peer:
                    wait(kube_proxy_synced, peer)
                    measure(directory, plane, options, [*peers, ("kube-proxy", peer)])
            else:
                measure(directory, plane, options, peers)


def measure(directory: Path, plane: ControlPlane, options: argparse.Namespace, peers: list[tuple[str, Any]]) -> None:
    time.sleep(3.0)
    before = {name: cpu(child.pid) for name, child in peers}
    changes(plane, options.services, options.endpoints, options.changes)
    time.sleep(3.0)
    for name, child in peers:
        used = (cpu(child.pid) - before[name]) / options.changes * 1000
        print(f"  {name:<15} {used:8.2f} ms CPU per change   {rss(child.pid):6.0f} MB")
    for each in status(directory)["latencies"]:
        p50, p99 = each["p50"] * 1000, each["p99"] * 1000
        print(f"  event to {each['stage']:<12} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   ({each['count']} changes)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    options = parser.parse_args()
    if "SVCPROXY_BENCH" not in os.environ:
        inner = 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "sh", "-c", inner, "sh", sys.executable, *sys.argv]
        os.execvpe("unshare", command, os.environ | {"SVCPROXY_BENCH": "1"})
    with ControlPlane() as plane, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
        addresses = {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}
        plane.request(
            "PATCH",
            f"/api/v1/nodes/{NODE}/status",
            addresses,
            content_type="application/merge-patch+json",
        )
        started = time.monotonic()
        asyncio.run(populate(plane, options.services, options.endpoints))
        seconds = time.monotonic() - started
        print(f"{options.services} Services, a slice of {options.endpoints} endpoints each, made in {seconds:.0f} s")
        print("cold list")
        for _ in range(options.rounds):
            agent_cold(directory, plane)
            if options.peer:
                kube_proxy_cold(directory, plane)
        print(f"{options.changes} changes of one endpoint, one after the other")
        one_by_one(directory, plane, options)


if __name__ == "__main__":
    main()
