# SPDX-License-Identifier: Apache-2.0
"""The scripts in `captures/`, said in requests: the same objects in the same order."""

from itertools import chain as chained
from pathlib import Path

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    ACCEPT,
    DROP,
    FULLY_RANDOM_PORTS,
    RANDOM_PORTS,
    RETURN,
    Base,
    Compare,
    Ct,
    Direction,
    Expression,
    Fib,
    Meta,
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
    reset,
    set_ct,
    set_meta,
    snat,
    update,
    verdict,
    vmap,
)
from svcproxy.dataplane.nftables.messages import (
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    IPV6_ADDR,
    MARK,
    VERDICT,
    Attachment,
    Element,
    Hook,
    Set,
    SetFlag,
    Table,
    concatenation,
)
from svcproxy.model.meta import Family

CAPTURES = Path(__file__).parent / "captures"
"""Scripts for nft, and what it sends for each."""
TABLE = Table(Family.IPV4, "svcproxy")
TABLE6 = Table(Family.IPV6, "svcproxy")
TCP, UDP, SCTP = b"\x06", b"\x11", b"\x84"


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
    Set("protocols", (INET_PROTO,), flags=SetFlag.CONSTANT, size=3, id=13),
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
    ("prerouting", (fib_type(Fib.DADDR, to=0), compare(host(2), word=0), verdict(ACCEPT))),
    ("prerouting", (fib_type(Fib.SADDR, to=0), compare(host(2), word=0), verdict(ACCEPT))),
    ("prerouting", (meta(Meta.IIFNAME, to=0), compare(b"cali", word=0), verdict(ACCEPT))),
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
    (
        "output",
        (
            saddr(0),
            meta(Meta.MARK, to=1),
            meta(Meta.MARK, to=4),
            update("aff", key=0, word=4, timeout_ms=30_000, set_id=11),
        ),
    ),
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
    *nft.new_elements(TABLE, "protocols", [Element(TCP), Element(UDP), Element(SCTP)], set_id=13),
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

RULE = (nft.delete_rule(TABLE, "n4", 22),)
"""`rule.nft`."""

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
