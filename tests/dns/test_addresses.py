# SPDX-License-Identifier: Apache-2.0
"""Addresses as octets and as reverse names, with the standard library as the oracle."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy_dns.addresses import pack_ip, reverse_address, reverse_zones

sparse = st.lists(st.sampled_from([0, 0, 0, 1, 0xF0, 0xFFFF]), min_size=8, max_size=8).map(
    lambda groups: IPv6Address(":".join(f"{group:x}" for group in groups))
)
"""Addresses with several runs of zeros, where the one to shorten has to be found."""


@given(st.ip_addresses() | sparse)
def test_addresses_are_packed_as_the_standard_library_does(ip: IPv4Address | IPv6Address) -> None:
    assert pack_ip(str(ip)) == ip.packed


@given(st.ip_addresses(v=4) | sparse)
def test_reverse_names_spell_canonical_addresses(ip: IPv4Address | IPv6Address) -> None:
    assert reverse_address(ip.reverse_pointer.split(".")) == str(ip)


_NIBBLES = ".".join("0" * 31)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("in-addr.arpa", id="the zone"),
        pytest.param("2.3.4.in-addr.arpa", id="three octets"),
        pytest.param("1.2.3.4.5.in-addr.arpa", id="five octets"),
        pytest.param("1.2.3.256.in-addr.arpa", id="an octet over 255"),
        pytest.param("01.2.3.4.in-addr.arpa", id="a leading zero"),
        pytest.param("a.2.3.4.in-addr.arpa", id="no number"),
        pytest.param(f"{_NIBBLES}.ip6.arpa", id="31 nibbles"),
        pytest.param(f"0.{_NIBBLES}.0.ip6.arpa", id="33 nibbles"),
        pytest.param(f"00.{_NIBBLES}.ip6.arpa", id="two digits in a label"),
        pytest.param(f"g.{_NIBBLES}.ip6.arpa", id="no hexadecimal digit"),
        pytest.param(f"\xff.{_NIBBLES}.ip6.arpa", id="no ASCII"),
        pytest.param(f" .{'0.' * 30} .ip6.arpa", id="blanks"),
        pytest.param("1.2.3.4.ip6.arpa", id="four labels of the other family"),
    ],
)
def test_what_is_no_address(name: str) -> None:
    assert reverse_address(name.split(".")) is None


@pytest.mark.parametrize(
    ("cidr", "zones"),
    [
        pytest.param("10.96.0.0/16", ["96.10.in-addr.arpa"], id="ends on an octet"),
        pytest.param("10.96.0.0/14", [f"{low}.10.in-addr.arpa" for low in range(96, 100)], id="between two octets"),
        pytest.param("0.0.0.0/0", ["in-addr.arpa"], id="all"),
        pytest.param("10.1.2.3/32", ["3.2.1.10.in-addr.arpa"], id="one address"),
        pytest.param("fd00::/8", ["d.f.ip6.arpa"], id="ends on a nibble"),
        pytest.param("fc00::/7", ["c.f.ip6.arpa", "d.f.ip6.arpa"], id="between two nibbles"),
    ],
)
def test_the_zones_of_a_cidr(cidr: str, zones: list[str]) -> None:
    assert reverse_zones(cidr) == zones


@given(st.ip_addresses(), st.integers(0, 128))
def test_the_zones_of_a_cidr_hold_its_addresses(ip: IPv4Address | IPv6Address, prefix: int) -> None:
    network = ipaddress.ip_network((ip, min(prefix, ip.max_prefixlen)), strict=False)
    name = ip.reverse_pointer
    assert sum(name == zone or name.endswith(f".{zone}") for zone in reverse_zones(str(network))) == 1
