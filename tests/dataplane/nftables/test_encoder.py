# SPDX-License-Identifier: Apache-2.0
"""The encoder, octet by octet against what nft 1.0.6 sends for the scripts in `captures/`."""

from collections.abc import Sequence

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    Code,
    Verdict,
    bitwise,
    register,
)
from svcproxy.dataplane.nftables.messages import (
    IFNAME,
    Element,
    Request,
    Set,
    TableFlag,
)
from svcproxy.dataplane.nftables.netlink import HEADER, attributes, messages
from tests.dataplane.nftables.captured import CAPTURES, DNS, ELEMENTS, IPV4, IPV6, REMOVAL, RULE, TABLE


def rows() -> Sequence[object]:
    found: list[object] = []
    for name, requests in (
        ("ipv4", IPV4),
        ("elements", ELEMENTS),
        ("removal", REMOVAL),
        ("rule", RULE),
        ("ipv6", IPV6),
    ):
        captured = [bytes.fromhex(line) for line in (CAPTURES / f"{name}.hex").read_text().split()]
        assert len(captured) == len(requests), name
        for index, pair in enumerate(zip(requests, captured, strict=True)):
            found.append(pytest.param(*pair, id=f"{name}-{index}-{pair[0].kind.name}"))
    return found


@pytest.mark.parametrize(("request_", "captured"), rows())
def test_octets_are_those_of_nft(request_: Request, captured: bytes) -> None:
    (_, _, flags, sequence, _) = HEADER.unpack_from(captured)
    (sent,) = messages(nft.encode(request_, sequence))
    (wanted,) = messages(captured)
    assert (sent.kind, sent.flags, sent.payload.hex()) == (wanted.kind, flags, wanted.payload.hex())


def test_an_owned_table_carries_its_flags() -> None:
    owned = nft.new_table(TABLE, TableFlag.OWNER | TableFlag.PERSIST, "schema 1")
    assert owned.body.replace(b"\0\0\0\x06", bytes(4)) == IPV4[0].body


def test_an_interface_name_is_a_key() -> None:
    assert nft.new_set(TABLE, Set("local", (IFNAME,))).body.count((41).to_bytes(4)) == 1


def test_a_batch_has_its_frame_and_one_acknowledgement() -> None:
    sent = list(messages(nft.batch(REMOVAL[:3], 0xFFFFFFFE)))
    assert [each.kind for each in sent] == [0x10, 0xA0E, 0xA0E, 0xA0E, 0x11]
    assert [each.flags & 4 for each in sent] == [0, 0, 0, 4, 0]
    assert [each.sequence for each in sent] == [0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 2]
    assert [nft.position(each.sequence, 0xFFFFFFFE) for each in sent] == [-1, 0, 1, 2, 3]
    assert len(nft.batch(REMOVAL[:3], 7)) == nft.batch_octets(REMOVAL[:3])


@pytest.mark.parametrize(
    ("count", "filling", "expected"),
    [
        pytest.param(0, b"", [], id="none"),
        pytest.param(1, b"", [1], id="one"),
        pytest.param(1000, b"", [1000], id="as many as a message may have"),
        pytest.param(2001, b"", [1000, 1000, 1], id="more"),
        pytest.param(456, bytes(60), [455, 1], id="one more than an attribute holds"),
        pytest.param(1000, bytes(60), [455, 455, 90], id="large ones"),
    ],
)
def test_element_lists_are_split_at_both_bounds(count: int, filling: bytes, expected: list[int]) -> None:
    elements = [Element(number.to_bytes(4) + filling, filling or None) for number in range(count)]
    requests = list(nft.new_elements(TABLE, "ep", elements))
    lists = [dict(attributes(each.body[4:]))[3] for each in requests]
    assert [len(list(attributes(each))) for each in lists] == expected
    listed = [dict(attributes(each)) for octets in lists for _, each in attributes(octets)]
    assert [dict(attributes(each[1]))[1] for each in listed] == [each.key for each in elements]


def test_an_offset_names_the_element_it_lies_in() -> None:
    elements = [Element(bytes((0xA0 + number,)) * (number + 1), b"\1" * number) for number in range(20)]
    (request,) = nft.new_elements(TABLE, "ep", elements)
    octets = nft.encode(request, 1)
    for index, element in enumerate(elements):
        at = octets.index(element.key)
        assert [nft.element_at(request, offset) for offset in (at - 12, at, at + index)] == [index] * 3
    assert nft.element_at(request, len(octets) - 1) == 19


def test_an_offset_outside_the_elements_names_none() -> None:
    (request,) = nft.delete_elements(TABLE, "class", [Element(DNS)])
    assert [nft.element_at(request, offset) for offset in (0, 20, 1 << 20)] == [None, None, None]
    assert nft.element_at(IPV4[0], 24) is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param(0, 1, id="the first word is NFT_REG_1"),
        pytest.param(1, 9, id="the second is NFT_REG32_01"),
        pytest.param(4, 2, id="the fifth is NFT_REG_2"),
        pytest.param(15, 23, id="the last is NFT_REG32_15"),
    ],
)
def test_registers(word: int, expected: int) -> None:
    assert register(word) == expected


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda: register(16), id="no such word"),
        pytest.param(lambda: Verdict(Code.GOTO), id="goto nowhere"),
        pytest.param(lambda: Verdict(Code.DROP, "n3"), id="drop somewhere"),
        pytest.param(lambda: bitwise(bytes(4), bytes(2), word=0, to=0), id="mask longer than xor"),
        pytest.param(lambda: nft.new_table(TABLE, comment="x" * 255), id="comment too long"),
        pytest.param(lambda: list(nft.new_elements(TABLE, "ep", [Element(bytes(1 << 16))])), id="key too long"),
    ],
)
def test_what_cannot_be_said_is_refused(mistake: object) -> None:
    assert callable(mistake)
    with pytest.raises(ValueError):  # noqa: PT011  # each message differs; the rows are what is tested
        mistake()
