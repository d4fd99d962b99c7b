# SPDX-License-Identifier: Apache-2.0
"""How the maps that hold frontends' verdicts lead to chains: by number. Pure.

The kernel validates a table whenever an element that leads to a chain comes, and walks every element of every such map
for it: milliseconds for ten thousand frontends, and their square where one detour leads to another. So a frontend's
element holds the number of its chain, and a small map of *ways* leads from number to chain: a change of a frontend adds
no verdict, and only a new chain is validated.

Each kind of map has ways of its own, with no way back to a chain that looks them up, which would be a loop.

The number passes through the packet's priority, for nft cannot list a look-up in the result of another. It is 0 again
before the packet goes on: the first packet of a flow loses the priority that its socket gave it.
"""

import sys
from collections.abc import Iterable, Iterator

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.expressions import DROP as DROP_VERDICT
from svcproxy.dataplane.nftables.expressions import Verdict as StoredVerdict
from svcproxy.dataplane.nftables.expressions import goto
from svcproxy.dataplane.nftables.layout import AFFINE_SIZE_BITS, LOCAL_BIT, TAG_BIT, firewall, split
from svcproxy.dataplane.nftables.messages import Element, Request, Set, Table
from svcproxy.dataplane.nftables.operations import (
    DROP,
    SETS_OF,
    BackendChain,
    Drop,
    FixedChain,
    Form,
    Goto,
    Verdict,
    chain_name,
)
from svcproxy.frontends.keys import Scope

NUMBER_OCTETS = 4
_FIXED_BIT = 1 << 29
_FIXED = tuple(FixedChain)
_SIZE_MASK = (1 << AFFINE_SIZE_BITS) - 1

WAYS = {
    name: way
    for form, prefix in ((Form.ADDRESS, ""), (Form.NODE_PORT, "np"))
    for name, way in (
        (SETS_OF[form].verdict, f"{prefix}ways"),
        (SETS_OF[form].admitted, f"{prefix}admittedways"),
        (SETS_OF[form].near, f"{prefix}splitways"),
        (SETS_OF[form].far, f"{prefix}splitways"),
    )
}
"""The map of ways behind each map of verdicts."""

_REFUSALS: tuple[Verdict, ...] = (DROP, Goto(FixedChain.REJECT))
_DETOURS: dict[str, tuple[Verdict, ...]] = {
    WAYS[name]: tuple(Goto(chain(form)) for chain in chains)
    for form, sets in SETS_OF.items()
    for name, chains in ((sets.verdict, (firewall, split)), (sets.admitted, (split,)), (sets.near, ()))
}
OF_FORM = {
    form: tuple(dict.fromkeys(WAYS[name] for name in (sets.verdict, sets.admitted, sets.near)))
    for form, sets in SETS_OF.items()
}
"""The maps of ways to the chains of each form."""


def number_of(verdict: Verdict) -> int:
    """The number of a verdict, 32 bits, the same forever."""
    if isinstance(verdict, Drop):
        return _FIXED_BIT
    chain = verdict.chain
    if isinstance(chain, FixedChain):
        return _FIXED_BIT | _FIXED.index(chain) + 1
    scope = LOCAL_BIT if chain.scope is Scope.LOCAL else 0
    if chain.affinity_timeout is None:
        return scope | chain.size
    return TAG_BIT | scope | chain.affinity_timeout << AFFINE_SIZE_BITS | chain.size - 1


def verdict_of(form: Form, number: int) -> Verdict | None:
    """The verdict of a number; None if it is none of ours."""
    scope, rest = Scope(bool(number & LOCAL_BIT)), number & ~(TAG_BIT | LOCAL_BIT)
    if number & TAG_BIT:
        timeout, size = rest >> AFFINE_SIZE_BITS, (rest & _SIZE_MASK) + 1
        return Goto(BackendChain(form, scope, size, timeout)) if timeout else None
    if not rest & _FIXED_BIT:
        return Goto(BackendChain(form, scope, rest)) if rest else None
    index = rest - _FIXED_BIT - 1
    if index < 0:
        return DROP
    return Goto(_FIXED[index]) if index < len(_FIXED) and scope is Scope.CLUSTER else None


def stored(verdict: Verdict) -> StoredVerdict:
    """The verdict as the kernel has it."""
    return DROP_VERDICT if isinstance(verdict, Drop) else goto(chain_name(verdict.chain))


def maps(first_id: int) -> Iterator[Set]:
    """The maps of ways, numbered from `first_id` on."""
    return (described(name, number) for number, name in enumerate(_DETOURS, first_id))


def described(name: str, number: int) -> Set:
    """One of them."""
    return Set(name, (nft.CLASSID,), (nft.VERDICT,), id=number)


def fixed(table: Table) -> Iterator[Request]:
    """Make the ways to refusals and detours, which may be there."""
    for name, detours in _DETOURS.items():
        yield from nft.new_elements(table, name, map(way, (*_REFUSALS, *detours)))


def to(table: Table, chain: BackendChain) -> Iterator[Request]:
    """Make the ways to a backend chain, which may be there."""
    for name in OF_FORM[chain.form]:
        yield from nft.new_elements(table, name, (way(Goto(chain)),))


def wrong(form: Form, ways: Iterable[Element]) -> list[Element]:
    """Those of a map of ways that lead elsewhere than their number says: others put them there."""
    return [each for each in ways if not _right(form, each)]


def _right(form: Form, found: Element) -> bool:
    verdict = verdict_of(form, int.from_bytes(found.key, sys.byteorder)) if len(found.key) == NUMBER_OCTETS else None
    return verdict is not None and found == way(verdict)


def way(verdict: Verdict) -> Element:
    """The element that leads to a verdict."""
    return Element(number_of(verdict).to_bytes(NUMBER_OCTETS, sys.byteorder), stored(verdict))
