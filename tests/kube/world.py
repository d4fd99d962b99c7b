# SPDX-License-Identifier: Apache-2.0
"""What the tests of `kube` share: a sink that remembers, objects, and a source that runs while a test looks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from svcproxy.config import KubeConfig
from svcproxy.kube.api_source import ApiSource
from svcproxy.kube.source import InvalidObject
from svcproxy.model import Changes, NamespacedName, Service
from svcproxy.testing.fake_api import FakeApiServer, FakeCluster, JsonObject

PATIENCE = 10.0
"""Seconds after which something that should happen is said not to."""


class Recorder:
    """An `ObjectSink` that keeps what is in force and everything that was ever removed."""

    def __init__(self, known: Iterable[Any] = ()) -> None:
        self.held: dict[tuple[type, NamespacedName], Any] = {(type(obj), obj.key): obj for obj in known}
        self.applied: list[Any] = []
        self.removed: list[NamespacedName] = []
        self.reports: list[InvalidObject] = []
        self.synced_kinds: list[type] = []
        self._something = asyncio.Event()

    def changed(self, changes: Changes[Any], read_at: float) -> None:
        assert read_at <= time.monotonic()
        for obj in changes.applied:
            assert self.held.get((changes.kind, obj.key)) != obj, "an equal object is no change"
            self.held[changes.kind, obj.key] = obj
        for key in changes.removed:
            del self.held[changes.kind, key]
        self.applied += changes.applied
        self.removed += changes.removed
        self._something.set()

    def synced(self, kind: type) -> None:
        self.synced_kinds.append(kind)
        self._something.set()

    def invalid(self, report: InvalidObject) -> None:
        self.reports.append(report)
        self._something.set()

    def names(self, kind: type = Service) -> set[str]:
        """Names of the objects in force."""
        return {key.name for held_kind, key in self.held if held_kind is kind}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; looked at whenever something arrives, and now and then."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._something.clear()
                try:
                    async with asyncio.timeout(0.02):
                        await self._something.wait()
                except TimeoutError:
                    continue

    async def until_synced(self, count: int = 5) -> None:
        """Return when that many kinds have been listed."""
        await self.until(lambda: len(self.synced_kinds) >= count)


@asynccontextmanager
async def following(source: ApiSource, sink: Recorder | None = None) -> AsyncIterator[Recorder]:
    """Run `source` for the time of the block."""
    recorder = sink or Recorder()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(source.run(recorder), name="source")
        try:
            yield recorder
        finally:
            task.cancel()


def api_source(
    *servers: FakeApiServer, node_name: str = "n1", config: KubeConfig | None = None, **rest: Any
) -> ApiSource:
    """A source without credentials for `servers`, with short times."""
    chosen = config or KubeConfig(page_size=2, backoff_max=0.02, silence_timeout=5.0)
    urls = tuple(server.url for server in servers)
    return ApiSource(msgspec.structs.replace(chosen, api_servers=urls), node_name, environ={}, **rest)


def service_fields(ip: str, port: int = 80) -> JsonObject:
    """Everything of a Service but its metadata."""
    return {"spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": port}]}}


def slice_fields(service: str, *addresses: str, port: int = 8080, name: str = "http") -> JsonObject:
    """Everything of a slice but the name; `metadata` holds the label."""
    return {
        "metadata": {"labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": name, "port": port, "protocol": "TCP"}],
    }


def populate(cluster: FakeCluster, services: int = 5) -> None:
    """Services `s0`, `s1` … in `default`, a slice, the namespace, two nodes and the range of the Services."""
    cluster.put("Namespace", "default")
    cluster.put("Node", "n1")
    cluster.put("Node", "n2")
    cluster.put("ServiceCIDR", "kubernetes", spec={"cidrs": ["10.96.0.0/16"]})
    cluster.put("EndpointSlice", "s0-a", "default", **slice_fields("s0", "10.1.0.1"))
    for number in range(services):
        cluster.put("Service", f"s{number}", "default", **service_fields(f"10.96.0.{number + 1}"))


def decoded(cluster: FakeCluster, kind: type = Service) -> dict[NamespacedName, Any]:
    """What the cluster holds of a kind, as model objects."""
    objects = cluster.state(cluster.version)[kind.__name__].values()
    found: list[Any] = [msgspec.convert(obj, kind, strict=True) for obj in objects]
    return {obj.key: obj for obj in found}
