# SPDX-License-Identifier: Apache-2.0
"""The expressions that nf_tables rules are made of, as octets (`linux/netfilter/nf_tables.h`). Performs no I/O.

Each function is one row: the expression's name and its attributes, in the order in which nft 1.0.6 sends them, so that
captures compare octet by octet. Registers are counted in words of four octets, as concatenations need them: a key that
starts in word 0 goes on in word 1 after an IPv4 address and in word 4 after an IPv6 address.

What nft 1.0.6 cannot list must not be built: the result of a map look-up as part of a following key, or as data of a
dynamic update (assertion in its decompiler). It would break every administrator's `nft list ruleset`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from svcproxy.dataplane.nftables.netlink import attribute, nested, text, u32, u64
from svcproxy.model.meta import Family

Expression = NewType("Expression", bytes)
"""An element of NFTA_RULE_EXPRESSIONS, or the expression of a set, without the attribute around it."""

WORDS = 16
"""Words there are."""
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
"""NFPROTO_*: families in nf_tables' numbers."""


class Base(IntEnum):
    """NFT_PAYLOAD_*_HEADER: what an offset counts from."""

    NETWORK = 1
    TRANSPORT = 2


class Meta(IntEnum):
    """NFT_META_*, those used here."""

    PRIORITY = 2
    MARK = 3
    IIF = 4
    OIF = 5
    IIFNAME = 6
    OIFNAME = 7
    L4PROTO = 16


class Ct(IntEnum):
    """NFT_CT_*, those used here."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    MARK = 3
    PROTO_DST = 12
    SRC_IP = 19
    DST_IP = 20
    SRC_IP6 = 21
    DST_IP6 = 22


class Fib(IntEnum):
    """NFTA_FIB_F_*: whose route."""

    SADDR = 0x1
    DADDR = 0x2


class Direction(IntEnum):
    """IP_CT_DIR_*: which tuple of a connection."""

    ORIGINAL = 0
    REPLY = 1


class Compare(IntEnum):
    """NFT_CMP_*."""

    EQ = 0
    NEQ = 1
    LT = 2
    LTE = 3
    GT = 4
    GTE = 5


class Code(IntEnum):
    """Verdicts: NF_* of `linux/netfilter.h` and NFT_*."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5
    CONTINUE = -1
    BREAK = -2
    QUEUE = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a packet."""

    code: Code
    chain: str = ""
    """Where it goes for JUMP and GOTO; empty for the others."""

    def __post_init__(self) -> None:
        if bool(self.chain) != (self.code in (Code.JUMP, Code.GOTO)):
            raise ValueError(f"{self.code.name} with chain {self.chain!r}")


ACCEPT = Verdict(Code.ACCEPT)
DROP = Verdict(Code.DROP)
RETURN = Verdict(Code.RETURN)


def goto(chain: str) -> Verdict:
    """Go on in `chain` and do not come back to this one."""
    return Verdict(Code.GOTO, chain)


def jump(chain: str) -> Verdict:
    """Go on in `chain` and come back when it ends."""
    return Verdict(Code.JUMP, chain)


def payload(base: Base, offset: int, length: int, *, to: int) -> Expression:
    """Load `length` octets of the packet from `offset` into word `to`."""
    return _expression("payload", _register(1, to), u32(2, base), u32(3, offset), u32(4, length))


def meta(key: Meta, *, to: int) -> Expression:
    """Load a property of the packet into word `to`; numbers come in host order."""
    return _expression("meta", u32(2, key), _register(1, to))


def set_meta(key: Meta, *, word: int) -> Expression:
    """Set a property of the packet from `word`."""
    return _expression("meta", u32(2, key), _register(3, word))


def ct(key: Ct, *, to: int, direction: Direction | None = None) -> Expression:
    """Load a property of the connection into word `to`. Addresses and ports need a direction."""
    of = b"" if direction is None else attribute(3, bytes((direction,)))
    return _expression("ct", u32(2, key), _register(1, to), of)


def set_ct(key: Ct, *, word: int) -> Expression:
    """Set a property of the connection from `word`."""
    return _expression("ct", u32(2, key), _register(4, word))


def fib_type(of: Fib, *, to: int) -> Expression:
    """Load the RTN_* type of the route to an address of the packet into word `to`, in host order; 2 is local."""
    return _expression("fib", u32(3, of), u32(2, _FIB_RESULT_ADDRTYPE), _register(1, to))


def compare(value: bytes, *, word: int, op: Compare = Compare.EQ) -> Expression:
    """Go on with the rule only if what starts in `word` compares so to `value`, as far as that is long."""
    return _expression("cmp", _register(1, word), u32(2, op), _value(3, value))


def bitwise(mask: bytes, xor: bytes, *, word: int, to: int) -> Expression:
    """Load `(word & mask) ^ xor` into word `to`. Both have the same length; raises ValueError if not."""
    if len(mask) != len(xor):
        raise ValueError(f"mask of {len(mask)} octets, xor of {len(xor)}")
    lengths = u32(6, _BITWISE_BOOL) + u32(3, len(mask))
    return _expression("bitwise", _register(1, word), _register(2, to), lengths, _value(4, mask), _value(5, xor))


def immediate(value: bytes, *, to: int) -> Expression:
    """Load `value` into word `to`."""
    return _expression("immediate", _register(1, to), _value(2, value))


def verdict(decision: Verdict) -> Expression:
    """End the rule so."""
    return _expression("immediate", u32(1, _VERDICT_REGISTER), verdict_data(2, decision))


def lookup(name: str, *, word: int, set_id: int = 0, inverted: bool = False) -> Expression:
    """Go on with the rule only if the key that starts in `word` is in the set or, `inverted`, if it is not.

    `set_id` is needed for sets without a name of their own, made in the same batch.
    """
    return _expression("lookup", _register(2, word), *_set(1, 4, name, set_id), u32(5, 1) if inverted else b"")


def lookup_to(name: str, *, word: int, to: int, set_id: int = 0) -> Expression:
    """Load what the map holds for the key that starts in `word` into word `to`; go on only if there is something."""
    return _expression("lookup", _register(2, word), _register(3, to), *_set(1, 4, name, set_id))


def vmap(name: str, *, word: int, set_id: int = 0) -> Expression:
    """Take the verdict that the map holds for the key that starts in `word`; go on only if there is none."""
    return _expression("lookup", _register(2, word), u32(3, _VERDICT_REGISTER), *_set(1, 4, name, set_id))


def numgen_random(modulus: int, *, to: int, offset: int = 0) -> Expression:
    """Load a random number of `offset` to `offset + modulus - 1` into word `to`, in host order."""
    return _expression("numgen", _register(1, to), u32(2, modulus), u32(3, _NUMGEN_RANDOM), u32(4, offset))


def dnat(family: Family, *, address: int, port: int) -> Expression:
    """Send the connection to the address and port that start in these words. The protocol stays what it is."""
    return _expression("nat", u32(1, _DNAT), u32(2, NFPROTO[family]), _register(3, address), _register(5, port))


def snat(family: Family, *, address: int) -> Expression:
    """Give the connection the source address that starts in this word."""
    return _expression("nat", u32(1, _SNAT), u32(2, NFPROTO[family]), _register(3, address))


def masquerade(*, flags: int = 0) -> Expression:
    """Give the connection the source address of the interface it leaves by. `flags`: NF_NAT_RANGE_*."""
    return _expression("masq", u32(1, flags) if flags else b"")


def reset() -> Expression:
    """Answer a TCP segment with a reset. In chains of any type, on every hook but postrouting."""
    return _expression("reject", u32(1, _TCP_RESET), attribute(2, b"\0"))


def port_unreachable(family: Family) -> Expression:
    """Answer with ICMP port unreachable. In chains of any type, on every hook but postrouting.

    For UDP and SCTP: TCP over IPv6 may believe it after a second only. The kernel limits how many it sends to one peer.
    """
    return _expression("reject", u32(1, _ICMP_UNREACHABLE), attribute(2, bytes((_PORT_UNREACHABLE[family],))))


def notrack() -> Expression:
    """Leave the packet out of connection tracking, and so out of NAT. In chains before priority -200."""
    return _expression("notrack")


def counter() -> Expression:
    """Count packets and octets."""
    return _expression("counter")


def update(name: str, *, key: int, word: int | None = None, timeout_ms: int = 0, set_id: int = 0) -> Expression:
    """Put the key that starts in word `key` into the set, with what starts in `word` if it is a map.

    A `timeout_ms` of 0 leaves the set's default.

    A key that is there keeps its value, only its time-out starts again; when the set is full the rule ends here.
    """
    mapped = b"" if word is None else _register(5, word)
    timed = u64(6, timeout_ms) if timeout_ms else b""
    return _expression("dynset", _register(4, key), mapped, u32(3, _DYNSET_UPDATE), timed, *_set(1, 2, name, set_id))


RANDOM_PORTS = 0x04
"""NF_NAT_RANGE_PROTO_RANDOM."""
FULLY_RANDOM_PORTS = 0x10
"""NF_NAT_RANGE_PROTO_RANDOM_FULLY."""

_VERDICT_REGISTER = 0
_FIB_RESULT_ADDRTYPE = 3
_NUMGEN_RANDOM = 1
_SNAT, _DNAT = 0, 1
_DYNSET_UPDATE = 1
_BITWISE_BOOL = 0
_ICMP_UNREACHABLE, _TCP_RESET = 0, 1
_PORT_UNREACHABLE = {Family.IPV4: 3, Family.IPV6: 4}
"""Codes: RFC 792, RFC 4443 §3.1."""


def verdict_data(kind: int, decision: Verdict) -> bytes:
    """An attribute that holds a verdict as data."""
    chain = text(2, decision.chain) if decision.chain else b""
    return nested(kind, (nested(2, (u32(1, decision.code & 0xFFFFFFFF), chain)),))


def register(word: int) -> int:
    """The register that starts at `word`: NFT_REG_1 to NFT_REG_4 at each fourth word, else NFT_REG32_*."""
    if not 0 <= word < WORDS:
        raise ValueError(f"there is no word {word}")
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _register(kind: int, word: int) -> bytes:
    return u32(kind, register(word))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, (attribute(1, value),))


def _set(name_kind: int, id_kind: int, name: str, set_id: int) -> tuple[bytes, bytes]:
    return text(name_kind, name), u32(id_kind, set_id) if set_id else b""


def _expression(name: str, *attributes: bytes) -> Expression:
    return Expression(text(1, name) + nested(2, attributes))
