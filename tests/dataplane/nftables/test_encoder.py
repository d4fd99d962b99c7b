# SPDX-License-Identifier: Apache-2.0
"""The encoder, octet by octet against what nft 1.0.6 sends for the scripts in `captures/`."""

from collections.abc import Sequence
from itertools import chain as chained
from pathlib import Path

import pytest

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    ACCEPT,
    DROP,
    FULLY_RANDOM_PORTS,
    RANDOM_PORTS,
    RETURN,
    Base,
    Code,
    Compare,
    Ct,
    Direction,
    Expression,
    Meta,
    Verdict,
    bitwise,
    compare,
    counter,
    ct,
    dnat,
    fib_type,
    goto,
    immediate,
    jump,
    lookup,
    lookup_to,
    masquerade,
    meta,
    numgen_random,
    payload,
    port_unreachable,
    register,
    reset,
    set_ct,
    set_meta,
    snat,
    update,
    verdict,
    vmap,
)
from svcproxy.dataplane.nftables.messages import (
    IFNAME,
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    IPV6_ADDR,
    MARK,
    VERDICT,
    Attachment,
    Element,
    Hook,
    Request,
    Set,
    SetFlag,
    Table,
    TableFlag,
    concatenation,
)
from svcproxy.dataplane.nftables.netlink import HEADER, attributes, messages
from svcproxy.model.meta import Family

CAPTURES = Path(__file__).parent / "captures"
TABLE = Table(Family.IPV4, "svcproxy")
TABLE6 = Table(Family.IPV6, "svcproxy")
TCP, UDP = b"\x06", b"\x11"


def host(number: int) -> bytes:
    return number.to_bytes(4, "little")


def saddr(to: int) -> Expression:
    return payload(Base.NETWORK, 12, 4, to=to)


def daddr(to: int) -> Expression:
    return payload(Base.NETWORK, 16, 4, to=to)


def dport(to: int) -> Expression:
    return payload(Base.TRANSPORT, 2, 2, to=to)


L4PROTO = meta(Meta.L4PROTO, to=0)
MARK_OF_PACKET = meta(Meta.MARK, to=0)
KEY = (daddr(0), meta(Meta.L4PROTO, to=1), dport(2))
KEY6 = (payload(Base.NETWORK, 24, 16, to=0), meta(Meta.L4PROTO, to=4), dport(5))

SETS = (
    Set("nodeips", (IPV4_ADDR,), id=1),
    Set("l4protos", (INET_PROTO,), id=2),
    Set("ports", (INET_SERVICE,), id=3),
    Set("marks", (MARK,), id=4),
    Set("svccidr", (IPV4_ADDR,), flags=SetFlag.INTERVAL, id=5),
    Set("srcok", (IPV4_ADDR, INET_PROTO, INET_SERVICE, IPV4_ADDR), flags=SetFlag.INTERVAL, id=6),
    Set("masq", (IPV4_ADDR, INET_PROTO, INET_SERVICE), size=1000, id=7),
    Set("class", (IPV4_ADDR, INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter(), id=8),
    Set("npclass", (INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter(), id=9),
    Set("ep", (IPV4_ADDR, INET_PROTO, INET_SERVICE, MARK), (IPV4_ADDR, INET_SERVICE), id=10),
    Set(
        "aff",
        (IPV4_ADDR, MARK),
        (MARK,),
        flags=SetFlag.TIMEOUT | SetFlag.DYNAMIC,
        size=1000,
        timeout_ms=10_800_000,
        id=11,
    ),
    Set("ids", (IPV4_ADDR,), (MARK,), id=12),
)

RULES: tuple[tuple[str, tuple[Expression, ...]], ...] = (
    ("n3", (counter(),)),
    ("n3", (verdict(goto("n4")),)),
    ("n4", (verdict(RETURN),)),
    ("prerouting", (*KEY, vmap("class", word=0, set_id=8))),
    (
        "prerouting",
        (
            daddr(0),
            lookup("nodeips", word=0, set_id=1),
            L4PROTO,
            dport(1),
            vmap("npclass", word=0, set_id=9),
        ),
    ),
    ("prerouting", (daddr(0), lookup("svccidr", word=0, set_id=5), verdict(DROP))),
    ("prerouting", (fib_type(to=0), compare(host(2), word=0), verdict(ACCEPT))),
    ("prerouting", (saddr(0), compare(bytes((10, 0, 0, 1)), word=0, op=Compare.NEQ), verdict(jump("n3")))),
    ("prerouting", (*KEY, lookup("masq", word=0, set_id=7), verdict(goto("n3")))),
    ("prerouting", (*KEY, lookup("masq", word=0, set_id=7, inverted=True), verdict(DROP))),
    ("prerouting", (immediate(host(1), to=0), set_ct(Ct.MARK, word=0))),
    (
        "prerouting",
        (
            meta(Meta.IIFNAME, to=0),
            compare(b"eth0".ljust(16, b"\0"), word=0),
            saddr(0),
            bitwise(bytes((255, 255, 0, 0)), bytes(4), word=0, to=0),
            compare(bytes((10, 0, 0, 0)), word=0),
            verdict(ACCEPT),
        ),
    ),
    (
        "prerouting",
        (
            L4PROTO,
            lookup("l4protos", word=0, set_id=2),
            daddr(0),
            meta(Meta.MARK, to=1),
            lookup("aff", word=0, set_id=11),
            verdict(ACCEPT),
        ),
    ),
    ("output", (numgen_random(3, to=0, offset=0x100), set_meta(Meta.MARK, word=0))),
    ("output", (saddr(0), meta(Meta.MARK, to=1), meta(Meta.MARK, to=4), update("aff", key=0, word=4, set_id=11))),
    ("output", (saddr(0), lookup_to("ids", word=0, to=0, set_id=12), set_meta(Meta.MARK, word=0))),
    (
        "output",
        (
            L4PROTO,
            compare(TCP, word=0),
            *KEY,
            meta(Meta.MARK, to=3),
            lookup_to("ep", word=0, to=0, set_id=10),
            dnat(Family.IPV4, address=0, port=1),
        ),
    ),
    (
        "postrouting",
        (
            L4PROTO,
            compare(TCP, word=0),
            ct(Ct.STATUS, to=0),
            bitwise(host(0x20), bytes(4), word=0, to=0),
            compare(host(0x20), word=0),
            ct(Ct.DST_IP, to=0, direction=Direction.ORIGINAL),
            meta(Meta.L4PROTO, to=1),
            ct(Ct.PROTO_DST, to=2, direction=Direction.ORIGINAL),
            lookup("masq", word=0, set_id=7),
            masquerade(),
        ),
    ),
    (
        "postrouting",
        (
            ct(Ct.MARK, to=0),
            compare(host(1), word=0),
            immediate(bytes((10, 0, 0, 9)), to=0),
            snat(Family.IPV4, address=0),
        ),
    ),
    (
        "postrouting",
        (
            saddr(0),
            meta(Meta.MARK, to=1),
            lookup("aff", word=0, set_id=11, inverted=True),
            masquerade(flags=FULLY_RANDOM_PORTS),
        ),
    ),
    ("postrouting", (meta(Meta.OIF, to=0), compare(host(1), word=0), verdict(RETURN))),
    (
        "postrouting",
        (
            MARK_OF_PACKET,
            bitwise(host(0x4000), bytes(4), word=0, to=0),
            compare(host(0x4000), word=0),
            masquerade(flags=RANDOM_PORTS),
        ),
    ),
    (
        "postrouting",
        (MARK_OF_PACKET, bitwise(host(0xFFFFBFFF), host(0x4000), word=0, to=0), set_meta(Meta.MARK, word=0)),
    ),
    ("forward", (L4PROTO, compare(TCP, word=0), reset())),
    ("forward", (port_unreachable(Family.IPV4),)),
)

IPV4 = (
    nft.new_table(TABLE, comment="schema 1"),
    nft.new_chain(TABLE, "n3"),
    nft.new_chain(TABLE, "n4"),
    nft.new_chain(TABLE, "prerouting", Attachment("nat", Hook.PREROUTING, -101, policy=1)),
    nft.new_chain(TABLE, "output", Attachment("nat", Hook.OUTPUT, -101)),
    nft.new_chain(TABLE, "postrouting", Attachment("nat", Hook.POSTROUTING, 99)),
    nft.new_chain(TABLE, "forward", Attachment("filter", Hook.FORWARD, -110)),
    *(nft.new_set(TABLE, made) for made in SETS),
    *(nft.new_rule(TABLE, chain, expressions) for chain, expressions in RULES),
)
"""`ipv4.nft`."""

HTTP = concatenation(bytes((10, 96, 0, 1)), TCP, (80).to_bytes(2))
DNS = concatenation(bytes((10, 96, 0, 2)), UDP, (53).to_bytes(2))
DNS3 = concatenation(bytes((10, 96, 0, 3)), UDP, (53).to_bytes(2))
FIRST_GAP = Element(bytes(4), interval_end=True)
"""nft begins a set of intervals with it; the kernel does without."""
SERVICES = (Element(bytes((10, 96, 0, 0))), Element(bytes((10, 112, 0, 0)), interval_end=True))
ADMITTED = Element(key=HTTP + bytes((192, 0, 2, 0)), key_end=HTTP + bytes((192, 0, 2, 255)))

ELEMENTS = tuple(
    chained(
        nft.new_elements(
            TABLE,
            "class",
            [Element(HTTP, goto("n3")), Element(DNS, DROP), Element(DNS3, ACCEPT)],
            set_id=8,
        ),
        nft.new_elements(
            TABLE,
            "ep",
            [Element(HTTP + host(2), concatenation(bytes((10, 1, 0, 1)), (8080).to_bytes(2)))],
            set_id=10,
        ),
        nft.new_elements(TABLE, "svccidr", (FIRST_GAP, *SERVICES), set_id=5),
        nft.new_elements(TABLE, "srcok", [ADMITTED], set_id=6),
        nft.new_elements(
            TABLE,
            "aff",
            [Element(bytes((10, 1, 1, 1)) + host(7), host(0x101), timeout_ms=30_000)],
            set_id=11,
        ),
        nft.new_elements(TABLE, "nodeips", [Element(bytes((192, 0, 2, 1))), Element(bytes((192, 0, 2, 2)))], set_id=1),
    )
)
"""`elements.nft`."""

REMOVAL = (
    *nft.delete_elements(TABLE, "class", [Element(DNS, DROP)]),
    *nft.delete_elements(TABLE, "svccidr", SERVICES),
    *nft.delete_elements(TABLE, "srcok", [ADMITTED]),
    nft.flush_set(TABLE, "nodeips"),
    nft.flush_chain(TABLE, "n4"),
    nft.flush_chain(TABLE, "output"),
    nft.delete_chain(TABLE, "output"),
    nft.delete_set(TABLE, "ids"),
    nft.delete_table(TABLE),
)
"""`removal.nft`."""

IPV6 = (
    nft.new_table(TABLE6),
    nft.new_chain(TABLE6, "n3"),
    nft.new_chain(TABLE6, "prerouting", Attachment("nat", Hook.PREROUTING, -101)),
    nft.new_chain(TABLE6, "forward", Attachment("filter", Hook.FORWARD, -110)),
    nft.new_set(TABLE6, Set("class", (IPV6_ADDR, INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter(), id=1)),
    nft.new_set(TABLE6, Set("ep", (IPV6_ADDR, INET_PROTO, INET_SERVICE, MARK), (IPV6_ADDR, INET_SERVICE), id=2)),
    nft.new_rule(
        TABLE6,
        "n3",
        (
            L4PROTO,
            compare(TCP, word=0),
            *KEY6,
            meta(Meta.MARK, to=6),
            lookup_to("ep", word=0, to=0, set_id=2),
            dnat(Family.IPV6, address=0, port=4),
        ),
    ),
    nft.new_rule(TABLE6, "prerouting", (*KEY6, vmap("class", word=0, set_id=1))),
    nft.new_rule(TABLE6, "forward", (port_unreachable(Family.IPV6),)),
)
"""`ipv6.nft`."""


def rows() -> Sequence[object]:
    found: list[object] = []
    for name, requests in (("ipv4", IPV4), ("elements", ELEMENTS), ("removal", REMOVAL), ("ipv6", IPV6)):
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
