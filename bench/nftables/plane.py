# SPDX-License-Identifier: Apache-2.0
"""What the nftables data plane costs from frontends to the kernel's last acknowledgement: no API server, no traffic.

    sudo PYTHONPATH=. .venv/bin/python bench/nftables/plane.py [--sizes 1000x4,10000x4,50000x5] [--rounds 3]

Each size runs in a process and a network namespace of its own. Times are CPU time, all threads and the kernel's work in
system calls included; wall time is in parentheses where it is said.
"""

import argparse
import asyncio
import gc
import ipaddress
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from svcproxy.agent.agent import GC_THRESHOLDS
from svcproxy.dataplane.nftables.plane import Ground, NftablesDataplane
from svcproxy.frontends.buffer import DeltaBuffer
from svcproxy.frontends.keys import Address, Backend, BackendSetKey, Frontend, FrontendKind, Scope, ServicePortName
from svcproxy.frontends.table import BackendSetDelta, FrontendDelta, FrontendTable
from svcproxy.model.meta import Protocol
from tests.netns.namespaces import Namespace

SERVICES_FROM = int(ipaddress.ip_address("10.96.0.1"))
PODS_FROM = int(ipaddress.ip_address("10.128.0.1"))
NEW_PODS_FROM = int(ipaddress.ip_address("10.192.0.1"))
CHANGES = 1000
RATE = 5000
SECONDS = 5.0
RESTARTED = 1000


def table_of(services: int, endpoints: int) -> FrontendTable:
    table = FrontendTable()
    for number in range(services):
        key = Address(str(ipaddress.ip_address(SERVICES_FROM + number)), Protocol.TCP, 80)
        port = ServicePortName("default", f"s{number}", "http", Protocol.TCP)
        frontend = table.frontends[key] = Frontend(key, port, FrontendKind.CLUSTER_IP)
        table.backends[frontend.backend_set(Scope.CLUSTER)] = {
            Backend(str(ipaddress.ip_address(PODS_FROM + number * endpoints + index)), 8080)
            for index in range(endpoints)
        }
    return table


class Changer:
    """Makes changes of one endpoint each, over all Services in turn."""

    def __init__(self, table: FrontendTable) -> None:
        self._held = {key: sorted(backends) for key, backends in table.backends.items()}
        self._keys = list(self._held)
        self._size = len(self._held[self._keys[0]])
        self._step = 0
        self._new = NEW_PODS_FROM

    def key(self) -> BackendSetKey:
        self._step += 7919
        return self._keys[self._step % len(self._keys)]

    def _pod(self) -> Backend:
        self._new += 1
        return Backend(str(ipaddress.ip_address(self._new)), 8080)

    def replaced(self, key: BackendSetKey) -> FrontendDelta:
        pod, gone = self._pod(), self._held[key].pop(0)
        self._held[key].append(pod)
        return FrontendDelta(backends=(BackendSetDelta(key, (pod,), (gone,)),))

    def grown(self, key: BackendSetKey) -> FrontendDelta:
        pod = self._pod()
        self._held[key].append(pod)
        return FrontendDelta(backends=(BackendSetDelta(key, (pod,)),))

    def shrunk(self, key: BackendSetKey) -> FrontendDelta:
        return FrontendDelta(backends=(BackendSetDelta(key, (), (self._held[key].pop(0),)),))

    def turned(self, key: BackendSetKey) -> FrontendDelta:
        """Up and down in turn."""
        return self.grown(key) if len(self._held[key]) <= self._size else self.shrunk(key)


def slab_kib() -> int:
    found = re.search(r"^Slab:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def rss_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def loaded(services: int, endpoints: int, rounds: int) -> None:
    colds, adoptions = list[tuple[float, float]](), list[tuple[float, float]]()
    slab = 0
    for index in range(rounds):
        table = table_of(services, endpoints)
        gc.collect()
        gc.freeze()
        with Namespace() as node, node.entered():
            before = slab_kib()
            for times in (colds, adoptions):
                async with NftablesDataplane(Ground()) as plane:
                    cpu, wall = time.process_time(), time.perf_counter()
                    await plane.resync(table)
                    times.append((time.process_time() - cpu, time.perf_counter() - wall))
                    if times is colds:
                        slab = slab_kib() - before
                    elif index == rounds - 1:
                        print(
                            f"  RSS {rss_mib():.0f} MiB, table of the bench included; kernel slab {slab / 1024:.0f} MiB"
                        )
                        await changed(plane, Changer(table))
    for name, times in (("cold load", colds), ("adoption", adoptions)):
        cpus, walls = [cpu for cpu, _ in times], [wall for _, wall in times]
        print(f"  {name:<12} {statistics.median(cpus):7.2f} s CPU, best {min(cpus):.2f} s ({min(walls):.2f} s)")


async def changed(plane: NftablesDataplane, changer: Changer) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(plane.run(), name="plane")
        await one_by_one(plane, changer)
        await churned(plane, changer)
        await restarted(plane, changer)
        running.cancel()


async def one_by_one(plane: NftablesDataplane, changer: Changer) -> None:
    for name, change in (("replaced", changer.replaced), ("grown", changer.grown), ("shrunk", changer.shrunk)):
        for gap in (0.0, 0.005):
            deltas = [change(changer.key()) for _ in range(CHANGES // (5 if gap else 1))]
            cpu, latencies = time.process_time(), []
            for delta in deltas:
                start = time.perf_counter()
                await plane.apply(delta)
                latencies.append((time.perf_counter() - start) * 1e6)
                await asyncio.sleep(gap)
            await asyncio.sleep(0.01)
            used = (time.process_time() - cpu) / len(deltas) * 1e6
            times = f"p50 {percentile(latencies, 0.5):6.0f}  p99 {percentile(latencies, 0.99):6.0f} µs"
            print(
                f"  one {name:<9} {'5 ms apart' if gap else 'in a row':<11} {used:6.0f} µs CPU   until in force {times}"
            )


async def churned(plane: NftablesDataplane, changer: Changer) -> None:
    """Changes come at a rate; whatever came while the last `apply` ran goes as one."""
    waiting = DeltaBuffer()
    made, batches, sizes, start = 0, 0, list[int](), time.perf_counter()
    latencies, since = list[float](), list[float]()
    cpu, before = time.process_time(), plane.totals.operations
    while (elapsed := time.perf_counter() - start) < SECONDS or waiting:
        due = min(int(elapsed * RATE), int(SECONDS * RATE))
        while made < due:
            waiting.put(changer.turned(changer.key()))
            since.append(start + made / RATE)
            made += 1
        delta = waiting.take()
        if not delta:
            await asyncio.sleep(0.001)
            continue
        sizes.append(len(since))
        await plane.apply(delta)
        latencies += [time.perf_counter() - each for each in since]
        since.clear()
        batches += 1
    elapsed, used = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"  churn        {made / elapsed:6.0f} changes/s for {elapsed:.1f} s: {used / elapsed:.0%} of a core, "
        f"{used / made * 1e6:.0f} µs each, {batches} batches of {statistics.mean(sizes):.1f}, "
        f"{(plane.totals.operations - before) / made:.1f} operations each; in force after "
        f"p50 {percentile(latencies, 0.5) * 1000:.1f} ms, p99 {percentile(latencies, 0.99) * 1000:.1f} ms"
    )


async def restarted(plane: NftablesDataplane, changer: Changer) -> None:
    """Pods are replaced one after the other, each for another Service, as fast as the plane takes it, ten at a time."""
    await asyncio.sleep(0.1)  # what churn left goes
    operations, most, cpu = list[int](), 0.0, time.process_time()
    for _ in range(RESTARTED // 10):
        delta = joined(changer.replaced(changer.key()) for _ in range(10))
        before, start = plane.totals.operations, time.perf_counter()
        await plane.apply(delta)
        operations.append(plane.totals.operations - before)
        most = max(most, time.perf_counter() - start)
    used = (time.process_time() - cpu) / RESTARTED
    print(
        f"  restart      {RESTARTED} pods, ten at a time: {used * 1e6:.0f} µs CPU a pod, "
        f"{max(operations)} operations in the largest batch, {most * 1000:.1f} ms the longest"
    )


def joined(deltas: Iterable[FrontendDelta]) -> FrontendDelta:
    buffer = DeltaBuffer()
    for delta in deltas:
        buffer.put(delta)
    return buffer.take()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000x4,10000x4,50000x5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        gc.set_threshold(*GC_THRESHOLDS)
        services, endpoints = map(int, options.one.split("x"))
        asyncio.run(loaded(services, endpoints, options.rounds))
        return
    for size in options.sizes.split(","):
        print(f"{size.replace('x', ' Services × ')} endpoints, load average {os.getloadavg()[0]:.1f}", flush=True)
        command = [sys.executable, __file__, "--one", size, "--rounds", str(options.rounds)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
