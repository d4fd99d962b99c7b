# SPDX-License-Identifier: Apache-2.0
"""CPU that the user-space data plane spends: per TCP connection, per GiB, per UDP datagram.

    nice python bench/userspace/relay.py [--loop uvloop|asyncio] [--seconds N]

The data plane runs in a process of its own; clients and backends in this one. Its CPU time (user and system) is read
from /proc between two points, so that start and stop do not count. Everything is on loopback.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import uvloop

from svcproxy.config import DataplaneConfig
from svcproxy.dataplane.userspace import UserspaceDataplane
from svcproxy.frontends.decision import SourceKind
from svcproxy.frontends.keys import Address, Backend, Frontend, FrontendKind, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta
from svcproxy.model.meta import Protocol

VIP, BACKEND, PORT = "127.91.0.1", "127.91.0.2", 18080
CHUNK = 256 << 10
IN_FLIGHT = 32
RUNS = 5


async def relay(affinity: int | None) -> None:
    """The measured process: two frontends, one backend each, until standard input ends."""
    delta = FrontendDelta(
        frontends=tuple(frontend(protocol, affinity) for protocol in (Protocol.TCP, Protocol.UDP)),
        backends=tuple(
            BackendSetDelta(frontend(protocol, affinity).backend_set(Scope.CLUSTER), (Backend(BACKEND, PORT),))
            for protocol in (Protocol.TCP, Protocol.UDP)
        ),
    )
    async with UserspaceDataplane(DataplaneConfig(), source_kind=lambda _: SourceKind.OTHER) as plane:
        print(*(await plane.apply(delta)).values(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def frontend(protocol: Protocol, affinity: int | None) -> Frontend:
    name = ServicePortName("bench", "relay", "", protocol)
    return Frontend(Address(VIP, protocol, PORT), name, FrontendKind.CLUSTER_IP, affinity_timeout=affinity)


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system time."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


@contextlib.contextmanager
def measured_process(loop: str) -> Iterator[int]:
    command = [sys.executable, __file__, "--relay", "--loop", loop]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def serve_connections(server: socket.socket) -> None:
    """One octet in, one out, then the end; or everything until the end."""
    while True:
        connection, _ = server.accept()
        while data := connection.recv(CHUNK):
            if len(data) == 1:
                connection.send(data)
        connection.close()


def serve_datagrams(server: socket.socket) -> None:
    while True:
        data, address = server.recvfrom(65535)
        server.sendto(data, address)


def connections(seconds: float) -> int:
    """Connect, one octet each way, close; one after the other."""
    done, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.create_connection((VIP, PORT)) as client:
            client.send(b"x")
            client.recv(1)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        done += 1
    return done


def octets(seconds: float) -> int:
    """One connection, one direction."""
    chunk, done, until = bytes(CHUNK), 0, time.monotonic() + seconds
    with socket.create_connection((VIP, PORT)) as client:
        while time.monotonic() < until:
            client.sendall(chunk)
            done += CHUNK
        client.shutdown(socket.SHUT_WR)
        client.recv(1)
    return done


def datagrams(seconds: float) -> int:
    """One client with a window; counts relayed datagrams, both directions."""
    done, until = 0, time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((VIP, PORT))
        client.settimeout(1.0)
        for _ in range(IN_FLIGHT):
            client.send(b"x" * 100)
        while time.monotonic() < until:
            client.recv(2048)
            client.send(b"x" * 100)
            done += 2
    return done


def report(label: str, unit: str, scale: float, pid: int, work: Callable[[float], int], seconds: float) -> None:
    figures, users, rates = [], [], []
    for _ in range(RUNS):
        (user, system), began = cpu_seconds(pid), time.monotonic()
        amount = work(seconds)
        elapsed = time.monotonic() - began
        user_after, system_after = cpu_seconds(pid)
        users.append((user_after - user) / amount * scale)
        figures.append((user_after - user + system_after - system) / amount * scale)
        rates.append(amount / elapsed)
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    user_share = statistics.median(users)
    print(
        f"{label:27} {middle:8.2f} {unit:13} ({low:.2f} to {high:.2f}; {user_share:.2f} of it outside the kernel)"
        f" {statistics.median(rates):14,.0f}/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop of the data plane")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each of the five runs")
    parser.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.relay:
        runner = uvloop.run if options.loop == "uvloop" else asyncio.run
        runner(relay(None))
        return
    with (
        socket.create_server((BACKEND, PORT), backlog=4096) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram_server,
        measured_process(options.loop) as pid,
    ):
        datagram_server.bind((BACKEND, PORT))
        threading.Thread(target=serve_connections, args=(server,), name="tcp backend", daemon=True).start()
        threading.Thread(target=serve_datagrams, args=(datagram_server,), name="udp backend", daemon=True).start()
        print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs, {options.loop}")
        report("TCP connection", "us/connection", 1e6, pid, connections, options.seconds)
        report("TCP octets, one connection", "s/GiB", float(1 << 30), pid, octets, options.seconds)
        report("UDP datagram, one session", "us/datagram", 1e6, pid, datagrams, options.seconds)


if __name__ == "__main__":
    main()
