# SPDX-License-Identifier: Apache-2.0
"""The rules of `layout` as nf_tables' bytecode. Pure.

Operands of one look-up stand in consecutive words, each in words of its own, as the kernel concatenates them.
"""

import sys
from collections.abc import Iterable, Sequence

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.expressions import DROP as DROP_VERDICT
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
    set_meta,
    update,
    verdict,
    vmap,
)
from svcproxy.dataplane.nftables.layout import Load, Operand, Random, Rule, Statement
from svcproxy.dataplane.nftables.ways import WAYS
from svcproxy.model.meta import Family

Bytecode = tuple[Expression, ...]
"""One rule of the kernel's."""

TCP = 6
IPS_DST_NAT = 1 << 5
RTN_LOCAL = 2
IFNAMSIZ = 16

_ADDRESS_OCTETS = {Family.IPV4: 4, Family.IPV6: 16}
_SOURCE_OFFSET = {Family.IPV4: 12, Family.IPV6: 8}
_DESTINATION_OFFSET = {Family.IPV4: 16, Family.IPV6: 24}
_ORIGINAL_DESTINATION = {Family.IPV4: Ct.DST_IP, Family.IPV6: Ct.DST_IP6}


def bytecode(rules: Iterable[Rule], family: Family) -> tuple[Bytecode, ...]:
    """The kernel's rules for some of the layout's: as many, but two for a refusal."""
    return tuple(translated for rule in rules for translated in _translate(rule, family))


def host_order(number: int) -> bytes:
    """A mark, a flag: what registers hold in the machine's own order."""
    return number.to_bytes(4, sys.byteorder)


def _translate(rule: Rule, family: Family) -> tuple[Bytecode, ...]:
    conditions, last = rule[:-1], rule[-1]
    common = tuple(expression for statement in conditions for expression in _statement(statement, family))
    if isinstance(last, layout.Refuse):
        # Over IPv6 a client takes port unreachable only for its second SYN, a second later.
        is_tcp = (meta(Meta.L4PROTO, to=0), compare(bytes((TCP,)), word=0))
        return (*common, *is_tcp, reset()), (*common, port_unreachable(family))
    return ((*common, *_statement(last, family)),)


def _statement(statement: Statement, family: Family) -> Sequence[Expression]:  # noqa: C901
    match statement:
        case layout.Transport():
            return ()
        case layout.InSet(name, operands, present):
            return (*_load(operands, family), lookup(name, word=0, inverted=not present))
        case layout.LocalSource():
            return fib_type(Fib.SADDR, to=0), compare(host_order(RTN_LOCAL), word=0)
        case layout.FromInterface(name, present):
            op = Compare.EQ if present else Compare.NEQ
            return meta(Meta.IIFNAME, to=0), compare(_interface(name), word=0, op=op)
        case layout.Translated():
            return (
                ct(Ct.STATUS, to=0),
                bitwise(host_order(IPS_DST_NAT), host_order(0), word=0, to=0),
                compare(host_order(0), word=0, op=Compare.NEQ),
            )
        case layout.VerdictOf(name, operands):
            number = lookup_to(name, word=0, to=0), set_meta(Meta.PRIORITY, word=0), meta(Meta.PRIORITY, to=0)
            return (*_load(operands, family), *number, vmap(WAYS[name], word=0))
        case layout.SetMark(random):
            return numgen_random(random.size, to=0, offset=random.base), set_meta(Meta.MARK, word=0)
        case layout.SetMarkFrom(name, operands):
            return (*_load(operands, family), lookup_to(name, word=0, to=0), set_meta(Meta.MARK, word=0))
        case layout.OrMark(bits):
            mask, xor = host_order(~bits & 0xFFFFFFFF), host_order(bits)
            return meta(Meta.MARK, to=0), bitwise(mask, xor, word=0, to=0), set_meta(Meta.MARK, word=0)
        case layout.Remember(name, operands, timeout):
            end = _words(operands, family)
            mark = meta(Meta.MARK, to=end)
            return (*_load(operands, family), mark, update(name, key=0, word=end, timeout_ms=timeout * 1000))
        case layout.SendTo(name, operands, clear_mark):
            port = _ADDRESS_OCTETS[family] // 4
            sent = (*_load(operands, family), lookup_to(name, word=0, to=0))
            zero = immediate(host_order(0), to=_UNUSED_WORD), set_meta(Meta.PRIORITY, word=_UNUSED_WORD)
            unmark = (set_meta(Meta.MARK, word=_UNUSED_WORD),) if clear_mark else ()
            return (*sent, *zero, *unmark, dnat(family, address=0, port=port))
        case layout.Masquerade():
            return (masquerade(flags=FULLY_RANDOM_PORTS),)
        case layout.GoTo(chain):
            return (verdict(goto(chain)),)
        case layout.Jump(chain):
            return (verdict(jump(chain)),)
        case layout.Discard():
            return (verdict(DROP_VERDICT),)
        case layout.Refuse():
            raise ValueError("a refusal ends its rule")


_UNUSED_WORD = 12
"""Behind an address and a port."""


def _load(operands: Iterable[Operand], family: Family) -> Sequence[Expression]:
    loads: list[Expression] = []
    word = 0
    for operand in operands:
        loads += _operand(operand, family, word)
        word += _words((operand,), family)
    return loads


def _words(operands: Iterable[Operand], family: Family) -> int:
    return sum(_ADDRESS_OCTETS[family] // 4 if operand in _ADDRESSES else 1 for operand in operands)


_ADDRESSES = frozenset((Load.DADDR, Load.SADDR, Load.ORIGINAL_DADDR))


def _operand(operand: Operand, family: Family, word: int) -> Sequence[Expression]:
    octets = _ADDRESS_OCTETS[family]
    match operand:
        case Random(size, base):
            return (numgen_random(size, to=word, offset=base),)
        case Load.DADDR:
            return (payload(Base.NETWORK, _DESTINATION_OFFSET[family], octets, to=word),)
        case Load.SADDR:
            return (payload(Base.NETWORK, _SOURCE_OFFSET[family], octets, to=word),)
        case Load.PROTOCOL:
            return (meta(Meta.L4PROTO, to=word),)
        case Load.DPORT:
            return (payload(Base.TRANSPORT, 2, 2, to=word),)
        case Load.MARK:
            return (meta(Meta.MARK, to=word),)
        case Load.SERVICE_PORT:
            mask = host_order(layout.PORT_MASK)
            return meta(Meta.MARK, to=word), bitwise(mask, host_order(0), word=word, to=word)
        case Load.SERVICE_PORT_AGAIN:
            mask, xor = host_order(layout.PORT_MASK), host_order(layout.LOCAL_BIT)
            return meta(Meta.MARK, to=word), bitwise(mask, xor, word=word, to=word)
        case Load.ORIGINAL_DADDR:
            return (ct(_ORIGINAL_DESTINATION[family], to=word, direction=Direction.ORIGINAL),)
        case Load.ORIGINAL_DPORT:
            return (ct(Ct.PROTO_DST, to=word, direction=Direction.ORIGINAL),)


def _interface(name: str) -> bytes:
    """What `iifname` is compared with: all of it or, for a prefix, as far as that goes."""
    return name[:-1].encode() if name.endswith("*") else name.encode().ljust(IFNAMSIZ, b"\0")
