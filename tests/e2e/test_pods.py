# SPDX-License-Identifier: Apache-2.0
"""Pods of a real API server: which of them are followed, and only if they are wanted."""

import asyncio
from typing import Any

from svcproxy.config import KubeConfig
from svcproxy.kube.api_source import ApiSource
from svcproxy.model import Pod, Service
from svcproxy.names.builder import NameBuilder
from svcproxy.names.records import PodRecord
from svcproxy.testing.control_plane import ControlPlane
from tests.kube.world import Recorder, following
from tests.names.test_builder import store_of

TLS_CLOSES = 0.25
"""Seconds that aiohttp's connections over TLS take to be gone after their session (its "Graceful Shutdown")."""
NAMESPACE = "pods"
PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"


def source_of(plane: ControlPlane, *, pods: bool = False, node_pods: bool = False) -> ApiSource:
    kube = KubeConfig(kubeconfig=str(plane.kubeconfig()))
    return ApiSource(kube, "node-1", pods=pods, node_pods=node_pods, environ={})


def create(plane: ControlPlane, name: str, phase: str, *ips: str, node: str = "node-1") -> None:
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": node, "automountServiceAccountToken": False}
    plane.request("POST", PATH, {"metadata": {"name": name}, "spec": spec})
    set_status(plane, name, phase, *ips)


def set_status(plane: ControlPlane, name: str, phase: str, *ips: str) -> None:
    pod = plane.call("GET", f"{PATH}/{name}")
    pod["status"] = {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
    plane.request("PUT", f"{PATH}/{name}/status", pod)


def addresses(sink: Recorder) -> set[str]:
    """The addresses that names are made of."""
    held: list[Any] = [obj for obj in sink.held.values() if isinstance(obj, Pod)]
    return {record.ip for record in NameBuilder(store_of(*held)).records() if isinstance(record, PodRecord)}


async def test_pods_that_run_are_followed_if_wanted(shared_plane: ControlPlane) -> None:
    plane = shared_plane
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
    create(plane, "runs", "Running", "10.244.1.5", "fd00:244::5")
    create(plane, "done", "Succeeded", "10.244.1.6")
    async with following(source_of(plane, pods=True)) as sink:
        await sink.until(lambda: addresses(sink) == {"10.244.1.5", "fd00:244::5"})
        create(plane, "new", "Running", "10.244.1.7")
        await sink.until(lambda: "10.244.1.7" in addresses(sink))
        set_status(plane, "runs", "Failed", "10.244.1.5", "fd00:244::5")
        await sink.until(lambda: addresses(sink) == {"10.244.1.7"})
        plane.delete(f"{PATH}/new?gracePeriodSeconds=0")
        await sink.until(lambda: not addresses(sink))
    create(plane, "here", "Running", "10.244.1.8")
    create(plane, "elsewhere", "Running", "10.244.2.8", node="node-2")
    source = source_of(plane, node_pods=True)
    async with following(source) as sink:
        await sink.until(lambda: Pod in sink.synced_kinds)
        assert addresses(sink) == {"10.244.1.8"}
        assert {status.kind: status.optional for status in source.status()}["Pod"] is True
    source = source_of(plane)
    async with following(source) as sink:
        await sink.until(lambda: Service in sink.synced_kinds)
        assert "Pod" not in {status.kind for status in source.status()}
    await asyncio.sleep(TLS_CLOSES)
