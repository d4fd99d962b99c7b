# SPDX-License-Identifier: Apache-2.0
"""Changes of endpoints through the API: one after the other, to see when each is answered, and many a second."""

import asyncio
import http.client
import ipaddress
import itertools
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import dnslib

from bench.agent.bench import SLICES
from bench.dns.objects import DOMAIN, Cluster, session
from bench.dns.peers import HOST
from svcproxy.testing.control_plane import ControlPlane

SEEN_WITHIN = 10.0
"""Seconds after which a change that no answer shows ends the benchmark."""
ASKED_EVERY = 1e-4
"""Seconds between an answer that is the old one and the next question."""
WRITES_AT_ONCE = 8
_SHIFTS = itertools.count(200 << 16, 1 << 10)
"""What makes the address of a changed endpoint one that was not there before."""


@dataclass(frozen=True)
class Change:
    """An endpoint that a headless Service has in place of another."""

    name: str
    address: bytes
    acknowledged: float
    """When the API server said that it is written, as `time.monotonic` tells it."""

    def seen_by(self, port: int) -> float:
        """Seconds from the acknowledgement to the first answer with the address, asking until it comes."""
        query = dnslib.DNSRecord.question(self.name).pack()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SEEN_WITHIN)
            sock.connect((HOST, port))
            while True:
                sock.send(query)
                answer, now = sock.recv(4096), time.monotonic()
                if self.address in answer:
                    return now - self.acknowledged
                assert now < self.acknowledged + SEEN_WITHIN, f"{self.name} is still the old one"
                time.sleep(ASKED_EVERY)


class Writer:
    """Changes one Service at a time, over a connection that it keeps."""

    def __init__(self, plane: ControlPlane, cluster: Cluster) -> None:
        self._cluster = cluster
        context = ssl.create_default_context(cafile=str(plane.ca_file))
        self._connection = http.client.HTTPSConnection(urlsplit(plane.url).netloc, context=context)
        self._headers = {"Authorization": f"Bearer {plane.admin_token}", "Content-Type": "application/json"}
        self._numbers = itertools.cycle(cluster.headless())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def change_headless(self) -> Change:
        """Replace the first endpoint of the next headless Service."""
        number = next(self._numbers)
        body = self._cluster.endpoint_slice(number, next(_SHIFTS))
        address = ipaddress.ip_address(body["endpoints"][0]["addresses"][0]).packed
        self._connection.request("PUT", f"{SLICES}/s{number}-1", json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        acknowledged = time.monotonic()
        text = answer.read()
        assert answer.status == http.client.OK, text
        return Change(f"s{number}.{DOMAIN}", address, acknowledged)


class Churn:
    """Endpoints that are being replaced."""

    def __init__(self) -> None:
        self.count = 0
        self._begun = self._counted = 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._begun, self._counted = time.monotonic(), self.count

    def rate(self) -> float:
        """Endpoints replaced a second since then."""
        return (self.count - self._counted) / (time.monotonic() - self._begun)


@contextmanager
def churning(plane: ControlPlane, cluster: Cluster, rate: int) -> Iterator[Churn]:
    """Replace that many endpoints a second, all those of one slice with each write, meanwhile."""
    churn, ended = Churn(), threading.Event()
    failures = list[BaseException]()

    def write() -> None:
        try:
            asyncio.run(_churn(plane, cluster, rate, churn, ended))
        except BaseException as exc:  # noqa: BLE001  # raised again by who waits for the thread
            failures.append(exc)

    thread = threading.Thread(target=write, name="churn")
    thread.start()
    try:
        yield churn
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


async def _churn(plane: ControlPlane, cluster: Cluster, rate: int, churn: Churn, ended: threading.Event) -> None:
    begun, started = time.monotonic(), itertools.count()
    async with session(plane) as client:

        async def write() -> None:
            while not ended.is_set():
                due = begun + next(started) * cluster.endpoints / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                number = random.randrange(cluster.services)
                body = _replaced(cluster, number, next(_SHIFTS))
                async with client.put(f"{SLICES}/s{number}-1", json=body) as answer:
                    assert answer.status == http.client.OK, await answer.text()
                churn.count += cluster.endpoints

        async with asyncio.TaskGroup() as group:
            for number in range(WRITES_AT_ONCE):
                group.create_task(write(), name=f"churn-{number}")


def _replaced(cluster: Cluster, number: int, shift: int) -> dict[str, Any]:
    """The slice with other addresses."""
    body = cluster.endpoint_slice(number)
    for index, endpoint in enumerate(body["endpoints"]):
        endpoint["addresses"] = [str(ipaddress.ip_address((10 << 24) + shift + number * 10 + index))]
    return body
