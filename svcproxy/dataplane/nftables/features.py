# SPDX-License-Identifier: Apache-2.0
"""What the layout needs of a kernel, each as the few sets and rules of it that use it. Pure.

No packet runs through the rules: the jumps from the base chains, without which the kernel would not check what is
allowed on a hook, ask for two marks at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from svcproxy.dataplane.nftables import layout, tables, ways
from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables.bytecode import Bytecode, bytecode, host_order
from svcproxy.dataplane.nftables.elements import encode
from svcproxy.dataplane.nftables.expressions import Meta, compare, jump, meta, verdict
from svcproxy.dataplane.nftables.layout import DESTINATION, HOOKS, ORIGINAL_DESTINATION, Load, Rule, rules_of
from svcproxy.dataplane.nftables.messages import Request, Table
from svcproxy.dataplane.nftables.operations import BackendChain, Data, FixedChain, Form, Goto, Key, SetName
from svcproxy.dataplane.nftables.ways import WAYS
from svcproxy.frontends.keys import Scope
from svcproxy.model.meta import Family, Protocol

_DESTINATION: Final = DESTINATION[Form.ADDRESS]
_IN, _OUT = (FixedChain.PREROUTING, FixedChain.OUTPUT), (FixedChain.POSTROUTING,)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a kernel may lack, for each family."""

    name: str
    purpose: str
    sets: tuple[SetName, ...] = ()
    rules: tuple[Rule, ...] = ()
    at: tuple[FixedChain, ...] = _IN
    """The base chains that lead to the rules."""
    element: tuple[Key, Data] | None = None
    """One for the first of the sets, in which ADDRESS and PREFIX stand for one of the family."""


ADDRESS, PREFIX = "ADDRESS", "PREFIX"
_STANDS_FOR: Final = {
    Family.IPV4: {ADDRESS: "192.0.2.1", PREFIX: "192.0.2.0/24"},
    Family.IPV6: {ADDRESS: "2001:db8::1", PREFIX: "2001:db8::/32"},
}

NAT: Final = Feature("nat", "NAT chains at prerouting, output and postrouting")
"""The one that all others need."""
FEATURES: Final = (
    NAT,
    Feature("reject", "refusals in NAT chains", rules=((layout.Refuse(),),)),
    Feature(
        "verdict-map",
        "verdicts by address, protocol and port, by a number that is counted for each",
        (SetName.CLASS,),
        ((layout.Transport(), layout.VerdictOf(SetName.CLASS, _DESTINATION)),),
        element=((ADDRESS, Protocol.TCP, 80), Goto(FixedChain.REJECT)),
    ),
    Feature(
        "backend-map",
        "destinations by a map that a random number is part of the key of",
        (SetName.EP,),
        rules_of(BackendChain(Form.ADDRESS, Scope.CLUSTER, 3)),
        element=((ADDRESS, Protocol.TCP, 80, 0), (ADDRESS, 8080)),
    ),
    Feature(
        "affinity",
        "clients remembered with their backend, for a time",
        (SetName.PICK, SetName.AFF),
        rules_of(BackendChain(Form.ADDRESS, Scope.LOCAL, 3, affinity_timeout=10800)),
        element=((ADDRESS, Protocol.TCP, 80, 0), (layout.TAG_BIT,)),
    ),
    Feature("local-source", "sources that are addresses of this node", rules=((layout.LocalSource(),),)),
    Feature(
        "ranges",
        "ranges of addresses",
        (SetName.SVC_CIDR,),
        ((layout.InSet(SetName.SVC_CIDR, (Load.DADDR,)), layout.Discard()),),
        element=((PREFIX,), None),
    ),
    Feature(
        "concatenated-ranges",
        "ranges of sources for each address, protocol and port",
        (SetName.SRC_OK,),
        ((layout.InSet(SetName.SRC_OK, (*_DESTINATION, Load.SADDR), present=False), layout.Discard()),),
        element=((ADDRESS, Protocol.TCP, 80, PREFIX), None),
    ),
    Feature(
        "original-tuple",
        "what a connection was addressed to before its destination was rewritten",
        (SetName.MASQ,),
        ((layout.Translated(), layout.InSet(SetName.MASQ, ORIGINAL_DESTINATION[Form.ADDRESS])),),
        at=_OUT,
    ),
    Feature("masquerade", "sources rewritten, with random ports", rules=((layout.Masquerade(),),), at=_OUT),
)
"""In an order in which each may use what those before it made."""


def requests(feature: Feature, table: Table) -> list[Request]:
    """What uses the feature, in a table that has what the features before it made."""
    if feature is NAT:
        return [nft.new_chain(table, chain.value, tables.attachment(hook)) for chain, hook in HOOKS.items()]
    made = [
        nft.new_set(table, tables.described(table.family, name, number)) for number, name in enumerate(feature.sets, 1)
    ]
    if feature.element is not None:
        key, data = feature.element
        encoded = encode(
            feature.sets[0], _filled(key, table), _filled(data, table) if isinstance(data, tuple) else data
        )
        made += nft.new_elements(table, feature.sets[0].value, encoded)
        if isinstance(data, Goto):
            way = WAYS[feature.sets[0]]
            made.append(nft.new_set(table, ways.described(way, len(feature.sets) + 1)))
            made += nft.new_elements(table, way, (ways.way(data),))
    return [*made, *unreached(table, feature.name, bytecode(feature.rules, table.family), feature.at)]


def unreached(table: Table, chain: str, rules: Iterable[Bytecode], at: Iterable[FixedChain]) -> list[Request]:
    """A chain with these rules, to which the base chains `at` lead, but no packet."""
    never = (
        meta(Meta.MARK, to=0),
        compare(host_order(1), word=0),
        compare(host_order(2), word=0),
        verdict(jump(chain)),
    )
    return [
        nft.new_chain(table, chain),
        *(nft.new_rule(table, chain, rule) for rule in rules),
        *(nft.new_rule(table, base.value, never) for base in at),
    ]


def _filled(fields: Key, table: Table) -> Key:
    stands_for = _STANDS_FOR[table.family]
    return tuple(stands_for.get(str(each), each) for each in fields)
