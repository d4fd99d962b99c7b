# SPDX-License-Identifier: Apache-2.0
"""Which addresses of a node take NodePorts, and which spellings of an address are one."""

import pytest

from svcproxy.errors import ConfigError
from svcproxy.frontends.addresses import canonical, contains, network
from svcproxy.frontends.node import NodeView
from svcproxy.frontends.options import FrontendOptions

NODE = NodeView(
    "n1",
    None,
    frozenset({"127.0.0.1", "::1", "192.0.2.11", "10.9.9.9", "198.51.100.7", "2001:db8::11", "fe80::1"}),
    ("192.0.2.11", "2001:db8::11"),
)
V4, V6 = {"192.0.2.11", "10.9.9.9", "198.51.100.7"}, {"2001:db8::11", "fe80::1"}


@pytest.mark.parametrize(
    ("entries", "selected"),
    [
        pytest.param(("primary",), {"192.0.2.11", "2001:db8::11"}, id="primary"),
        pytest.param((), {"192.0.2.11", "2001:db8::11"}, id="unset: primary"),
        pytest.param(("all",), V4 | V6, id="all: but loopback"),
        pytest.param(("0.0.0.0/0", "::/0"), V4 | V6, id="length 0: but loopback"),
        pytest.param(("localhost",), {"127.0.0.1", "::1"}, id="localhost"),
        pytest.param(("127.0.0.0/8", "::1/128"), {"127.0.0.1", "::1"}, id="loopback by its CIDR"),
        pytest.param(("10.0.0.0/8",), {"10.9.9.9"} | V6, id="a family without entry: all of it"),
        pytest.param(("10.0.0.0/8", "2001:db8::/32"), {"10.9.9.9", "2001:db8::11"}, id="CIDRs"),
        pytest.param(("primary", "10.0.0.0/8"), {"192.0.2.11", "10.9.9.9", "2001:db8::11"}, id="primary and CIDR"),
        pytest.param(("all", "localhost"), NODE.addresses, id="all and localhost"),
        pytest.param(("172.16.0.0/12", "fd00::/8"), set(), id="CIDRs that hold nothing"),
    ],
)
def test_node_port_addresses(entries: tuple[str, ...], selected: set[str]) -> None:
    assert FrontendOptions(entries).selected(NODE) == selected


def test_primary_never_becomes_all_in_silence() -> None:
    node = NodeView("n1", None, NODE.addresses, ("192.0.2.11",))
    assert FrontendOptions(("primary",)).selected(node) == {"192.0.2.11"}


@pytest.mark.parametrize(
    ("entries", "families"),
    [
        pytest.param(("primary",), [], id="a keyword speaks for both"),
        pytest.param(("10.0.0.0/8",), ["IPv6"], id="IPv4 only"),
        pytest.param(("fd00::/8",), ["IPv4"], id="IPv6 only"),
    ],
)
def test_warnings(entries: tuple[str, ...], families: list[str]) -> None:
    assert [warning.split()[3] for warning in FrontendOptions(entries).warnings] == families


def test_every_bad_entry_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        FrontendOptions(("primary", "10.0.0.1", "everything"), external_ip_cidrs=("10.0.0.0/33",))
    assert [problem.path for problem in caught.value.problems] == [
        "node_port_addresses[1]",
        "node_port_addresses[2]",
        "external_ip_cidrs[0]",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0.01", None),
        ("10.0.0.256", None),
        ("10.0.0.1\n", None),
        ("١0.0.0.1", None),
        ("fe80::1%eth0", None),
        ("example.com", None),
        ("", None),
    ],
)
def test_canonical(text: str, expected: str | None) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize(
    ("cidr", "ip", "inside"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.9/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("::/0", "10.0.0.1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("10.0.0.0/255.0.0.0", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", False),
    ],
)
def test_contains(cidr: str, ip: str, inside: bool) -> None:
    assert contains(cidr, ip) is inside
    assert (network(cidr) is None) is ("/" not in cidr or cidr.endswith(".0.0.0"))
