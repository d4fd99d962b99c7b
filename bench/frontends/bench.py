# SPDX-License-Identifier: Apache-2.0
"""What the frontends of a node cost: a full build, one change, and memory. Prints a table; figures in README.md.

Usage: python bench/frontends/bench.py [--services 1000,10000,50000] [--endpoints 10] [--rounds 200]
"""

import argparse
import gc
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from svcproxy.frontends.builder import FrontendBuilder
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions
from svcproxy.model import Changes, EndpointSlice, NamespacedName, Service, Store, Touched

NODE = NodeView("node-7", "zone-1", frozenset({"127.0.0.1", "192.0.2.7"}), ("192.0.2.7",))
NODES = 100


def service(i: int) -> Service:
    ip = f"10.{96 + (i >> 16)}.{i >> 8 & 255}.{i & 255}"
    return msgspec.convert(
        {
            "metadata": {"name": f"svc-{i}", "namespace": f"ns-{i % 50}", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "clusterIP": ip,
                "clusterIPs": [ip],
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80}],
            },
        },
        Service,
    )


def slice_json(i: int, endpoints: int, not_ready: int | None = None) -> bytes:
    """One slice of a Service as the API sends it; endpoint number `not_ready` is not."""
    return msgspec.json.encode(
        {
            "metadata": {
                "name": f"svc-{i}-abcde",
                "namespace": f"ns-{i % 50}",
                "labels": {"kubernetes.io/service-name": f"svc-{i}"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [
                        f"10.{(i * endpoints + n) >> 16 & 255}.{(i * endpoints + n) >> 8 & 255}.{n + i & 255}"
                    ],
                    "conditions": {"ready": n != not_ready, "serving": n != not_ready, "terminating": False},
                    "nodeName": f"node-{(i + n) % NODES}",
                }
                for n in range(endpoints)
            ],
        }
    )


DECODER = msgspec.json.Decoder(EndpointSlice)


def filled_store(services: int, endpoints: int) -> tuple[Store, Touched]:
    store = Store()
    touched = store.apply(Changes.of(Service, map(service, range(services))))
    slices = (DECODER.decode(slice_json(i, endpoints)) for i in range(services))
    touched.slices += store.apply(Changes.of(EndpointSlice, slices)).slices
    return store, touched


def build(store: Store, touched: Touched) -> tuple[FrontendBuilder, float]:
    """A builder that has taken everything in, and the CPU seconds that took."""
    builder = FrontendBuilder(store, NODE, FrontendOptions())
    start = time.process_time()
    builder.update(touched)
    return builder, time.process_time() - start


def per_event(rounds: int, change: Callable[[int], Touched], builder: FrontendBuilder) -> Sequence[float]:
    """Microseconds of each update; what the store costs is not counted."""
    times = []
    for n in range(rounds):
        touched = change(n)
        start = time.perf_counter()
        builder.update(touched)
        times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)


def octets(services: int, endpoints: int) -> int:
    """What a built builder holds beyond its store."""
    store, touched = filled_store(services, endpoints)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    builder, _ = build(store, touched)
    del touched
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert builder.table.frontends
    return held


def report(services: int, endpoints: int, rounds: int) -> str:
    store, touched = filled_store(services, endpoints)
    gc.freeze()
    builder, seconds = min((build(store, touched) for _ in range(3)), key=lambda pair: pair[1])

    def slice_event(n: int) -> Touched:
        i = n * 7919 % services
        piece = DECODER.decode(slice_json(i, endpoints, n % endpoints))
        return store.apply(Changes.of(EndpointSlice, [piece]))

    def service_event(n: int) -> Touched:
        """Services go and come back, in turn."""
        i = n // 2 * 7919 % services
        if n % 2:
            return store.apply(Changes.of(Service, [service(i)]))
        return store.apply(Changes.of(Service, removed=[NamespacedName(f"ns-{i % 50}", f"svc-{i}")]))

    slices = per_event(rounds, slice_event, builder)
    whole = per_event(rounds, service_event, builder)
    p99 = slices[int(len(slices) * 0.99)]
    return (
        f"{services:>9} {endpoints:>9} {seconds:>9.3f} {statistics.median(slices):>10.1f} {p99:>10.1f}"
        f" {statistics.median(whole):>11.1f}"
    )


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{cpu}; kernel {platform.release()}; Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", default="1000,10000,50000")
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    print(machine())
    print(f"{'services':>9} {'endpoints':>9} {'build s':>9} {'slice µs':>10} {'p99 µs':>10} {'service µs':>11}")
    for services in map(int, args.services.split(",")):
        print(report(services, args.endpoints, args.rounds))
    services = 10_000
    held = octets(services, args.endpoints)
    print(f"memory at {services} × {args.endpoints}: {held / services / args.endpoints:.0f} octets per endpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
