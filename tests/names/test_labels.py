# SPDX-License-Identifier: Apache-2.0
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model.meta import Family
from svcproxy.names.labels import address_label, canonical_ip, canonical_target, is_label, labelled_addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("web", True, id="letters"),
        pytest.param("0", True, id="one digit"),
        pytest.param("a-b", True, id="dash inside"),
        pytest.param("a" * 63, True, id="63 octets"),
        pytest.param("a" * 64, False, id="64 octets"),
        pytest.param("", False, id="empty"),
        pytest.param("-a", False, id="dash first"),
        pytest.param("a-", False, id="dash last"),
        pytest.param("Web", False, id="upper case"),
        pytest.param("a.b", False, id="dot"),
        pytest.param("_a", False, id="underscore"),
        pytest.param("a\n", False, id="line feed at the end"),
        pytest.param("ä", False, id="not ASCII"),
    ],
)
def test_labels(text: str, expected: bool) -> None:
    assert is_label(text) is expected


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        pytest.param("10.0.0.1", Family.IPV4, "10.0.0.1", id="IPv4"),
        pytest.param("010.0.0.1", Family.IPV4, None, id="leading zero: octal to some"),
        pytest.param("10.0.0.256", Family.IPV4, None, id="octet too large"),
        pytest.param("10.0.0", Family.IPV4, None, id="three octets"),
        pytest.param("10.0.0.1\n", Family.IPV4, None, id="line feed at the end"),
        pytest.param("١٠.0.0.1", Family.IPV4, None, id="digits of another script"),
        pytest.param("10.0.0.1", Family.IPV6, None, id="IPv4 in an IPv6 slice"),
        pytest.param("fd00::1", Family.IPV4, None, id="IPv6 in an IPv4 slice"),
        pytest.param("FD00:0:0::1", Family.IPV6, "fd00::1", id="IPv6 not canonical"),
        pytest.param("fe80::1%eth0", Family.IPV6, None, id="zone index"),
        pytest.param("", Family.IPV6, None, id="empty"),
    ],
)
def test_canonical_addresses(text: str, family: Family, expected: str | None) -> None:
    assert canonical_ip(text, family) == expected


@given(st.ip_addresses())
def test_a_canonical_address_stays_the_object_it_is(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = str(ip)
    assert canonical_ip(text, Family(ip.version)) is text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("www.example.com", "www.example.com", id="plain"),
        pytest.param("WWW.Example.com.", "www.example.com", id="case and final dot"),
        pytest.param("_dmarc.example.com", "_dmarc.example.com", id="underscore"),
        pytest.param("", None, id="empty"),
        pytest.param(".", None, id="root"),
        pytest.param("a..b", None, id="empty label"),
        pytest.param("192.0.2.7", None, id="A46: an IPv4 address"),
        pytest.param("fd00::1", None, id="an IPv6 address"),
        pytest.param("a b", None, id="blank"),
        pytest.param(".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc", id="253 octets"),
        pytest.param(".".join(["a" * 49] * 5) + ".abcd", None, id="254 octets"),
    ],
)
def test_targets(text: str, expected: str | None) -> None:
    assert canonical_target(text) == expected


@pytest.mark.parametrize(
    ("ip", "label"),
    [
        pytest.param("10.244.1.6", "10-244-1-6", id="IPv4"),
        pytest.param("fd00:244::1", "fd00-244--1", id="IPv6"),
        pytest.param("fd00:1::", "fd00-1--0", id="A31: a label must not end with a dash"),
        pytest.param("::", "--0", id="all zero"),
    ],
)
def test_address_labels(ip: str, label: str) -> None:
    assert address_label(ip) == label


@given(st.ip_addresses())
def test_a_label_leads_back_to_its_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert str(ip) in labelled_addresses(address_label(str(ip)))
