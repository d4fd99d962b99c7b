# SPDX-License-Identifier: Apache-2.0
"""rtnetlink messages as octets: what is read from them, and that nothing else than `DecodeError` comes of bad ones."""

import contextlib
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.errors import DecodeError
from svcproxy.process.rtnetlink import (
    Acknowledgement,
    AddressChange,
    DumpEnd,
    Failure,
    Message,
    delete_address,
    get_addresses,
    parse,
    put_address,
)

DUMP_INTR = 0x10
NEW, DELETE, DONE, ERROR, NEW_LINK = 20, 21, 3, 2, 16
INET, INET6, BRIDGE = 2, 10, 7
PERMANENT, TENTATIVE, DAD_FAILED, OPTIMISTIC = 0x80, 0x40, 0x08, 0x04
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 6, 8
FOREVER = 0xFFFFFFFF
REQUEST, ACK, REPLACE, CREATE = 0x1, 0x4, 0x100, 0x400


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload + bytes(-len(payload) % 4)


def address(family: int, *attributes: bytes, flags: int = PERMANENT, prefix: int = 24) -> bytes:
    return struct.pack("=BBBBI", family, prefix, flags, 0, 7) + b"".join(attributes)


def ip(text: str, kind: int = IFA_ADDRESS) -> bytes:
    return attribute(kind, ip_address(text).packed)


def flags(value: int) -> bytes:
    return attribute(IFA_FLAGS, struct.pack("=I", value))


def lifetime(preferred: int, valid: int) -> bytes:
    return attribute(IFA_CACHEINFO, struct.pack("=IIII", preferred, valid, 0, 0))


def change(text: str, *, added: bool = True, usable: bool = True, expires: bool = False) -> AddressChange:
    return AddressChange(added, 7, 24, text, usable, expires)


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        pytest.param(message(NEW, address(INET, ip("10.0.0.1"))), [change("10.0.0.1")], id="IPv4"),
        pytest.param(
            message(NEW, address(INET, ip("10.0.0.2"), ip("10.0.0.1", IFA_LOCAL), attribute(IFA_LABEL, b"eth0\0"))),
            [change("10.0.0.1")],
            id="point-to-point: ours is IFA_LOCAL",
        ),
        pytest.param(
            message(NEW, address(INET6, ip("2001:db8:0:0:0:0:0:1"))), [change("2001:db8::1")], id="IPv6, canonical text"
        ),
        pytest.param(
            message(DELETE, address(INET6, ip("fe80::1"))), [change("fe80::1", added=False)], id="an address goes"
        ),
        pytest.param(
            message(NEW, address(INET6, ip("fd00::1"), flags=TENTATIVE)),
            [change("fd00::1", usable=False)],
            id="tentative",
        ),
        pytest.param(
            message(NEW, address(INET6, ip("fd00::1"), flags=TENTATIVE | DAD_FAILED | OPTIMISTIC)),
            [change("fd00::1", usable=False)],
            id="a duplicate",
        ),
        pytest.param(
            message(NEW, address(INET6, ip("fd00::1"), flags=TENTATIVE | OPTIMISTIC)),
            [change("fd00::1")],
            id="optimistic",
        ),
        pytest.param(
            message(NEW, address(INET6, ip("fd00::1"), flags(0x100 | PERMANENT), flags=TENTATIVE)),
            [change("fd00::1")],
            id="IFA_FLAGS wins over the short field",
        ),
        pytest.param(
            message(NEW, address(INET, ip("10.0.0.1"), lifetime(0, 3))),
            [change("10.0.0.1", expires=True)],
            id="one that expires",
        ),
        pytest.param(
            message(NEW, address(INET6, ip("fd00::1"), lifetime(0, FOREVER))),
            [change("fd00::1")],
            id="deprecated for good",
        ),
        pytest.param(message(NEW, address(BRIDGE, b"")), [], id="another family"),
        pytest.param(message(NEW_LINK, b"whatever"), [], id="another type"),
        pytest.param(message(DONE, bytes(4)), [DumpEnd(consistent=True)], id="the end of a list"),
        pytest.param(message(DONE, bytes(4), DUMP_INTR), [DumpEnd(consistent=False)], id="a list that was interrupted"),
        pytest.param(
            message(NEW, address(INET, ip("10.0.0.1")), DUMP_INTR) + message(DONE, bytes(4)),
            [change("10.0.0.1"), DumpEnd(consistent=False), DumpEnd(consistent=True)],
            id="interrupted in the middle",
        ),
        pytest.param(message(ERROR, struct.pack("=i", -16) + bytes(16)), [Failure(16)], id="an error"),
        pytest.param(message(ERROR, struct.pack("=i", 0) + bytes(16)), [Acknowledgement()], id="an acknowledgement"),
        pytest.param(
            message(NEW, address(INET, ip("10.0.0.1"))) + message(NEW, address(INET, ip("10.0.0.2"))),
            [change("10.0.0.1"), change("10.0.0.2")],
            id="two in a datagram",
        ),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_messages(datagram: bytes, expected: list[Message]) -> None:
    assert list(parse(datagram)) == expected


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(bytes(15), id="half a header"),
        pytest.param(bytes(16), id="length zero"),
        pytest.param(struct.pack("=IHHII", 64, NEW, 0, 1, 0), id="longer than the datagram"),
        pytest.param(message(NEW, bytes(7)), id="half an address"),
        pytest.param(message(NEW, address(INET)), id="no address in it"),
        pytest.param(message(NEW, address(INET, ip("fd00::1"))), id="an address of the other family"),
        pytest.param(message(NEW, address(INET, struct.pack("=HH", 3, 1))), id="attribute shorter than its header"),
        pytest.param(message(NEW, address(INET, struct.pack("=HH", 9, 1))), id="attribute longer than the message"),
        pytest.param(message(ERROR, bytes(3)), id="half an error"),
    ],
)
def test_wrong_lengths_are_refused(datagram: bytes) -> None:
    with pytest.raises(DecodeError):
        list(parse(datagram))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(datagram: bytes) -> None:
    with contextlib.suppress(DecodeError):
        list(parse(datagram))


@given(
    kind=st.sampled_from([NEW, DELETE, DONE, ERROR]),
    family=st.sampled_from([INET, INET6]),
    cut=st.integers(0, 40),
    noise=st.binary(max_size=40),
)
def test_noise_in_a_frame_is_refused_or_read(kind: int, family: int, cut: int, noise: bytes) -> None:
    with contextlib.suppress(DecodeError):
        for found in parse(message(kind, address(family, ip("10.0.0.1"))[:cut] + noise)):
            if isinstance(found, AddressChange):
                assert str(ip_address(found.address)) == found.address


def test_the_request_is_one_message() -> None:
    assert get_addresses(7) == message(22, bytes(8), flags=0x301)[:8] + struct.pack("=II", 7, 0) + bytes(8)


@pytest.mark.parametrize(("text", "scope"), [("10.96.0.10", 254), ("fd96::a", 0)])
def test_an_address_that_is_put_is_read_back_as_one_that_expires(text: str, scope: int) -> None:
    request = put_address(text, 7, 3, 5)
    assert struct.unpack_from("=IHHI", request) == (len(request), NEW, REQUEST | ACK | REPLACE | CREATE, 5)
    prefix = 128 if ":" in text else 32
    assert struct.unpack_from("=BBBBI", request, 16) == (INET6 if ":" in text else INET, prefix, 0, scope, 7)
    assert list(parse(request)) == [AddressChange(True, 7, prefix, text, usable=True, expires=True)]


@pytest.mark.parametrize("text", ["10.96.0.10", "fd96::a"])
def test_an_address_is_deleted_by_itself(text: str) -> None:
    request = delete_address(text, 7, 6)
    assert struct.unpack_from("=IHHI", request) == (len(request), DELETE, REQUEST | ACK, 6)
    assert list(parse(request)) == [AddressChange(False, 7, 128 if ":" in text else 32, text, usable=True)]
