# SPDX-License-Identifier: Apache-2.0
"""What tells pods from others, and which addresses are Services', for the rules of the kernel."""

import msgspec
import pytest

from svcproxy.agent.surroundings import surroundings
from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings
from svcproxy.model import Node

NODE = msgspec.json.decode(
    '{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.244.1.0/24","fd44:0::/64","nonsense"]}}', type=Node
)
CLUSTER = ("10.244.0.0/17", "10.244.128.0/17")


@pytest.mark.parametrize(
    ("config", "node", "expected"),
    [
        pytest.param(DataplaneConfig(), None, Surroundings(), id="the Node is not known yet"),
        pytest.param(DataplaneConfig(), NODE, Surroundings(("10.244.1.0/24", "fd44::/64")), id="the Node's CIDRs"),
        pytest.param(
            DataplaneConfig(cluster_cidrs=CLUSTER), NODE, Surroundings(("10.244.0.0/16",)), id="the cluster's CIDRs"
        ),
        pytest.param(
            DataplaneConfig(
                detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, pod_bridge_interface="cni0", cluster_cidrs=CLUSTER
            ),
            NODE,
            Surroundings(("10.244.0.0/16",), ("cni0",)),
            id="a bridge, and CIDRs besides",
        ),
        pytest.param(
            DataplaneConfig(detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, pod_interface_name_prefix="veth"),
            NODE,
            Surroundings(pod_interfaces=("veth*",)),
            id="a prefix",
        ),
        pytest.param(
            DataplaneConfig(masquerade_all=True, service_cidrs=("fd96::/112", "10.96.0.0/16", "10.96.1.0/24")),
            None,
            Surroundings(service_cidrs=("10.96.0.0/16", "fd96::/112"), masquerade_all=True),
            id="Service CIDRs that overlap",
        ),
    ],
)
def test_surroundings(config: DataplaneConfig, node: Node | None, expected: Surroundings) -> None:
    assert surroundings(config, node) == expected


def test_the_clusters_service_cidrs_count_where_none_are_configured() -> None:
    assert surroundings(DataplaneConfig(), None, ["10.96.0.0/12"]).service_cidrs == ("10.96.0.0/12",)
    configured = DataplaneConfig(service_cidrs=("10.0.0.0/16",))
    assert surroundings(configured, None, ["10.96.0.0/12"]).service_cidrs == ("10.0.0.0/16",)
