# SPDX-License-Identifier: Apache-2.0
"""From configuration, own Node and ServiceCIDRs to what the rules know of node and cluster."""

import ipaddress
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.agent.surroundings import derive
from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings, surrounding_elements
from svcproxy.model import Node, ObjectMeta, ServiceCIDR
from svcproxy.model.node import NodeAddress, NodeMeta, NodeSpec, NodeStatus
from svcproxy.model.service_cidr import ServiceCIDRSpec

NO_POD_CIDRS = "the Node has no podCIDRs"


def own_node(*pod_cidrs: str, addresses: Sequence[str] = ("192.0.2.11", "n1.example")) -> Node:
    listed = tuple(NodeAddress("InternalIP", address) for address in addresses)
    return Node(NodeMeta("n1"), NodeSpec(pod_cidrs or None), NodeStatus(listed))


def service_cidr(*cidrs: str, name: str = "kubernetes") -> ServiceCIDR:
    return ServiceCIDR(ObjectMeta(name), ServiceCIDRSpec(cidrs or None))


BRIDGE = DataplaneConfig(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, pod_bridge_interface="cni0")
PREFIX = DataplaneConfig(
    detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX,
    pod_interface_name_prefix="veth",
    cluster_cidrs=("10.244.0.0/16",),
)


@pytest.mark.parametrize(
    ("config", "node", "expected"),
    [
        pytest.param(
            DataplaneConfig(),
            own_node("fd01:1::/64", "10.244.1.0/24"),
            Surroundings(pod_cidrs=("10.244.1.0/24", "fd01:1::/64")),
            id="NodeCIDR",
        ),
        pytest.param(DataplaneConfig(), own_node(), Surroundings(), id="NodeCIDR before the Node has any"),
        pytest.param(DataplaneConfig(), None, Surroundings(), id="NodeCIDR before the Node is known"),
        pytest.param(
            DataplaneConfig(cluster_cidrs=("10.245.0.0/16", "10.244.0.0/16", "10.244.7.0/24", "fd01::/48")),
            own_node("10.9.0.0/24"),
            Surroundings(pod_cidrs=("10.244.0.0/15", "fd01::/48")),
            id="ClusterCIDR: several of a family, in as few as possible",
        ),
        pytest.param(BRIDGE, own_node("10.244.1.0/24"), Surroundings(pod_interfaces=("cni0",)), id="BridgeInterface"),
        pytest.param(
            PREFIX,
            own_node("10.9.0.0/24"),
            Surroundings(pod_cidrs=("10.244.0.0/16",), pod_interfaces=("veth*",)),
            id="InterfaceNamePrefix, with a CIDR besides",
        ),
        pytest.param(
            DataplaneConfig(masquerade_all=True),
            own_node("10.244.1.0/24"),
            Surroundings(pod_cidrs=("10.244.1.0/24",), masquerade_all=True),
            id="masquerade_all",
        ),
    ],
)
def test_what_tells_pods(config: DataplaneConfig, node: Node | None, expected: Surroundings) -> None:
    derived = derive(config, node, ())
    assert derived.surroundings == expected
    told = [warning[: len(NO_POD_CIDRS)] for warning in derived.warnings]
    assert told == ([NO_POD_CIDRS] if expected == Surroundings() else [])


@pytest.mark.parametrize(
    ("config", "node", "expected"),
    [
        pytest.param(
            DataplaneConfig(),
            own_node("10.244.1.0/24", "fd01:1::/64"),
            ("10.244.1.0/24", "fd01:1::/64"),
            id="NodeCIDR: in the podCIDRs",
        ),
        pytest.param(
            DataplaneConfig(), own_node("fd01:1::/64"), ("fd01:1::/64", "0.0.0.0/0"), id="NodeCIDR of one family alone"
        ),
        pytest.param(DataplaneConfig(), own_node(), (), id="NodeCIDR without any: anywhere"),
        pytest.param(
            DataplaneConfig(cluster_cidrs=("10.244.0.0/16",)),
            own_node("10.244.1.0/24"),
            (),
            id="ClusterCIDR: anywhere, for the CNI may not use the podCIDRs",
        ),
        pytest.param(BRIDGE, own_node("10.244.1.0/24"), (), id="BridgeInterface: the same"),
    ],
)
def test_where_pods_may_reach_themselves(config: DataplaneConfig, node: Node, expected: tuple[str, ...]) -> None:
    assert derive(config, node, ()).hairpin_cidrs == expected


NODE = own_node("10.244.1.0/24")


@pytest.mark.parametrize(
    ("config", "node", "objects", "expected", "warning"),
    [
        pytest.param(
            DataplaneConfig(),
            NODE,
            [service_cidr("10.96.0.0/16", "fd00::/112"), service_cidr("10.97.0.0/16", name="more"), service_cidr()],
            ("10.96.0.0/15", "fd00::/112"),
            "",
            id="of all objects",
        ),
        pytest.param(
            DataplaneConfig(service_cidrs=("10.100.0.0/16",)),
            NODE,
            [service_cidr("10.96.0.0/16")],
            ("10.100.0.0/16",),
            "",
            id="configured: objects do not count",
        ),
        pytest.param(DataplaneConfig(), NODE, [], (), "", id="nobody says: nothing is met with silence"),
        pytest.param(
            DataplaneConfig(cluster_cidrs=("10.0.0.0/8",)),
            None,
            [service_cidr("172.20.0.0/16")],
            (),
            "",
            id="not before the Node is known",
        ),
        pytest.param(
            DataplaneConfig(cluster_cidrs=("10.0.0.0/8",), service_cidrs=("172.20.0.0/16",)),
            None,
            [],
            ("172.20.0.0/16",),
            "",
            id="configured, before the Node is known",
        ),
        pytest.param(
            DataplaneConfig(),
            NODE,
            [service_cidr("10.244.0.0/16"), service_cidr("10.245.0.0/16")],
            ("10.245.0.0/16",),
            "10.244.0.0/16 is not taken for a range of Services: pods or this node have 10.244.1.0/24",
            id="not the pods of this node",
        ),
        pytest.param(
            DataplaneConfig(cluster_cidrs=("10.200.0.0/16", "fd01::/48")),
            NODE,
            [service_cidr("10.0.0.0/8")],
            (),
            "10.0.0.0/8 is not taken for a range of Services: pods or this node have 10.244.1.0/24, 10.200.0.0/16",
            id="not pods of other nodes",
        ),
        pytest.param(
            DataplaneConfig(),
            NODE,
            [service_cidr("0.0.0.0/1"), service_cidr("192.0.0.0/8")],
            (),
            "192.0.0.0/8 is not taken for a range of Services: pods or this node have 192.0.2.11/32",
            id="not this node",
        ),
        pytest.param(
            DataplaneConfig(),
            NODE,
            [service_cidr("10.96.0.0", "fd00::/112")],
            ("fd00::/112",),
            "ServiceCIDR kubernetes: '10.96.0.0' is not a CIDR and is left out",
            id="what is none",
        ),
    ],
)
def test_ranges_of_services(
    config: DataplaneConfig, node: Node | None, objects: list[ServiceCIDR], expected: tuple[str, ...], warning: str
) -> None:
    derived = derive(config, node, objects)
    assert derived.surroundings.service_cidrs == expected
    assert (warning in derived.warnings) is bool(warning)


def test_a_bad_pod_cidr_costs_itself() -> None:
    derived = derive(DataplaneConfig(), own_node("10.244.1.0/24", "x"), ())
    assert derived.surroundings.pod_cidrs == ("10.244.1.0/24",)
    assert derived.warnings == ("podCIDRs of the Node: 'x' is not a CIDR and is left out",)


CIDRS = st.builds(
    lambda ip, length: str(ipaddress.ip_network(f"{ip}/{length}", strict=False)),
    st.ip_addresses(v=4, network="10.0.0.0/12"),
    st.integers(12, 32),
) | st.builds(
    lambda ip, length: str(ipaddress.ip_network(f"{ip}/{length}", strict=False)),
    st.ip_addresses(v=6, network="fd00::/48"),
    st.integers(48, 128),
)


@given(st.lists(CIDRS, max_size=8), st.lists(CIDRS, max_size=8))
def test_sets_never_overlap_and_lose_no_address(pods: list[str], services: list[str]) -> None:
    config = DataplaneConfig(cluster_cidrs=("10.200.0.0/16", *pods))
    surroundings = derive(config, own_node(), [service_cidr(cidr) for cidr in services]).surroundings
    networks: dict[object, list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
    for element in surrounding_elements(surroundings):
        networks.setdefault((element.family, element.set), []).append(ipaddress.ip_network(str(element.key[0])))
    for listed in networks.values():
        assert not any(a.overlaps(b) for index, a in enumerate(listed) for b in listed[:index])
    for pod_cidr in map(ipaddress.ip_network, pods):
        held = [each for each in map(ipaddress.ip_network, surroundings.pod_cidrs) if each.overlaps(pod_cidr)]
        assert len(held) == 1
        assert pod_cidr[0] in held[0]
        assert pod_cidr[-1] in held[0]
