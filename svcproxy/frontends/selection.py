# SPDX-License-Identifier: Apache-2.0
"""Which endpoints of a Service port this node uses (KEP-1669, KEP-2086, KEP-2433, KEP-4444). Pure.

The rule stands here twice. `select` says it over a list of endpoints, to be read and to be tested against. `choose`
says it over what the endpoints have in common, so that one endpoint of five thousand costs one endpoint: its answer is
a pair of `Selector`s, each of which tells from the *traits* of an endpoint alone whether it is in. As long as the
selectors stay the same, the other endpoints need not be looked at.

Traits are what this node sees of an endpoint, as bits of an `int` below 256, most significant first what decides
between two entries of one address and port.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from svcproxy.frontends.keys import Backend
from svcproxy.frontends.node import NodeView

NOT_TERMINATING: Final = 0x80
READY: Final = 0x40
LOCAL: Final = 0x20
SERVING: Final = 0x10
NODE_HINTED: Final = 0x08
FOR_THIS_NODE: Final = 0x04
ZONE_HINTED: Final = 0x02
FOR_THIS_ZONE: Final = 0x01

ABSENT: Final = 0
"""The traits of no endpoint, and of one that is terminating, not serving, not here and not hinted: neither is ever
selected, so that nothing needs to tell them apart."""

PRECEDENCE_SHIFT: Final = 5
"""`traits >> PRECEDENCE_SHIFT` orders two entries of one address and port: not terminating, then ready, then local."""

_FALLBACK_BITS: Final = NOT_TERMINATING | READY | SERVING


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a Service port as its slice has it, the API's defaults applied."""

    backend: Backend
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str | None = None
    for_nodes: frozenset[str] = frozenset()
    for_zones: frozenset[str] = frozenset()
    slice: str = ""
    trigger: str = ""
    """`last-change-trigger-time` of the slice as `trigger_key` gives it: later is greater."""

    def traits(self, node: NodeView) -> int:
        """The traits as `node` sees them."""
        return (
            (0 if self.terminating else NOT_TERMINATING)
            | (READY if self.ready else 0)
            | (LOCAL if self.node_name == node.name else 0)
            | (SERVING if self.serving else 0)
            | (NODE_HINTED if self.for_nodes else 0)
            | (FOR_THIS_NODE if node.name in self.for_nodes else 0)
            | (ZONE_HINTED if self.for_zones else 0)
            | (FOR_THIS_ZONE if node.zone is not None and node.zone in self.for_zones else 0)
        )


class Selection(NamedTuple):
    """The two sets of a Service port, and whether a usable endpoint exists on any node."""

    cluster: frozenset[Backend]
    local: frozenset[Backend]
    has_any: bool


def deduplicate(candidates: Iterable[Candidate], node: NodeView) -> dict[Backend, Candidate]:
    """One entry per address and port: not terminating, then ready, then local, then the newest trigger time.

    The rest of the traits decides a tie, so that the order of slices never does. Entries still equal are equivalent.
    """
    best: dict[Backend, Candidate] = {}
    for candidate in candidates:
        rival = best.get(candidate.backend)
        if rival is None or _precedence(candidate, node) > _precedence(rival, node):
            best[candidate.backend] = candidate
    return best


def _precedence(candidate: Candidate, node: NodeView) -> tuple[int, str, int]:
    traits = candidate.traits(node)
    return traits >> PRECEDENCE_SHIFT, candidate.trigger, traits


def select(candidates: Iterable[Candidate], node: NodeView, *, uses_cluster: bool, uses_local: bool) -> Selection:
    """The sets of a Service port from scratch; a set that is not used is empty."""
    endpoints = list(deduplicate(candidates, node).values())
    ready = [e for e in endpoints if e.ready]
    fallback = [e for e in endpoints if not e.ready and e.serving and e.terminating]
    cluster: list[Candidate] = []
    local: list[Candidate] = []
    if uses_cluster:
        if ready and all(e.for_nodes for e in ready) and any(node.name in e.for_nodes for e in ready):
            cluster = [e for e in ready if node.name in e.for_nodes]
        elif ready and all(e.for_zones for e in ready) and any(node.zone in e.for_zones for e in ready):
            cluster = [e for e in ready if node.zone in e.for_zones]
        else:
            cluster = ready or fallback
    if uses_local:
        local = [e for e in ready if e.node_name == node.name] or [e for e in fallback if e.node_name == node.name]
    return Selection(
        frozenset(e.backend for e in cluster), frozenset(e.backend for e in local), bool(ready or fallback)
    )


class Selector(NamedTuple):
    """An endpoint is in if `traits & mask == value`."""

    mask: int
    value: int


NOTHING: Final = Selector(0, 1)
ALL_READY: Final = Selector(READY, READY)
READY_FOR_THIS_NODE: Final = Selector(READY | FOR_THIS_NODE, READY | FOR_THIS_NODE)
READY_FOR_THIS_ZONE: Final = Selector(READY | FOR_THIS_ZONE, READY | FOR_THIS_ZONE)
ALL_FALLBACK: Final = Selector(_FALLBACK_BITS, SERVING)
LOCAL_READY: Final = Selector(READY | LOCAL, READY | LOCAL)
LOCAL_FALLBACK: Final = Selector(_FALLBACK_BITS | LOCAL, SERVING | LOCAL)


class Choice(NamedTuple):
    """What is in each set of a Service port, and whether a usable endpoint exists anywhere, and on this node."""

    cluster: Selector
    local: Selector
    has_any: bool
    has_local: bool


UNCHOSEN: Final = Choice(NOTHING, NOTHING, has_any=False, has_local=False)
"""The choice among no endpoints by a Service port that uses no set."""

CHOICE_MEMO = 1024
"""Choices remembered. There are few: they are a function of some twenty bits, most of which hang together."""


def choose(traits_present: Mapping[int, int], uses_cluster: bool, uses_local: bool) -> Choice:
    """The selectors for endpoints of which `traits_present[traits]`, all of them positive, have the same traits."""
    ready_some = fallback_some = 0
    ready_all = 0xFF
    for traits in traits_present:
        if traits & READY:
            ready_some |= traits
            ready_all &= traits
        elif traits & _FALLBACK_BITS == SERVING:
            fallback_some |= traits
    return _choose(ready_some, ready_all, fallback_some, uses_cluster, uses_local)


@lru_cache(maxsize=CHOICE_MEMO)
def _choose(ready_some: int, ready_all: int, fallback_some: int, uses_cluster: bool, uses_local: bool) -> Choice:
    """`*_some`: bits that some endpoint of the class has; `ready_all`: bits that every ready endpoint has."""
    cluster, local = NOTHING, NOTHING
    if uses_cluster:
        if not ready_some:
            cluster = ALL_FALLBACK
        elif ready_all & NODE_HINTED and ready_some & FOR_THIS_NODE:
            cluster = READY_FOR_THIS_NODE
        elif ready_all & ZONE_HINTED and ready_some & FOR_THIS_ZONE:
            cluster = READY_FOR_THIS_ZONE
        else:
            cluster = ALL_READY
    if uses_local:
        local = LOCAL_READY if ready_some & LOCAL else LOCAL_FALLBACK
    return Choice(cluster, local, bool(ready_some or fallback_some), bool((ready_some | fallback_some) & LOCAL))
