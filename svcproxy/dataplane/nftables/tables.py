# SPDX-License-Identifier: Apache-2.0
"""The tables of the layout as requests: what is there whatever the frontends are. Pure."""

import re
from collections.abc import Iterable, Iterator

from svcproxy.dataplane.nftables import messages as nft
from svcproxy.dataplane.nftables import ways
from svcproxy.dataplane.nftables.bytecode import bytecode
from svcproxy.dataplane.nftables.expressions import counter
from svcproxy.dataplane.nftables.layout import (
    HOOKS,
    SCHEMA,
    SETS,
    TABLE,
    FieldType,
    Hook,
    Surroundings,
    rules_of,
    ruleset,
)
from svcproxy.dataplane.nftables.messages import DataType, Request, SetFlag, Table, TableFlag
from svcproxy.dataplane.nftables.operations import BackendChain, FixedChain, SetName
from svcproxy.model.meta import Family

TABLES = {family: Table(family, TABLE) for family in Family}
COMMENT = f"svcproxy schema {SCHEMA}"
"""Of the tables: by it another version knows what it finds."""

_TYPES = {
    FieldType.PROTOCOL: nft.INET_PROTO,
    FieldType.PORT: nft.INET_SERVICE,
    FieldType.MARK: nft.MARK,
}
_ACCEPT = 1
"""NF_ACCEPT."""
_ADDRESSES = {Family.IPV4: nft.IPV4_ADDR, Family.IPV6: nft.IPV6_ADDR}
_schema = re.compile(r"svcproxy schema ([0-9]{1,9})").fullmatch


def schema_of(comment: str) -> int | None:
    """The schema of a table with that comment; None if it does not say."""
    matched = _schema(comment)
    return int(matched[1]) if matched is not None else None


def create(family: Family, flags: TableFlag) -> Iterator[Request]:
    """Make a table with its sets and chains. All of it may be there already, if it is the same."""
    table = TABLES[family]
    yield nft.new_table(table, flags, COMMENT)
    for number, name in enumerate(SETS, 1):
        yield nft.new_set(table, described(family, name, number))
    for made in ways.maps(len(SETS) + 1):
        yield nft.new_set(table, made)
    for chain in FixedChain:
        hook = HOOKS.get(chain)
        yield nft.new_chain(table, chain.value, attachment(hook) if hook is not None else None)


def rules(family: Family, surroundings: Surroundings) -> Iterator[Request]:
    """Give the constant chains these rules in place of those they have: in one batch, no packet meets neither."""
    table = TABLES[family]
    for chain, chain_rules in ruleset(surroundings, family).items():
        yield nft.flush_chain(table, chain.value)
        for each in bytecode(chain_rules, family):
            yield nft.new_rule(table, chain.value, each)
    yield from ways.fixed(table)


def backend_chain(family: Family, chain: BackendChain) -> Iterator[Request]:
    """Make a backend chain and the ways to it, or give one that is there its rules anew."""
    table = TABLES[family]
    yield nft.new_chain(table, chain.name)
    yield nft.flush_chain(table, chain.name)
    for each in bytecode(rules_of(chain), family):
        yield nft.new_rule(table, chain.name, each)
    yield from ways.to(table, chain)


def attachment(hook: Hook) -> nft.Attachment:
    """Where a base chain hangs, in the kernel's terms."""
    return nft.Attachment("nat", nft.Hook[hook.name.upper()], hook.priority, _ACCEPT)


def described(family: Family, name: SetName, number: int) -> nft.Set:
    """A set in the kernel's terms. `number` is its own in a batch."""
    spec = SETS[name]
    flags = SetFlag.INTERVAL if spec.interval else SetFlag.NONE
    if spec.dynamic_size is not None:
        flags |= SetFlag.TIMEOUT | SetFlag.DYNAMIC
    return nft.Set(
        name.value,
        _types(family, spec.key),
        (nft.CLASSID,) if spec.verdicts else _types(family, spec.data),
        flags,
        size=spec.dynamic_size or 0,
        expression=counter() if spec.counter else None,
        id=number,
    )


def _types(family: Family, fields: Iterable[FieldType]) -> tuple[DataType, ...]:
    return tuple(_TYPES.get(field, _ADDRESSES[family]) for field in fields)
