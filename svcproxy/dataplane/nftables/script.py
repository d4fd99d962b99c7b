# SPDX-License-Identifier: Apache-2.0
"""The tables as a script for `nft -f`, to read, to compare and to load by hand. Pure.

New connections meet in it what they meet in the tables that the agent programs over netlink. It stays within what nft
1.0.6 can parse, and so differs in form:

- A number that is drawn cannot be part of a key, unless the look-up matches TCP alone: nft adds the comparison unasked.
  The slot is drawn into the packet's mark, with `SLOT_BIT`, so that an unmarked packet has none. The rules of
  postrouting clear the mark; routing and what else comes before it sees it on the first packet of a flow.
- nft aborts over a rule that adds to a map with a key longer than 16 octets: `aff` knows a client by two hashes of its
  IPv6 address. Clients with the same hashes share a backend.
- `reject` is a word of nft's, so that the chain of that name is called `refuse`.
- The tables have no owner, and their comment is not the agent's, which therefore rebuilds them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, assert_never

from svcproxy.dataplane.nftables import layout
from svcproxy.dataplane.nftables.layout import (
    HOOKS,
    LOCAL_BIT,
    PORT_MASK,
    SETS,
    TABLE,
    TAG_BIT,
    FieldType,
    FromInterface,
    InSet,
    Load,
    LocalSource,
    Operand,
    Random,
    Rule,
    SetSpec,
    Statement,
    Surroundings,
    rules_of,
    ruleset,
    surrounding_elements,
)
from svcproxy.dataplane.nftables.operations import (
    SETS_OF,
    AddElement,
    Chain,
    Drop,
    FixedChain,
    Goto,
    Key,
    SetName,
    chain_name,
    frontend_of,
)
from svcproxy.dataplane.nftables.render import Renderer
from svcproxy.frontends.table import FrontendTable, diff
from svcproxy.model.meta import Family

SLOT_BIT: Final = 1 << 29
"""Set in the slots of the script. An id, which may have it too, has `layout.TAG_BIT`."""
COMMENT: Final = "svcproxy render"
"""Of the tables."""

_SLOT_KEYED: Final = frozenset(name for sets in SETS_OF.values() for name in (sets.ep, sets.pick))
_ENTRIES: Final = frozenset(sets.verdict for sets in SETS_OF.values())
_TRANSPORT: Final = "meta l4proto { tcp, udp, sctp }"
_CLIENT_HASHES: Final = " . ".join(f"jhash ip6 saddr mod {(1 << 32) - 1} seed {seed}" for seed in (1, 2))
_AFF_OF_HASHES: Final = "typeof numgen inc mod 2 . numgen inc mod 2 . meta mark : meta mark"
"""A type for two hashes and a mark. `type` cannot name that of a hash, and nft crashes as it lists `typeof jhash`; all
that counts is that `numgen` is of the same type."""

_HEAD: Final = """\
#!/usr/sbin/nft -f
# The Service tables of one node, written by `svcproxy render` for nft 1.0.6.
# {counts}
# Loading it replaces both tables at once. It fails, and changes nothing, while an agent owns them.
"""
_NAMES: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_ADDRESS_TYPES: Final = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}


def script(table: FrontendTable, surroundings: Surroundings, hairpin_cidrs: Iterable[str] = ()) -> str:
    """The whole script, the same for equal arguments; O(table). `table` is only read.

    `hairpin_cidrs`: as for `Renderer`.
    """
    renderer = Renderer(hairpin_cidrs)
    everything = diff(FrontendTable(), table)
    renderer.render(replace(everything, frontends=tuple(sorted(everything.frontends, key=lambda each: str(each.key)))))
    elements: dict[Family, dict[SetName, list[AddElement]]] = {family: {} for family in Family}
    for each in (*surrounding_elements(surroundings), *renderer.elements()):
        elements[each.family].setdefault(each.set, []).append(each)
    chains: dict[Family, list[Chain]] = {family: [] for family in Family}
    for ensured in renderer.chains():
        chains[ensured.family].append(ensured.chain)
    backends = sum(map(len, table.backends.values()))
    counts = f"{len(table.frontends)} frontends, {len(table.backends)} backend sets with {backends} backends"
    lines = [_HEAD.format(counts=counts)]
    lines += [f"# {_printable(f'{key}: {reason}')}\n" for key, reason in sorted(renderer.compromised.items(), key=str)]
    for family in Family:
        lines += _table(table, surroundings, family, elements[family], chains[family])
    return "".join(lines)


def _table(
    table: FrontendTable,
    surroundings: Surroundings,
    family: Family,
    elements: dict[SetName, list[AddElement]],
    chains: list[Chain],
) -> Iterator[str]:
    name = f"table {_NAMES[family]} {TABLE}"
    yield f'\n{name}\ndelete {name}\n{name} {{\n\tcomment "{COMMENT}"\n'
    for set_name, spec in SETS.items():
        yield from _set(table, family, set_name, spec, elements.get(set_name, []))
    for chain in chains:
        assert not isinstance(chain, FixedChain)
        yield from _chain(chain, rules_of(chain), family)
    for fixed, rules in ruleset(surroundings, family).items():
        yield from _chain(fixed, rules, family)
    yield "}\n"


# Sets


def _set(
    table: FrontendTable, family: Family, name: SetName, spec: SetSpec, elements: list[AddElement]
) -> Iterator[str]:
    data = "verdict" if spec.verdicts else _type(spec.data, family)
    yield f"\n\t{'map' if data else 'set'} {name} {{\n"
    if name is SetName.AFF and family is Family.IPV6:
        yield f"\t\t{_AFF_OF_HASHES}\n"
    else:
        yield f"\t\ttype {_type(spec.key, family)}{f' : {data}' if data else ''}\n"
    if spec.dynamic_size is not None:
        yield f"\t\tsize {spec.dynamic_size}\n\t\tflags dynamic,timeout\n"
    if spec.interval:
        yield "\t\tflags interval\n"
    if spec.counter:
        yield "\t\tcounter\n"
    if elements:
        yield "\t\telements = {\n"
        for element in sorted(elements, key=lambda each: each.key):
            yield f"\t\t\t{_element(name, spec, element)},{_owner(table, element)}\n"
        yield "\t\t}\n"
    yield "\t}\n"


def _type(fields: tuple[FieldType, ...], family: Family) -> str:
    return " . ".join(_ADDRESS_TYPES[family] if each in _ADDRESSES else each.value for each in fields)


_ADDRESSES = frozenset({FieldType.ADDRESS, FieldType.PREFIX})


def _element(name: SetName, spec: SetSpec, element: AddElement) -> str:
    key = element.key
    if name in _SLOT_KEYED:
        key = *key[:-1], _slot(int(key[-1]))
    text = _fields(spec.key, key)
    match element.data:
        case Goto(chain):
            return f"{text} : goto {_chain_name(chain)}"
        case Drop():
            return f"{text} : drop"
        case None:
            return text
        case data:
            return f"{text} : {_fields(spec.data, data)}"


def _fields(types: tuple[FieldType, ...], values: Key) -> str:
    return " . ".join([_SPELLED[kind](value) for kind, value in zip(types, values, strict=True)])


_SPELLED: dict[FieldType, Callable[[Any], str]] = {
    FieldType.ADDRESS: str,
    FieldType.PREFIX: str,
    FieldType.PROTOCOL: str.lower,
    FieldType.PORT: str,
    FieldType.MARK: "{:#010x}".format,
}


def _slot(mark: int) -> int:
    """What the script has for a slot; ids stay what they are."""
    return mark if mark & TAG_BIT else mark | SLOT_BIT


def _owner(table: FrontendTable, element: AddElement) -> str:
    """Whose frontend it is, as a comment, where packets first meet it."""
    key = frontend_of(element) if element.set in _ENTRIES else None
    return f"  # {_printable(str(table.frontends[key].service_port))}" if key is not None else ""


def _printable(text: str) -> str:
    """On one line, whatever it holds."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


# Chains


def _chain_name(chain: Chain) -> str:
    return "refuse" if chain is FixedChain.REJECT else chain_name(chain)


def _chain(chain: Chain, rules: tuple[Rule, ...], family: Family) -> Iterator[str]:
    yield f"\n\tchain {_chain_name(chain)} {{\n"
    if isinstance(chain, FixedChain) and chain in HOOKS:
        hook = HOOKS[chain]
        yield f"\t\ttype nat hook {hook.name} priority {hook.priority}; policy accept;\n"
    if chain is FixedChain.POSTROUTING:
        yield f"\t\tct status dnat meta mark & {TAG_BIT | SLOT_BIT:#010x} != 0 meta mark set 0\n"
    for rule in rules:
        for line in _rule(rule, family):
            yield f"\t\t{line}\n"
    yield "\t}\n"


def _rule(rule: Rule, family: Family) -> Iterator[str]:
    """The rule, as two where nft has a statement for each of two kinds of packets."""
    guarded = layout.Transport() in rule
    texts = []
    for statement in rule:
        if not guarded and Load.ORIGINAL_DPORT in _operands(statement):
            texts.append(_TRANSPORT)  # nft asks for it
            guarded = True
        texts.append(_statement(statement, family))
    if rule[-1] == layout.Refuse():
        yield " ".join((*texts[:-1], "meta l4proto tcp reject with tcp reset"))
    yield " ".join(texts)


def _operands(statement: Statement) -> tuple[Operand, ...]:
    match statement:
        case InSet() | layout.VerdictOf() | layout.SetMarkFrom() | layout.Remember() | layout.SendTo():
            return statement.operands
        case _:
            return ()


def _statement(statement: Statement, family: Family) -> str:  # noqa: C901
    match statement:
        case InSet(name, operands, present):
            return f"{_key(operands, family)} {'' if present else '!= '}@{name}"
        case LocalSource():
            return "fib saddr type local"
        case FromInterface(name, present):
            return f'iifname {"" if present else "!= "}"{name}"'
        case layout.Translated():
            return "ct status dnat"
        case layout.Transport():
            return _TRANSPORT
        case layout.VerdictOf(name, operands):
            return f"{_key(operands, family)} vmap @{name}"
        case layout.SetMark(value):
            return f"meta mark set {_drawn(value)}"
        case layout.SetMarkFrom(name, operands):
            return f"meta mark set {_key(operands, family, name)} map @{name}"
        case layout.OrMark(bits):
            return f"meta mark set meta mark | {bits:#010x}"
        case layout.Remember(name, operands, timeout):
            return f"update @{name} {{ {_key(operands, family, name)} timeout {timeout}s : meta mark }}"
        case layout.SendTo(name, operands):
            marks = "".join(f"meta mark set {_drawn(each)} " for each in operands if isinstance(each, Random))
            key = _key(tuple(Load.MARK if isinstance(each, Random) else each for each in operands), family)
            return f"{marks}dnat {_NAMES[family]} to {key} map @{name}"
        case layout.Masquerade():
            return "masquerade fully-random"
        case layout.GoTo(chain):
            return f"goto {_chain_name(chain)}"
        case layout.Jump(chain):
            return f"jump {_chain_name(chain)}"
        case layout.Refuse():
            return f"reject with {'icmp' if family is Family.IPV4 else 'icmpv6'} port-unreachable"
        case layout.Discard():
            return "drop"
        case _:
            assert_never(statement)


def _drawn(random: Random) -> str:
    """A slot, as the elements of the script have it."""
    base = _slot(random.base)
    return f"numgen random mod {random.size} offset {base:#010x}" if random.size > 1 else f"{base:#010x}"


def _key(operands: tuple[Operand, ...], family: Family, name: SetName | None = None) -> str:
    """`name`: the set that the key is of, where that makes a difference."""
    return " . ".join(_operand(each, family, hashed=name is SetName.AFF) for each in operands)


def _operand(operand: Operand, family: Family, *, hashed: bool) -> str:
    ip = _NAMES[family]
    match operand:
        case Load.DADDR:
            return f"{ip} daddr"
        case Load.SADDR if hashed and family is Family.IPV6:
            return _CLIENT_HASHES
        case Load.SADDR:
            return f"{ip} saddr"
        case Load.PROTOCOL:
            return "meta l4proto"
        case Load.DPORT:
            return "th dport"
        case Load.MARK:
            return "meta mark"
        case Load.SERVICE_PORT:
            return f"(meta mark & {PORT_MASK:#010x})"
        case Load.SERVICE_PORT_AGAIN:
            return f"(meta mark & {PORT_MASK:#010x} | {LOCAL_BIT:#010x})"
        case Load.ORIGINAL_DADDR:
            return f"ct original {ip} daddr"
        case Load.ORIGINAL_DPORT:
            return "ct original proto-dst"
        case Random():
            raise AssertionError("a number is drawn into the mark")
        case _:
            assert_never(operand)
