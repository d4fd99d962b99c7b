# SPDX-License-Identifier: Apache-2.0
"""What decoding costs: a LIST of slices to model structs, watch events, and the memory that stays.

nice python bench/kube/decode.py [--slices 10000] [--endpoints 10]
"""

import argparse
import gc
import json
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterator

import msgspec

from svcproxy.kube.decoding import KindDecoder
from svcproxy.model import EndpointSlice

PAGE_SIZE = 500
NODES = 500


def slice_object(number: int, endpoints: int) -> dict[str, object]:
    """A slice as an API server writes it, managed fields and all."""
    name = f"service-{number:05}-x7k2p"
    return {
        "metadata": {
            "name": name,
            "generateName": f"service-{number:05}-",
            "namespace": f"team-{number % 40}",
            "uid": f"3f1e0c52-9d1f-4c1e-8a55-{number:012}",
            "resourceVersion": str(100_000 + number),
            "generation": 3,
            "creationTimestamp": f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z",
            "labels": {
                "app": f"service-{number:05}",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": f"service-{number:05}",
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": f"service-{number:05}"}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {
                f"f:{field}": {} for field in ("addressType", "endpoints", "metadata", "ports")}}],
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [f"10.{number >> 8 & 255}.{number & 255}.{index + 1}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{(number * 7 + index) % NODES:04}.example.internal",
                "zone": f"zone-{index % 3}",
                "targetRef": {
                    "kind": "Pod",
                    "name": f"service-{number:05}-6d4cf56db6-{index:05}",
                    "namespace": f"team-{number % 40}",
                    "uid": f"7a1e0c52-9d1f-4c1e-8a55-{number * 100 + index:012}",
                },
            }
            for index in range(endpoints)
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }  # fmt: skip


def pages(slices: int, endpoints: int) -> Iterator[bytes]:
    """The pages of a LIST."""
    for start in range(0, slices, PAGE_SIZE):
        items = [slice_object(number, endpoints) for number in range(start, min(start + PAGE_SIZE, slices))]
        more = "next" if start + PAGE_SIZE < slices else ""
        meta = {"resourceVersion": "200000", "continue": more}
        yield json.dumps(
            {"kind": "EndpointSliceList", "metadata": meta, "items": items}, separators=(",", ":")
        ).encode()


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    bodies = list(pages(arguments.slices, arguments.endpoints))
    total = arguments.slices * arguments.endpoints
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, {platform.release()}")
    print(f"{arguments.slices} slices x {arguments.endpoints} endpoints, {sum(map(len, bodies)) / 1e6:.1f} MB of JSON")

    def take() -> list[EndpointSlice]:
        decoder = KindDecoder(EndpointSlice)
        return [obj for body in bodies for piece in decoder.pieces(body) for obj in piece.objects]

    times = sorted(cpu(take) for _ in range(arguments.runs))
    print(f"list, interned:    {times[0]:.3f} s CPU at best, {times[-1]:.3f} at worst")
    raw = msgspec.json.Decoder(list[EndpointSlice])
    plain = [msgspec.json.encode(msgspec.json.decode(body)["items"]) for body in bodies]
    times = sorted(cpu(lambda: [raw.decode(body) for body in plain]) for _ in range(arguments.runs))
    print(f"list, decode only: {times[0]:.3f} s CPU at best, {times[-1]:.3f} at worst")
    plain.clear()

    lines = [
        json.dumps({"type": "MODIFIED", "object": slice_object(number, arguments.endpoints)}).encode()
        for number in range(2000)
    ]
    decoder = KindDecoder(EndpointSlice)
    seconds = min(cpu(lambda: [decoder.event(line) for line in lines]) for _ in range(arguments.runs))
    print(f"watch events:      {len(lines) / seconds:,.0f} per CPU second, {seconds / len(lines) * 1e6:.1f} us each")

    gc.collect()
    tracemalloc.start()
    kept = take()
    gc.collect()
    octets = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"kept:              {octets / total:.0f} octets per endpoint ({octets / 1e6:.1f} MB, {len(kept)} slices)")


if __name__ == "__main__":
    main()
