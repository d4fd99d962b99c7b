# SPDX-License-Identifier: Apache-2.0
"""ServiceCIDR objects of a real API server, and what it says of kinds that it has not."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcproxy.agent.surroundings import derive
from svcproxy.config import DataplaneConfig, KubeConfig
from svcproxy.kube.api_source import ApiSource
from svcproxy.kube.client import ApiClient
from svcproxy.kube.credentials import Authenticator, loader_for
from svcproxy.kube.resources import NotServed
from svcproxy.model import Node, ServiceCIDR
from svcproxy.testing.control_plane import SERVICE_CIDRS, ControlPlane
from tests.kube.world import Recorder, following

RANGES = "/apis/networking.k8s.io/v1/servicecidrs"
NODES = "/api/v1/nodes"
NODE = {"metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}


def taken(sink: Recorder) -> Callable[[], tuple[str, ...]]:
    """The ranges whose addresses are met with silence if no Service has them."""

    def ranges() -> tuple[str, ...]:
        held: list[Any] = list(sink.held.values())
        nodes = [obj for obj in held if isinstance(obj, Node)]
        objects = [obj for obj in held if isinstance(obj, ServiceCIDR)]
        return derive(DataplaneConfig(), nodes[0] if nodes else None, objects).surroundings.service_cidrs

    return ranges


async def test_ranges_of_services_are_followed(shared_plane: ControlPlane) -> None:
    plane = shared_plane
    own = tuple(SERVICE_CIDRS.split(","))
    plane.request("POST", NODES, NODE)
    source = ApiSource(KubeConfig(kubeconfig=str(plane.kubeconfig())), "node-1", environ={})
    async with following(source) as sink:
        ranges = taken(sink)
        await sink.until(lambda: ranges() == own)
        plane.request("POST", RANGES, {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}})
        await sink.until(lambda: sorted(ranges()) == sorted(("10.200.0.0/24", *own)))
        plane.delete(f"{RANGES}/more")
        await sink.until(lambda: ranges() == own)
    plane.delete(f"{NODES}/node-1")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/apis/networking.k8s.io/v1/servicelabels", id="a kind that the group has not"),
        pytest.param("/apis/networking.k8s.io/v9/servicecidrs", id="a version that the group has not"),
        pytest.param("/apis/nothing.k8s.io/v1/servicecidrs", id="a group that there is not"),
    ],
)
async def test_what_a_server_says_of_what_it_does_not_serve(shared_plane: ControlPlane, path: str) -> None:
    """No server that runs is without ServiceCIDR since Kubernetes 1.33; older ones say the same of it."""
    config = KubeConfig(kubeconfig=str(shared_plane.kubeconfig()))
    authenticator = Authenticator(loader_for(config, {}, Path("/nonexistent")), time.monotonic)
    client = ApiClient(authenticator, silence_timeout=10.0, body_limit=4096)
    try:
        with pytest.raises(NotServed):
            await client.page(shared_plane.url, path, {"limit": "1"})
    finally:
        await client.close()
