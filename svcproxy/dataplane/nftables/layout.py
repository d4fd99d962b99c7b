# SPDX-License-Identifier: Apache-2.0
"""The tables as data: one per family, with constant sets, constant chains, and a chain per kind and number of backends.

A new flow looks its destination up in `class`; failing that, on an address of this node, in `npclass`. The verdict is a
backend chain, a refusal, or one of two detours: `firewall` admits or drops by source and looks up in `admitted`;
`split` looks up in `near` for pods and the node itself and in `far` for everyone else, where a Local policy binds only
the latter. A backend chain draws a slot and rewrites the destination to what `ep` has for frontend and slot.

An element's verdict is a number in the kernel, which `ways` leads to a chain.

Slots and marks are one number space: see `LOCAL_BIT`, `TAG_BIT`, `PORT_MASK`.

All rules stand in NAT chains, so that packets of established flows meet none. Rules are statements from left to right;
the first that does not match ends the rule. What netlink makes of a statement is the encoder's.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from svcproxy.dataplane.nftables.operations import (
    SETS_OF,
    AddElement,
    BackendChain,
    FixedChain,
    Form,
    SetName,
)
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family, family_of

TABLE: Final = "svcproxy"
"""Its name in the families ip and ip6."""

SCHEMA: Final = 1
"""Version of the layout, kept in the table; another version is rebuilt."""

NAT_PRIORITY: Final = -101
"""prerouting and output: just before kube-proxy and CNIs (-100). The first NAT verdict wins."""
SOURCE_NAT_PRIORITY: Final = 99

TAG_BIT: Final = 1 << 31
"""Set in a backend's id, so that an id is no slot and an unmarked packet has none."""
LOCAL_BIT: Final = 1 << 30
"""Set in the slots, and in the ids in `ep`, of the local backend set: the two sets of a frontend never meet."""
PORT_SHIFT: Final = 15
PORT_IDS: Final = 1 << 15
"""Service ports with affinity that a family has numbers for."""
BACKEND_IDS: Final = 1 << PORT_SHIFT
"""Ids of the backends of one such Service port."""
PORT_MASK: Final = TAG_BIT | (PORT_IDS - 1) << PORT_SHIFT
"""What is left of an id, as `aff` keys it: the Service port."""

AFFINE_SIZE_BITS: Final = 13
"""Of the number of a backend chain with affinity, see `ways`: its size less one. The time-out has those above."""
AFFINITY_TIMEOUT_MAX: Final = (LOCAL_BIT >> AFFINE_SIZE_BITS) - 1
"""Seconds; the API admits 86,400."""

SLOT_BASE: Final = {Scope.CLUSTER: 0, Scope.LOCAL: LOCAL_BIT}
"""The first slot of each backend set."""

AFFINITY_CLIENTS_MAX: Final = 65536
"""Size of `aff`. When it is full, further clients are served without affinity."""


class FieldType(Enum):
    """Types of fields of keys and data."""

    ADDRESS = "ipv4_addr or ipv6_addr"
    PREFIX = "the same, an interval given as CIDR"
    PROTOCOL = "inet_proto"
    PORT = "inet_service"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set or map."""

    key: tuple[FieldType, ...]
    data: tuple[FieldType, ...] = ()
    verdicts: bool = False
    """Its data are verdicts."""
    counter: bool = False
    """Each element counts its look-ups: the new connections of a frontend."""
    dynamic_size: int | None = None
    """Filled by rules, elements expire, at most so many; None if filled by the agent alone."""

    @property
    def interval(self) -> bool:
        """Whether keys are ranges."""
        return FieldType.PREFIX in self.key


_FRONTEND: Final = {
    Form.ADDRESS: (FieldType.ADDRESS, FieldType.PROTOCOL, FieldType.PORT),
    Form.NODE_PORT: (FieldType.PROTOCOL, FieldType.PORT),
}
_BACKEND: Final = (FieldType.ADDRESS, FieldType.PORT)


def _set_specs() -> dict[SetName, SetSpec]:
    specs = {
        SetName.NODE_IPS: SetSpec((FieldType.ADDRESS,)),
        SetName.CLUSTER_IPS: SetSpec((FieldType.ADDRESS,)),
        SetName.HAIRPIN: SetSpec((FieldType.ADDRESS, FieldType.ADDRESS)),
        SetName.SVC_CIDR: SetSpec((FieldType.PREFIX,)),
        SetName.POD_CIDR: SetSpec((FieldType.PREFIX,)),
        SetName.AFF: SetSpec((FieldType.ADDRESS, FieldType.MARK), (FieldType.MARK,), dynamic_size=AFFINITY_CLIENTS_MAX),
    }
    for form, sets in SETS_OF.items():
        frontend = _FRONTEND[form]
        specs[sets.verdict] = SetSpec(frontend, verdicts=True, counter=True)
        for name in (sets.admitted, sets.near, sets.far):
            specs[name] = SetSpec(frontend, verdicts=True)
        specs[sets.ep] = SetSpec((*frontend, FieldType.MARK), _BACKEND)
        specs[sets.pick] = SetSpec((*frontend, FieldType.MARK), (FieldType.MARK,))
        specs[sets.src_ok] = SetSpec((*frontend, FieldType.PREFIX))
        for name in (sets.masq, sets.masq_node):
            specs[name] = SetSpec(frontend)
    return specs


SETS: Final = _set_specs()


class Load(Enum):
    """What a statement reads of the packet."""

    DADDR = auto()
    SADDR = auto()
    PROTOCOL = auto()
    DPORT = auto()
    MARK = auto()
    SERVICE_PORT = auto()
    """The mark and `PORT_MASK`."""
    SERVICE_PORT_AGAIN = auto()
    """The same with `LOCAL_BIT`, which makes it another key for the same Service port."""
    ORIGINAL_DADDR = auto()
    """Of the original tuple of the connection, as the next two: what the client addressed."""
    ORIGINAL_DPORT = auto()


@dataclass(frozen=True, slots=True)
class Random:
    """A number from `base` to `base + size - 1`, evenly, drawn anew for each packet."""

    size: int
    base: int = 0


Operand = Load | Random


@dataclass(frozen=True, slots=True)
class InSet:
    """Match: the operands are, or are not, a key of the set."""

    set: SetName
    operands: tuple[Operand, ...]
    present: bool = True


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Match: the source is an address of this node (`fib saddr type local`)."""


@dataclass(frozen=True, slots=True)
class FromInterface:
    """Match: the packet came in, or did not, through an interface of that name; with `*` at its end, of one like it.

    Packets of this node itself came in through none. In postrouting since Linux 5.7.
    """

    name: str
    present: bool = True


@dataclass(frozen=True, slots=True)
class Translated:
    """Match: the connection's destination was rewritten (`ct status dnat`)."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Match: the protocol is TCP, UDP or SCTP, the ones that ports are read of."""


@dataclass(frozen=True, slots=True)
class VerdictOf:
    """Look the operands up and do what the map says; no match if they are not there."""

    map: SetName
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class SetMark:
    """Set the packet's mark."""

    value: Random


@dataclass(frozen=True, slots=True)
class SetMarkFrom:
    """Set the mark to what the map has; no match if the operands are not there."""

    map: SetName
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class OrMark:
    """Set bits of the mark."""

    bits: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Add the operands to the dynamic map with the mark as data, or refresh them and keep the data they have.

    No match if the map is full.
    """

    map: SetName
    operands: tuple[Operand, ...]
    timeout: int
    """Seconds without refreshment after which the element goes."""


@dataclass(frozen=True, slots=True)
class SendTo:
    """Rewrite the destination to what the map has and end the chain; no match if the operands are not there."""

    map: SetName
    operands: tuple[Operand, ...]
    clear_mark: bool = False
    """Set the mark to 0 first."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Rewrite the source to the address of the egress interface, port fully random."""


@dataclass(frozen=True, slots=True)
class GoTo:
    """Go on in another chain and do not come back."""

    chain: FixedChain


@dataclass(frozen=True, slots=True)
class Jump:
    """Go through another chain and come back, if it has no verdict."""

    chain: FixedChain


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer that the port is unreachable (ICMP, ICMPv6)."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop."""


Statement = (
    InSet
    | LocalSource
    | FromInterface
    | Translated
    | Transport
    | VerdictOf
    | SetMark
    | SetMarkFrom
    | OrMark
    | Remember
    | SendTo
    | Masquerade
    | GoTo
    | Jump
    | Refuse
    | Discard
)
Rule = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain of type nat is attached."""

    name: str
    priority: int


HOOKS: Final = {
    FixedChain.PREROUTING: Hook("prerouting", NAT_PRIORITY),
    FixedChain.OUTPUT: Hook("output", NAT_PRIORITY),
    FixedChain.POSTROUTING: Hook("postrouting", SOURCE_NAT_PRIORITY),
}
"""The base chains; all others are entered by a verdict."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules know of node and cluster besides frontends. Another value is another rule set."""

    pod_cidrs: tuple[str, ...] = ()
    """Sources inside are pods; canonical, both families. Empty: not known by address."""
    pod_interfaces: tuple[str, ...] = ()
    """Packets that come in through these are pods' as well, as `FromInterface` spells them."""
    service_cidrs: tuple[str, ...] = ()
    """Addresses inside that no Service has are met with silence."""
    masquerade_all: bool = False
    """Whether the source is rewritten for every flow to a ClusterIP."""


DESTINATION: Final = {
    Form.ADDRESS: (Load.DADDR, Load.PROTOCOL, Load.DPORT),
    Form.NODE_PORT: (Load.PROTOCOL, Load.DPORT),
}
"""The operands that are a frontend's key, before the destination is rewritten."""
ORIGINAL_DESTINATION: Final = {
    Form.ADDRESS: (Load.ORIGINAL_DADDR, Load.PROTOCOL, Load.ORIGINAL_DPORT),
    Form.NODE_PORT: (Load.PROTOCOL, Load.ORIGINAL_DPORT),
}
"""The same, after."""

_FIREWALLS: Final = {Form.ADDRESS: FixedChain.FIREWALL, Form.NODE_PORT: FixedChain.NP_FIREWALL}
_SPLITS: Final = {Form.ADDRESS: FixedChain.SPLIT, Form.NODE_PORT: FixedChain.NP_SPLIT}


def ruleset(surroundings: Surroundings, family: Family) -> dict[FixedChain, tuple[Rule, ...]]:
    """The rules of the constant chains in the table of one family."""
    chains: dict[FixedChain, tuple[Rule, ...]] = {
        FixedChain.REJECT: ((Refuse(),),),
        FixedChain.DISPATCH: (
            (Transport(), VerdictOf(SetName.CLASS, DESTINATION[Form.ADDRESS])),
            (
                Transport(),
                InSet(SetName.NODE_IPS, (Load.DADDR,)),
                VerdictOf(SetName.NP_CLASS, DESTINATION[Form.NODE_PORT]),
            ),
            (InSet(SetName.CLUSTER_IPS, (Load.DADDR,)), GoTo(FixedChain.REJECT)),
            (InSet(SetName.SVC_CIDR, (Load.DADDR,)), Discard()),
        ),
        FixedChain.PREROUTING: ((Jump(FixedChain.DISPATCH),),),
        FixedChain.OUTPUT: ((Jump(FixedChain.DISPATCH),),),
        FixedChain.POSTROUTING: _postrouting(surroundings, family),
    }
    for form, sets in SETS_OF.items():
        destination = DESTINATION[form]
        chains[_FIREWALLS[form]] = (
            (InSet(sets.src_ok, (*destination, Load.SADDR), present=False), Discard()),
            (VerdictOf(sets.admitted, destination),),
        )
        near = VerdictOf(sets.near, destination)
        chains[_SPLITS[form]] = (
            *((FromInterface(name), near) for name in surroundings.pod_interfaces),
            (InSet(SetName.POD_CIDR, (Load.SADDR,)), near),
            (LocalSource(), near),
            (VerdictOf(sets.far, destination),),
        )
    return chains


def _postrouting(surroundings: Surroundings, family: Family) -> tuple[Rule, ...]:
    """Where the source is rewritten. Where nothing tells what is a pod, nobody is taken for a stranger."""
    rules: list[Rule] = [(Translated(), InSet(SetName.HAIRPIN, (Load.SADDR, Load.DADDR)), Masquerade())]
    on_node = InSet(SetName.NODE_IPS, (Load.ORIGINAL_DADDR,))
    for form, sets in SETS_OF.items():
        ours: Rule = (Translated(),) if form is Form.ADDRESS else (Translated(), on_node)
        original = ORIGINAL_DESTINATION[form]
        rules.append((*ours, InSet(sets.masq, original), Masquerade()))
        rules.append((*ours, InSet(sets.masq_node, original), LocalSource(), Masquerade()))
    to_cluster_ip = (Translated(), InSet(SetName.CLUSTER_IPS, (Load.ORIGINAL_DADDR,)))
    if surroundings.masquerade_all:
        rules.append((*to_cluster_ip, Masquerade()))
    elif no_pod := _no_pod(surroundings, family):
        rules.append((*to_cluster_ip, *no_pod, Masquerade()))
    return tuple(rules)


def _no_pod(surroundings: Surroundings, family: Family) -> Rule:
    """What matches sources that are no pods; empty if nothing tells."""
    elsewhere: Rule = tuple(FromInterface(name, present=False) for name in surroundings.pod_interfaces)
    if any(family_of(cidr) is family for cidr in surroundings.pod_cidrs):
        return (*elsewhere, InSet(SetName.POD_CIDR, (Load.SADDR,), present=False))
    return elsewhere


def firewall(form: Form) -> FixedChain:
    """The chain that checks the source."""
    return _FIREWALLS[form]


def split(form: Form) -> FixedChain:
    """The chain that tells near from far sources."""
    return _SPLITS[form]


def rules_of(chain: BackendChain) -> tuple[Rule, ...]:
    """The rules of a backend chain.

    With affinity: draw a backend's id; remember it for the client, unless the client has one; take the client's; send
    there. The client's backend may be in the other of the two sets only: then the same once more, with a second memory
    of the client's. If that one is not in the set either, or nothing could be remembered, a fresh draw decides.
    Without: draw and send. Whatever a draw misses while slots change, the first slot has.
    """
    sets, destination = SETS_OF[chain.form], DESTINATION[chain.form]
    base = SLOT_BASE[chain.scope]
    first = SendTo(sets.ep, (*destination, Random(1, base)))
    if chain.affinity_timeout is None:
        return ((SendTo(sets.ep, (*destination, Random(chain.size, base))),), (first,))
    marked = (*destination, Load.MARK)
    draw: tuple[Rule, ...] = ((SetMark(Random(chain.size, base)),), (SetMarkFrom(sets.pick, marked),))
    scoped: tuple[Rule, ...] = ((OrMark(LOCAL_BIT),),) if chain.scope is Scope.LOCAL else ()
    send: Rule = (SendTo(sets.ep, marked, clear_mark=True),)
    rules: tuple[Rule, ...] = ()
    for port in (Load.SERVICE_PORT, Load.SERVICE_PORT_AGAIN):
        client = (Load.SADDR, port)
        remember, recall = Remember(SetName.AFF, client, chain.affinity_timeout), SetMarkFrom(SetName.AFF, client)
        rules += (*draw, (remember,), (recall,), *scoped, send)
    return (*rules, *draw, *scoped, send)


def surrounding_elements(surroundings: Surroundings) -> tuple[AddElement, ...]:
    """The elements that come with the rules, sorted. CIDRs of one set must not overlap."""
    named = ((SetName.POD_CIDR, surroundings.pod_cidrs), (SetName.SVC_CIDR, surroundings.service_cidrs))
    return tuple(AddElement(family_of(cidr), name, (cidr,)) for name, cidrs in named for cidr in sorted(cidrs))
