# SPDX-License-Identifier: Apache-2.0
"""What the layout needs of a kernel, each as the smallest rules that use it. Pure.

The rules are those of `layout` in form: the same types, the same expressions, the same hooks. No packet runs through
them: the jumps from the base chains, without which the kernel would not check what is allowed on a hook, ask for two
marks at once.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import (
    FULLY_RANDOM_PORTS,
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
    jump,
    lookup,
    lookup_to,
    masquerade,
    meta,
    numgen_random,
    payload,
    port_unreachable,
    reset,
    set_meta,
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
    DataType,
    Element,
    Hook,
    Request,
    Set,
    SetFlag,
    Table,
    concatenation,
)
from svcproxy.model.meta import Family

PREROUTING, OUTPUT, POSTROUTING = "prerouting", "output", "postrouting"

_TCP: Final = b"\x06"
_RTN_LOCAL: Final = struct.pack("=I", 2)
_DST_NAT: Final = struct.pack("=I", 0x20)
"""IPS_DST_NAT."""
_MASK: Final = struct.pack("=I", layout.PORT_MASK)
_ADDRESS: Final = {Family.IPV4: IPV4_ADDR, Family.IPV6: IPV6_ADDR}
_OFFSETS: Final = {Family.IPV4: (12, 16), Family.IPV6: (8, 24)}
"""Of source and destination in the network header."""
_ORIGINAL: Final = {Family.IPV4: Ct.DST_IP, Family.IPV6: Ct.DST_IP6}


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing a kernel may lack, of one family."""

    name: str
    purpose: str
    requests: Callable[[Table], list[Request]]
    """What uses it, in a table that has what the features before it made."""


def _nat(table: Table) -> list[Request]:
    """The base chains."""
    hooks = {
        PREROUTING: Attachment("nat", Hook.PREROUTING, layout.NAT_PRIORITY),
        OUTPUT: Attachment("nat", Hook.OUTPUT, layout.NAT_PRIORITY),
        POSTROUTING: Attachment("nat", Hook.POSTROUTING, layout.SOURCE_NAT_PRIORITY),
    }
    return [nft.new_chain(table, name, attachment) for name, attachment in hooks.items()]


def _verdict_map(table: Table) -> list[Request]:
    made = Set("class", (_address(table), INET_PROTO, INET_SERVICE), (VERDICT,), expression=counter())
    return [
        nft.new_set(table, made),
        nft.new_chain(table, "n1"),
        *nft.new_elements(table, made.name, [Element(_frontend(table), goto("n1"))]),
        *unreached_rule(table, "dispatch", *_destination(table), vmap(made.name, word=0)),
    ]


def _backend_map(table: Table) -> list[Request]:
    address = _address(table)
    made = Set("ep", (address, INET_PROTO, INET_SERVICE, MARK), (address, INET_SERVICE))
    backend = Element(_frontend(table) + bytes(4), concatenation(bytes(address.octets), bytes(2)))
    after = _words(table)
    return [
        nft.new_set(table, made),
        *nft.new_elements(table, made.name, [backend]),
        *unreached_rule(
            table,
            "backend",
            *_destination(table),
            numgen_random(3, to=after + 2),
            lookup_to(made.name, word=0, to=0),
            dnat(table.family, address=0, port=after),
        ),
    ]


def _reject(table: Table) -> list[Request]:
    tcp = (meta(Meta.L4PROTO, to=0), compare(_TCP, word=0))
    return [
        *unreached_rule(table, "reset", *tcp, reset()),
        *unreached_rule(table, "unreachable", port_unreachable(table.family)),
    ]


def _local_source(table: Table) -> list[Request]:
    return unreached_rule(table, "local", fib_type(Fib.SADDR, to=0), compare(_RTN_LOCAL, word=0))


def _affinity(table: Table) -> list[Request]:
    made = Set("aff", (_address(table), MARK), (MARK,), SetFlag.TIMEOUT | SetFlag.DYNAMIC, size=16, timeout_ms=1000)
    mark = _words(table)
    client = (_source(table), meta(Meta.MARK, to=mark), bitwise(_MASK, bytes(4), word=mark, to=mark))
    return [
        nft.new_set(table, made),
        *unreached_rule(
            table,
            "affinity",
            *client,
            meta(Meta.MARK, to=mark + 1),
            update(made.name, key=0, word=mark + 1, timeout_ms=500),
        ),
        *unreached_rule(table, "affine", *client, lookup_to(made.name, word=0, to=0), set_meta(Meta.MARK, word=0)),
    ]


def _ranges(table: Table) -> list[Request]:
    address = _address(table)
    made = Set("svccidr", (address,), flags=SetFlag.INTERVAL)
    first, after = b"\x0a".ljust(address.octets, b"\0"), b"\x0b".ljust(address.octets, b"\0")
    return [
        nft.new_set(table, made),
        *nft.new_elements(table, made.name, [Element(first), Element(after, interval_end=True)]),
        *unreached_rule(table, "ranges", _source(table), lookup(made.name, word=0)),
    ]


def _concatenated_ranges(table: Table) -> list[Request]:
    address = _address(table)
    made = Set("srcok", (address, INET_PROTO, INET_SERVICE, address), flags=SetFlag.INTERVAL)
    key = _frontend(table)
    source_at, _ = _OFFSETS[table.family]
    source = payload(Base.NETWORK, source_at, address.octets, to=_words(table) + 2)
    admitted = Element(key + bytes(address.octets), key_end=key + b"\xff" * address.octets)
    return [
        nft.new_set(table, made),
        *nft.new_elements(table, made.name, [admitted]),
        *unreached_rule(table, "firewall", *_destination(table), source, lookup(made.name, word=0, inverted=True)),
    ]


def _original_tuple(table: Table) -> list[Request]:
    made = Set("masq", (_address(table), INET_PROTO, INET_SERVICE))
    after = _words(table)
    return [
        nft.new_set(table, made),
        *unreached_rule(
            table,
            "original",
            ct(Ct.STATUS, to=0),
            bitwise(_DST_NAT, bytes(4), word=0, to=0),
            compare(bytes(4), word=0, op=Compare.NEQ),
            ct(_ORIGINAL[table.family], to=0, direction=Direction.ORIGINAL),
            meta(Meta.L4PROTO, to=after),
            ct(Ct.PROTO_DST, to=after + 1, direction=Direction.ORIGINAL),
            lookup(made.name, word=0),
            at=(POSTROUTING,),
        ),
    ]


def _masquerade(table: Table) -> list[Request]:
    return unreached_rule(table, "masquerade", masquerade(flags=FULLY_RANDOM_PORTS), at=(POSTROUTING,))


FEATURES: Final = (
    Feature("nat", "NAT chains at prerouting, output and postrouting", _nat),
    Feature("verdict-map", "verdicts by address, protocol and port, counted for each", _verdict_map),
    Feature("backend-map", "destinations by a map with a random number in its key", _backend_map),
    Feature("reject", "refusals in NAT chains", _reject),
    Feature("local-source", "sources that are this node's addresses (fib)", _local_source),
    Feature("original-tuple", "what a connection was addressed to (ct original)", _original_tuple),
    Feature("affinity", "clients remembered with their backend (dynset with data)", _affinity),
    Feature("ranges", "address ranges", _ranges),
    Feature("concatenated-ranges", "source ranges for each frontend", _concatenated_ranges),
    Feature("masquerade", "sources rewritten, ports fully random", _masquerade),
)
"""In an order in which each may use what those before it made."""


def _address(table: Table) -> DataType:
    return _ADDRESS[table.family]


def _words(table: Table) -> int:
    """Words that an address takes."""
    return _address(table).octets // 4


def _frontend(table: Table) -> bytes:
    return concatenation(bytes(_address(table).octets), _TCP, bytes(2))


def _source(table: Table) -> Expression:
    return payload(Base.NETWORK, _OFFSETS[table.family][0], _address(table).octets, to=0)


def _destination(table: Table) -> tuple[Expression, ...]:
    """Address, protocol and port, from word 0 on."""
    after = _words(table)
    return (
        payload(Base.NETWORK, _OFFSETS[table.family][1], _address(table).octets, to=0),
        meta(Meta.L4PROTO, to=after),
        payload(Base.TRANSPORT, 2, 2, to=after + 1),
    )


def unreached_rule(
    table: Table, chain: str, *expressions: Expression, at: tuple[str, ...] = (PREROUTING, OUTPUT)
) -> list[Request]:
    """A chain with that rule, to which the base chains `at` lead, but no packet."""
    never = (
        meta(Meta.MARK, to=0),
        compare(struct.pack("=I", 1), word=0),
        compare(struct.pack("=I", 2), word=0),
        verdict(jump(chain)),
    )
    return [
        nft.new_chain(table, chain),
        nft.new_rule(table, chain, expressions),
        *(nft.new_rule(table, base, never) for base in at),
    ]
