# SPDX-License-Identifier: Apache-2.0
"""What a name outside the zone costs the DNS worker, and what it costs those who ask for names of the zone meanwhile.

Three processes on the loopback: an upstream, a worker on uvloop, and this one as the client. Prints tables; figures in
README.md.

Usage: python bench/dns/forwarding.py [--queries 5000] [--runs 3]
"""

import argparse
import asyncio
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dnslib
import uvloop

from svcproxy.config import DnsConfig, DnsForwardConfig
from svcproxy.names.records import NamespaceRecord, ServiceRecord
from svcproxy_dns.listeners import bind_listeners
from svcproxy_dns.worker import DnsWorker

ZONE_NAME = "web.shop.svc.cluster.local"
WINDOW = 32
"""Queries that the client has in flight."""
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\1\0\0\4\x0a\0\0\1"


def serve_upstream() -> None:
    """Answer every name, or with `silent` in it none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        print(sock.getsockname()[1], flush=True)
        while True:
            query, client = sock.recvfrom(4096)
            end = query.index(b"\0", 12) + 5
            if b"silent" not in query:
                sock.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end] + ANSWER, client)


async def serve_worker(upstream: str) -> None:
    """A worker; every line on its standard input is answered with its CPU time."""
    forward = DnsForwardConfig(per_client_max=1000)
    worker = DnsWorker(DnsConfig(upstreams=(upstream,), forward=forward))
    worker.sink.begin_snapshot()
    worker.sink.change([NamespaceRecord("shop"), ServiceRecord("shop", "web", ("10.96.0.1",))], ())
    for _ in worker.sink.sweep(100):
        pass
    await worker.start(bind_listeners(["127.0.0.1:0"]))
    worker.use_upstreams([upstream])
    print(worker.sockets()[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        if not sys.stdin.readline():
            ended.set()
        else:
            print(time.process_time(), flush=True)

    loop.add_reader(sys.stdin, tell)
    await ended.wait()
    worker.close()


@contextmanager
def child(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def cpu(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def query(name: str) -> bytes:
    return bytes(dnslib.DNSRecord.question(name).pack())


def ask_many(port: int, queries: Callable[[int], bytes], count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sent = 0
        for received in range(count):
            while sent < count and sent - received < WINDOW:
                sock.send(queries(sent))
                sent += 1
            sock.recv(4096)


def zone_latencies(port: int, count: int) -> list[float]:
    found = []
    asked = query(ZONE_NAME)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        for _ in range(count):
            start = time.perf_counter()
            sock.send(asked)
            sock.recv(4096)
            found.append(1e6 * (time.perf_counter() - start))
            time.sleep(0.001)
    return found


def measure(count: int) -> None:
    with child("upstream") as (_, upstream), child("worker", f"127.0.0.1:{upstream}") as (worker, port):
        run = random.randrange(1 << 30)
        misses = [query(f"h{number}.{run}.example.com") for number in range(count)]
        hit, zone = misses[0], query(ZONE_NAME)
        for what, queries in (
            ("miss", lambda number: misses[number]),
            ("hit", lambda _: hit),
            ("zone", lambda _: zone),
        ):
            before = cpu(worker)
            ask_many(port, queries, count)
            print(f"{what:>6}  {1e6 * (cpu(worker) - before) / count:6.0f} µs of CPU time per query")
        print_latencies("nothing else", zone_latencies(port, 1000))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            flood.connect(("127.0.0.1", port))
            for number in range(1000):
                flood.send(query(f"s{number}.silent.example.com"))
                if not number % 50:
                    time.sleep(0.01)
            print_latencies("1,000 questions unanswered", zone_latencies(port, 1000))


def print_latencies(what: str, found: list[float]) -> None:
    cuts = statistics.quantiles(found, n=100)
    print(f"  zone beside {what}: p50 {cuts[49]:.0f} µs, p99 {cuts[98]:.0f} µs, longest {max(found):.0f} µs")


def main() -> None:
    match sys.argv[1:]:
        case ["upstream"]:
            serve_upstream()
        case ["worker", upstream]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve_worker(upstream))
        case _:
            parser = argparse.ArgumentParser(description=__doc__)
            parser.add_argument("--queries", type=int, default=5000)
            parser.add_argument("--runs", type=int, default=3)
            options = parser.parse_args()
            print(f"{platform.release()}, CPython {platform.python_version()}")
            for _ in range(options.runs):
                measure(options.queries)


if __name__ == "__main__":
    main()
