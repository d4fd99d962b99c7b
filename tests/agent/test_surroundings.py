# SPDX-License-Identifier: Apache-2.0
"""From configuration, own Node and ServiceCIDRs to what the rules know of node and cluster."""

import ipaddress
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from svcproxy.agent.surroundings import LEFT_TO_OTHERS_MAX, SurroundingsBuilder, derive
from svcproxy.config import DataplaneConfig, DetectLocalMode
from svcproxy.dataplane.nftables.layout import Surroundings, surrounding_elements
from svcproxy.model import Changes, NamespacedName, Node, ObjectMeta, Service, ServiceCIDR, Store
from svcproxy.model.node import NodeAddress, NodeMeta, NodeSpec, NodeStatus
from svcproxy.model.service import ServiceLabels, ServiceMeta, ServiceSpec
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
    ("config", "expected"),
    [
        pytest.param(DataplaneConfig(), ("10.9.0.0/24",), id="NodeCIDR"),
        pytest.param(DataplaneConfig(cluster_cidrs=("10.0.0.0/8",)), ("10.0.0.0/8",), id="ClusterCIDR"),
        pytest.param(BRIDGE, ("10.9.0.0/24",), id="BridgeInterface: the podCIDRs are the best guess"),
        pytest.param(PREFIX, ("10.244.0.0/16",), id="InterfaceNamePrefix, with a CIDR besides"),
    ],
)
def test_what_addresses_alone_tell(config: DataplaneConfig, expected: tuple[str, ...]) -> None:
    assert derive(config, own_node("10.9.0.0/24"), ()).pod_cidrs == expected


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


@pytest.mark.parametrize(
    ("cidr", "left", "expected"),
    [
        pytest.param("10.96.0.0/30", ["10.96.0.1"], ("10.96.0.0/32", "10.96.0.2/31"), id="within"),
        pytest.param(
            "10.96.0.0/30", ["10.96.0.0", "10.96.0.3", "fd00::1"], ("10.96.0.1/32", "10.96.0.2/32"), id="ends"
        ),
        pytest.param("10.96.0.0/31", ["10.96.0.1", "10.96.0.0"], (), id="all of it"),
        pytest.param("fd00::/126", ["fd00::2", "10.96.0.1"], ("fd00::/127", "fd00::3/128"), id="IPv6"),
        pytest.param("10.96.0.0/30", ["10.97.0.1"], ("10.96.0.0/30",), id="elsewhere"),
    ],
)
def test_case_27_addresses_that_another_proxy_serves_are_let_pass(
    cidr: str, left: list[str], expected: tuple[str, ...]
) -> None:
    derived = derive(DataplaneConfig(), NODE, [service_cidr(cidr)], left)
    assert derived.surroundings.service_cidrs == expected
    assert derived.warnings == ()


def test_too_many_of_them_are_said_and_nothing_is_met_with_silence() -> None:
    left = [f"10.96.{n >> 8}.{n & 255}" for n in range(LEFT_TO_OTHERS_MAX + 1)]
    assert derive(DataplaneConfig(), NODE, [service_cidr("10.96.0.0/16")], left[1:]).surroundings.service_cidrs
    derived = derive(DataplaneConfig(), NODE, [service_cidr("10.96.0.0/16")], left)
    assert derived.surroundings.service_cidrs == ()
    assert "257 ClusterIPs are left to another proxy" in derived.warnings[0]


# Step by step


def service(ip: str | None, *, proxy: str | None = None, name: str = "s") -> Service:
    labels = ServiceLabels(proxy_name=proxy) if proxy is not None else None
    return Service(ServiceMeta(name, "default", labels=labels), ServiceSpec(cluster_ip=ip))


KEY = NamespacedName("default", "s")
OTHERS = Changes(Service, (service("10.96.0.1", proxy="x"),))


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        pytest.param([Changes(Service, (service("10.96.0.1"),))], [False], id="a Service of ours"),
        pytest.param([OTHERS], [True], id="one of another proxy"),
        pytest.param([OTHERS, Changes(Service, removed=(KEY,))], [True, True], id="which goes"),
        pytest.param([OTHERS, Changes(Service, (service("10.96.0.1"),))], [True, True], id="which becomes ours"),
        pytest.param(
            [OTHERS, Changes(Service, (service("10.96.0.1", proxy="y"),))], [True, False], id="which changes hands"
        ),
        pytest.param([Changes(Service, (service("None", proxy="x"),))], [False], id="a headless one"),
        pytest.param([Changes(Node, (own_node("10.244.2.0/24"),))], [True], id="other podCIDRs"),
        pytest.param([Changes(Node, (own_node("10.244.1.0/24", addresses=()),))], [False], id="other addresses"),
        pytest.param([Changes(ServiceCIDR, (service_cidr("10.97.0.0/16", name="more"),))], [True], id="another range"),
        pytest.param(
            [Changes(ServiceCIDR, removed=(NamespacedName("", "kubernetes"),))], [True], id="a range that goes"
        ),
    ],
)
def test_changes_are_followed(changes: list[Changes[Any]], changed: list[bool]) -> None:
    store = Store()
    store.apply(Changes(Node, (NODE,)))
    store.apply(Changes(ServiceCIDR, (service_cidr("10.96.0.0/16"),)))
    builder = SurroundingsBuilder(DataplaneConfig(), "n1", store)
    assert [builder.update(store.apply(each)) for each in changes] == changed
    assert builder.derived == SurroundingsBuilder(DataplaneConfig(), "n1", store).derived


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
