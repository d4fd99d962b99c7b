# SPDX-License-Identifier: Apache-2.0
"""What the feed costs: loop stalls of a worker that takes a snapshot, and the way of one delta to its acknowledgement.

Two processes on a real Unix socket, uvloop in both; the worker's sink is the DNS zone. Prints tables; figures in
README.md.

Usage: python bench/feed/bench.py [--records 1000,10000,100000] [--deltas 2000]
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from svcproxy.feed.client import FeedClient
from svcproxy.feed.codec import NAMES
from svcproxy.feed.frames import SourceState
from svcproxy.feed.publisher import Acknowledged, Publisher, SubscriptionState
from svcproxy.feed.server import FeedServer
from svcproxy.feed.subscriber import FeedState, Subscriber
from svcproxy.model.meta import Protocol
from svcproxy.names.records import EndpointRecord, NamedPort, NamespaceRecord, Record, ServiceRecord
from svcproxy.process.sockets import listen_unix
from svcproxy_dns.contents import Schema
from svcproxy_dns.zone import Zone

ENDPOINTS = 10
PORTS = (NamedPort("http", Protocol.TCP, 80),)
GC_MODES = ("default", "freeze", "off")


def records_of(endpoints: int) -> dict[Record, None]:
    found: dict[Record, None] = {NamespaceRecord(f"ns-{number}"): None for number in range(50)}
    for number in range(endpoints // ENDPOINTS):
        namespace, name = f"ns-{number % 50}", f"svc-{number}"
        found[ServiceRecord(namespace, name, (f"10.96.{number >> 8 & 255}.{number & 255}",), PORTS)] = None
        for index in range(ENDPOINTS):
            found[endpoint(namespace, name, number * ENDPOINTS + index)] = None
    return found


def endpoint(namespace: str, name: str, number: int) -> Record:
    ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return EndpointRecord(namespace, name, ip, "", f"{name}-{number:x}", PORTS)


class Turns:
    """Lengths of the loop's turns, and of the collector's runs within them, in seconds."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.collections: list[float] = []
        self._began = 0.0

    def collector(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collections.append(time.perf_counter() - self._began)

    async def watch(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0)
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.thread_time() - cpu)

    def report(self) -> dict[str, float]:
        """Milliseconds; the turns that do nothing are left out of the percentiles."""
        busy = sorted(turn for turn in self.wall if turn > 0.0001)
        return {
            "turns": len(busy),
            "p50": statistics.median(busy) * 1e3,
            "p99": busy[len(busy) * 99 // 100] * 1e3,
            "max": busy[-1] * 1e3,
            "cpu_max": max(self.cpu) * 1e3,
            "gc_max": max(self.collections, default=0.0) * 1e3,
        }


def resident() -> float:
    """MiB; `ru_maxrss` would count what the parent had at the fork."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def work(path: Path, gc_mode: str) -> None:
    """The worker: takes the snapshot, reports, follows until killed."""
    turns, complete = Turns(), asyncio.Event()

    def changed(state: FeedState) -> None:
        if state.complete:
            complete.set()

    zone = Zone(Schema(), ttl=30, rng=random.Random(1))
    client = FeedClient(lambda: path, Subscriber(NAMES, zone, "dns-0", os.getpid()), changed)
    if gc_mode == "freeze":
        gc.collect()
        gc.freeze()
    elif gc_mode == "off":
        gc.disable()
    gc.callbacks.append(turns.collector)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(turns.watch(), name="turns")
        began, cpu = time.perf_counter(), time.process_time()
        tasks.create_task(client.run(), name="feed")
        await complete.wait()
        watching.cancel()
        report = turns.report() | {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        before = time.perf_counter()
        gc.collect()
        report["full_gc"] = (time.perf_counter() - before) * 1e3
        gc.enable()
        gc.freeze()
        report["rss"] = resident()
        print(json.dumps(report), flush=True)


@contextmanager
def worker(path: Path, gc_mode: str) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [sys.executable, __file__, "--worker", str(path), "--gc", gc_mode],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


class Bench:
    def __init__(self, directory: Path, endpoints: int) -> None:
        self.records = records_of(endpoints)
        self.path = directory / f"feed-{endpoints}"
        self.acked: list[float] = []
        self.publisher = Publisher(NAMES, f"epoch-{endpoints}", self.records.keys, self._acknowledged)
        self.publisher.source_changed(SourceState(synced=True))

    def _acknowledged(self, acknowledged: Acknowledged) -> None:
        self.acked += [latency for _, latency in acknowledged.latencies]

    async def serving(self, act: Callable[[], Any]) -> None:
        with listen_unix(self.path) as listener:
            async with asyncio.TaskGroup() as tasks:
                server = FeedServer(self.publisher, lambda peer: peer.trusted)
                running = tasks.create_task(server.run(listener), name="feed server")
                try:
                    await act()
                finally:
                    running.cancel()

    async def snapshot(self, gc_mode: str) -> dict[str, float]:
        found: dict[str, float] = {}

        async def act() -> None:
            with worker(self.path, gc_mode) as child:
                assert child.stdout is not None
                found.update(json.loads(await asyncio.to_thread(child.stdout.readline)))

        await self.serving(act)
        return found

    async def deltas(self, count: int) -> list[float]:
        async def act() -> None:
            with worker(self.path, "freeze") as child:
                assert child.stdout is not None
                await asyncio.to_thread(child.stdout.readline)
                while [entry.state for entry in self.publisher.subscribers()] != [SubscriptionState.LIVE]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                self.acked.clear()
                for number in range(count):
                    self._one(number)
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.1)

        await self.serving(act)
        return sorted(self.acked)

    def _one(self, number: int) -> None:
        """One endpoint replaces another."""
        began = time.monotonic()
        new = endpoint("ns-0", "svc-0", (1 << 20) + number)
        old = endpoint("ns-0", "svc-0", (1 << 20) + number - 1)
        self.records[new] = None
        gone = self.records.pop(old, 0) is None
        self.publisher.publish([new], [old] if gone else [], began)


async def measure(sizes: list[int], deltas: int) -> None:
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as directory:
        print("\nWorker's loop while it takes a snapshot: busy turns in ms")
        print(f"{'records':>8} {'gc':>8} {'p50':>6} {'p99':>6} {'max':>6} {'cpu max':>8} {'gc max':>7}", end=" ")
        print(f"{'full gc':>8} {'wall s':>7} {'cpu s':>6} {'RSS MB':>7}")
        for size in sizes:
            for mode in GC_MODES:
                bench = Bench(Path(directory), size)
                found = await bench.snapshot(mode)
                print(f"{len(bench.records):8} {mode:>8} {found['p50']:6.2f} {found['p99']:6.2f}", end=" ")
                print(f"{found['max']:6.2f} {found['cpu_max']:8.2f} {found['gc_max']:7.2f}", end=" ")
                print(f"{found['full_gc']:8.2f} {found['wall']:7.2f} {found['cpu']:6.2f} {found['rss']:7.1f}")
        print("\nOne endpoint replaced: publish to acknowledgement in ms")
        print(f"{'records':>8} {'p50':>6} {'p99':>6} {'max':>6} {'acks':>6}")
        for size in sizes:
            bench = Bench(Path(directory), size)
            acked = await bench.deltas(deltas)
            quantiles = [acked[len(acked) // 2], acked[len(acked) * 99 // 100], acked[-1]]
            print(f"{len(bench.records):8} " + " ".join(f"{each * 1e3:6.2f}" for each in quantiles), f"{len(acked):6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", default="1000,10000,100000", help="endpoints, comma separated")
    parser.add_argument("--deltas", type=int, default=2000)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gc", choices=GC_MODES, default="default", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        uvloop.run(work(options.worker, options.gc))
    else:
        uvloop.run(measure([int(size) for size in options.records.split(",")], options.deltas))


if __name__ == "__main__":
    main()
