# SPDX-License-Identifier: Apache-2.0
"""Tables that keep traffic to a DNS server on this node out of connection tracking, and so out of every DNAT. Pure.

One table per family that has addresses. What is sent to one of them is let be as long as the address is local, so that
with the address the rules lose their effect, whoever is alive. The sets are two: queries can be given back to whoever
else serves the address while replies to earlier ones still leave.

    chain prerouting, output:  daddr . protocol . dport @queries   fib daddr type local   notrack
    chain output:              saddr . protocol . sport @replies   fib saddr type local   notrack
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.answers import ObjectState, StoredElement
from svcproxy.dataplane.nftables.bytecode import RTN_LOCAL, host_order
from svcproxy.dataplane.nftables.expressions import (
    Base,
    Expression,
    Fib,
    Meta,
    compare,
    fib_type,
    lookup,
    meta,
    notrack,
    payload,
)
from svcproxy.dataplane.nftables.messages import Attachment, DataType, Element, Hook, Request, Set, Table, TableFlag
from svcproxy.model.meta import Family, Protocol, family_of

TABLE: Final = "svcproxy-dns"
"""Its name in the families ip and ip6."""
COMMENT: Final = "svcproxy dns schema 1"
QUERIES: Final = "queries"
REPLIES: Final = "replies"
RAW_PRIORITY: Final = -300
"""Before connection tracking (-200)."""

TABLES: Final = {family: Table(family, TABLE) for family in Family}

_ADDRESS_TYPES: Final = {Family.IPV4: nft.IPV4_ADDR, Family.IPV6: nft.IPV6_ADDR}
_SOURCE_OFFSET: Final = {Family.IPV4: 12, Family.IPV6: 8}
_DESTINATION_OFFSET: Final = {Family.IPV4: 16, Family.IPV6: 24}
_PROTOCOLS: Final = {Protocol.TCP: 6, Protocol.UDP: 17}
_ACCEPT: Final = 1
_RULES: Final = {"prerouting": 1, "output": 2}
"""How many each chain has."""


def replace(addresses: Iterable[str], port: int) -> tuple[Request, ...]:
    """One batch that puts the tables for these addresses in the place of those there are."""
    by_family: dict[Family, list[str]] = {}
    for address in addresses:
        by_family.setdefault(family_of(address), []).append(address)
    return tuple(
        request for family in Family for request in (*remove(family), *_create(family, by_family.get(family, ()), port))
    )


def remove(family: Family) -> tuple[Request, ...]:
    """Remove the table of a family, whether it is there or not."""
    return nft.new_table(TABLES[family]), nft.delete_table(TABLES[family])


def give_queries_back(families: Iterable[Family]) -> tuple[Request, ...]:
    """Let new queries go wherever they would without the tables; replies leave as before."""
    return tuple(nft.flush_set(TABLES[family], QUERIES) for family in families)


def intact(rules: Sequence[ObjectState], queries: Sequence[StoredElement] | None, expected: Iterable[bytes]) -> bool:
    """Whether the table of a family is as it was made, as far as rules can be counted, or absent as it should be.

    `expected`: see `keys`. `queries`: None if there is no such set.
    """
    wanted = set(expected)
    if not wanted:
        return not rules and queries is None
    counted = Counter(each.name for each in rules)
    return counted == _RULES and queries is not None and {each.element.key for each in queries} == wanted


def keys(addresses: Iterable[str], port: int) -> Iterator[bytes]:
    """The keys of an address in both sets."""
    for address in addresses:
        for number in _PROTOCOLS.values():
            yield nft.concatenation(ip_address(address).packed, bytes((number,)), port.to_bytes(2))


def address_of(key: bytes) -> str:
    """The address that a key of either set is about. Raises ValueError if it is no such key."""
    return str(ip_address(key[:-8]))


def _create(family: Family, addresses: Sequence[str], port: int) -> Iterator[Request]:
    if not addresses:
        return
    table = TABLES[family]
    yield nft.new_table(table, TableFlag.NONE, COMMENT)
    key: tuple[DataType, ...] = (_ADDRESS_TYPES[family], nft.INET_PROTO, nft.INET_SERVICE)
    for number, name in enumerate((QUERIES, REPLIES), 1):
        yield nft.new_set(table, Set(name, key, id=number))
        yield from nft.new_elements(table, name, map(Element, keys(addresses, port)))
    for hook in (Hook.PREROUTING, Hook.OUTPUT):
        yield nft.new_chain(table, hook.name.lower(), Attachment("filter", hook, RAW_PRIORITY, _ACCEPT))
        yield nft.new_rule(table, hook.name.lower(), _let_be(family, QUERIES, Fib.DADDR))
    yield nft.new_rule(table, "output", _let_be(family, REPLIES, Fib.SADDR))


def _let_be(family: Family, name: str, side: Fib) -> tuple[Expression, ...]:
    """Notrack what has a key of the set on this side, while its address is local."""
    octets = _ADDRESS_TYPES[family].octets
    is_source = side is Fib.SADDR
    address_at = (_SOURCE_OFFSET if is_source else _DESTINATION_OFFSET)[family]
    return (
        payload(Base.NETWORK, address_at, octets, to=0),
        meta(Meta.L4PROTO, to=octets // 4),
        payload(Base.TRANSPORT, 0 if is_source else 2, 2, to=octets // 4 + 1),
        lookup(name, word=0),
        fib_type(side, to=0),
        compare(host_order(RTN_LOCAL), word=0),
        notrack(),
    )
