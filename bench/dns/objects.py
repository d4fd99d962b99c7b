# SPDX-License-Identifier: Apache-2.0
"""What the cluster of the benchmark holds: in the API server, as manifests, as a zone file, and as questions about it.

Services `s0`, `s1`, … are in the namespace default, each with one EndpointSlice; every hundredth is headless. A control
plane that holds them is made once, and kept as etcd's data.
"""

import asyncio
import os
import random
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.agent.bench import SERVICES, SLICES, WRITERS, slice_of
from svcproxy.testing import binaries
from svcproxy.testing.control_plane import ControlPlane
from svcproxy_dns.wire import RRType, encode_name

FORMAT = 1
"""Of the objects: another one makes those that are kept useless."""
DOMAIN = "default.svc.cluster.local"
HEADLESS_EVERY = 100
ELSEWHERE = "example.test"
"""The domain that the upstream knows: every name in it has an address."""
_SOA = "3600 SOA ns hostmaster 1 7200 1800 86400 30"


@dataclass(frozen=True)
class Cluster:
    """So many Services with so many endpoints each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services} Services × {self.endpoints} endpoints"

    def headless(self) -> range:
        """The numbers of the headless ones."""
        return range(HEADLESS_EVERY - 1, self.services, HEADLESS_EVERY)

    def service(self, number: int) -> dict[str, Any]:
        address = "None" if number in self.headless() else cluster_ip(number)
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"s{number}"},
            "spec": {"clusterIP": address, "ports": [{"name": "http", "port": 80}]},
        }

    def endpoint_slice(self, number: int, shift: int = 0) -> dict[str, Any]:
        """`shift` is added to the address of the first endpoint."""
        return slice_of(number, self.endpoints, shift)

    def addresses(self, number: int) -> list[str]:
        return [each["addresses"][0] for each in self.endpoint_slice(number)["endpoints"]]

    def zone(self) -> Iterator[str]:
        """Lines of `cluster.local`: addresses and SRV of Services and of their endpoints."""
        yield f"$ORIGIN cluster.local.\n$TTL 30\n@ {_SOA}\n@ NS ns.dns\nns.dns A 10.96.0.10\n$ORIGIN {DOMAIN}.\n"
        for number in range(self.services):
            name, ips = f"s{number}", self.addresses(number)
            endpoints = [f"{ip.replace('.', '-')}.{name}" for ip in ips]
            for endpoint, ip in zip(endpoints, ips, strict=True):
                yield f"{endpoint} A {ip}\n{endpoint} SRV 0 100 8080 {endpoint}\n"
            if number in self.headless():
                yield "".join(f"{name} A {ip}\n" for ip in ips)
                targets = [f"8080 {endpoint}" for endpoint in endpoints]
            else:
                yield f"{name} A {cluster_ip(number)}\n"
                targets = [f"80 {name}"]
            for target in targets:
                yield f"_http._tcp.{name} SRV 0 100 {target}\n{name} SRV 0 100 {target}\n"

    def hot_questions(self, names: int = 8) -> str:
        """A and AAAA of a few ClusterIP Services, in dnsperf's text format."""
        step = self.services // names
        return "".join(f"s{number * step}.{DOMAIN} {kind}\n" for number in range(names) for kind in ("A", "AAAA"))

    def uniform_questions(self, rng: random.Random) -> bytes:
        """What a pod in `default` asks that resolves each Service as `NAME.default`, and as many names elsewhere.

        Each question once, in random order, a DNS message behind two octets of length, with a cookie of its own.
        Of a hundred questions 10 are A and 10 AAAA of Services, 80 are search paths that do not exist.
        """
        names: list[str] = []
        for number in range(self.services):
            names += f"s{number}.default.{DOMAIN}", f"s{number}.{DOMAIN}"
            elsewhere = f"{rng.randbytes(6).hex()}.{ELSEWHERE}"
            names += (f"{elsewhere}.{suffix}" for suffix in (DOMAIN, "svc.cluster.local", "cluster.local"))
        questions = [(name, kind) for name in names for kind in (RRType.A, RRType.AAAA)]
        rng.shuffle(questions)
        return b"".join(_framed(name, kind, rng.randbytes(8)) for name, kind in questions)

    def denied_share(self) -> float:
        """The share of those questions whose names do not exist."""
        return 0.8


def cluster_ip(number: int) -> str:
    return f"10.{97 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def elsewhere_zone() -> str:
    return f"$ORIGIN {ELSEWHERE}.\n@ {_SOA}\n@ 3600 NS ns\nns 3600 A 192.0.2.1\n* 3600 A 192.0.2.2\n"


def elsewhere_questions(rng: random.Random, count: int) -> str:
    """Names that nobody has asked for before."""
    return "".join(f"{rng.randbytes(8).hex()}.{ELSEWHERE} A\n" for _ in range(count))


def _framed(name: str, kind: RRType, cookie: bytes) -> bytes:
    """A query with RD, EDNS 1232 and a client's cookie (RFC 7873 §4.1)."""
    opt = b"\0\0\x29\x04\xd0\0\0\0\0" + struct.pack(">3H", 4 + len(cookie), 10, len(cookie)) + cookie
    message = struct.pack(">6H", 0, 0x0100, 1, 0, 0, 1) + encode_name(name) + struct.pack(">2H", kind, 1) + opt
    return struct.pack(">H", len(message)) + message


# --- the control plane


def control_plane(cluster: Cluster) -> ControlPlane:
    """One that holds the cluster when it is entered; made and kept first if need be, which takes a minute or two."""
    name = f"{cluster.services}x{cluster.endpoints}-{FORMAT}-etcd-{binaries.ETCD_VERSION}"
    kept = binaries.cache_folder() / "bench-dns" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with ControlPlane() as plane:
            asyncio.run(_populate(plane, cluster))
            plane.compact()
            plane.save_etcd(kept)
        print(f"{cluster} made in {time.monotonic() - started:.0f} s, kept in {kept}", file=sys.stderr)
    return ControlPlane(etcd_data=kept)


def session(plane: ControlPlane) -> aiohttp.ClientSession:
    """For requests as admin."""
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    headers = {"Authorization": f"Bearer {plane.admin_token}"}
    return aiohttp.ClientSession(plane.url, headers=headers, connector=aiohttp.TCPConnector(ssl=context))


async def _populate(plane: ControlPlane, cluster: Cluster) -> None:
    numbers = iter(range(cluster.services))

    async def write() -> None:
        for number in numbers:
            objects = (SERVICES, cluster.service(number)), (SLICES, cluster.endpoint_slice(number))
            for path, body in objects:
                async with client.post(path, json=body) as answer:
                    assert answer.status == 201, await answer.text()

    async with session(plane) as client, asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(write(), name=f"writer-{number}")


def keep_to(core: int) -> None:
    """This process and its children from now on run on that core alone."""
    os.sched_setaffinity(0, {core})
