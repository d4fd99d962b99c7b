# SPDX-License-Identifier: Apache-2.0
"""The tables themselves: found, claimed or made, and read. Blocks while the kernel works."""

import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svcproxy.dataplane.nftables import tables, ways
from svcproxy.dataplane.nftables.adoption import Contents, Place
from svcproxy.dataplane.nftables.answers import TableState
from svcproxy.dataplane.nftables.elements import decode
from svcproxy.dataplane.nftables.layout import SCHEMA, SETS, Surroundings
from svcproxy.dataplane.nftables.messages import (
    Request,
    TableFlag,
    delete_chain,
    delete_elements,
    delete_table,
    flush_chain,
)
from svcproxy.dataplane.nftables.operations import BackendChain, Data, chain_of
from svcproxy.dataplane.nftables.owner import owner_of
from svcproxy.dataplane.nftables.tables import TABLES
from svcproxy.dataplane.nftables.transaction import Committed, Failure, Kernel, Rejected
from svcproxy.errors import DataplaneLost
from svcproxy.model.meta import Family

log = logging.getLogger(__name__)

OWNED = TableFlag.OWNER | TableFlag.PERSIST
"""Nobody but the process that claimed the table changes it, and it stays when that process is gone."""


CHAINS_PER_BATCH = 100
"""Backend chains whose rules are written anew at once: a quarter of what the smallest send buffer holds."""
_NO_FAULT_OF_THE_TABLE = frozenset((errno.EPERM, errno.ENOMEM, errno.ENOBUFS, errno.EMSGSIZE))


class TableTaken(DataplaneLost):
    """Another live process owns a table."""


@dataclass(frozen=True, slots=True)
class Established:
    """The tables are there, of this schema, with the rules they shall have."""

    chains: frozenset[tuple[Family, BackendChain]]
    """Backend chains that are there."""
    owned: bool
    """Whether nobody else can change any of them."""
    foreign: tuple[tuple[Family, str], ...]
    """Chains that are none of ours."""


def establish(kernel: Kernel, families: Iterable[Family], flags: TableFlag, surroundings: Surroundings) -> Established:
    """Make the tables, or take over those that are there with all that is in them.

    `flags` are for new tables; one without an owner that was not made to be claimed stays so. All rules are written
    anew, those of the constant chains in one batch for each family, those of a backend chain in one, so that no packet
    meets a chain without them. A table of another schema, or in which something has another form, is replaced, in one
    batch. Raises `TableTaken`, before anything is changed, and `DataplaneLost` for whatever else the kernel refuses.
    """
    found = {family: _find(kernel, family) for family in families}
    chains: set[tuple[Family, BackendChain]] = set()
    foreign: list[tuple[Family, str]] = []
    owned = True
    for family, state in found.items():
        kept = _establish_fixed(kernel, family, state, flags, surroundings)
        listed = {each.name: chain_of(each.name) for each in kernel.chains(TABLES[family])}
        foreign += [(family, name) for name, chain in listed.items() if chain is None]
        held = [chain for chain in listed.values() if isinstance(chain, BackendChain)]
        for start in range(0, len(held), CHAINS_PER_BATCH):
            part = held[start : start + CHAINS_PER_BATCH]
            _commit(kernel, family, [each for chain in part for each in tables.backend_chain(family, chain)])
        chains.update((family, chain) for chain in held)
        owned &= TableFlag.OWNER in kept
    return Established(frozenset(chains), owned, tuple(foreign))


def read(kernel: Kernel, families: Iterable[Family]) -> Contents:
    """Every element that the agent keeps. O(table). Raises `DataplaneLost` if a set is gone."""
    held: dict[Place, Data] = {}
    for family in families:
        for name, spec in SETS.items():
            if spec.dynamic_size is not None:
                continue
            stored = kernel.elements(TABLES[family], name.value)
            if stored is None:
                raise DataplaneLost(f"no set {name} in table {family.label} {TABLES[family].name}")
            decoded = decode(family, name, (each.element for each in stored))
            held.update(((family, name, key), data) for key, data in decoded)
    return held


def remove_chains(kernel: Kernel, chains: Sequence[tuple[Family, str]]) -> None:
    """Remove chains that no element leads to. Raises `DataplaneLost`."""
    for family in dict.fromkeys(family for family, _ in chains):
        table, names = TABLES[family], [name for of, name in chains if of is family]
        log.warning("foreign chains are removed", extra={"family": family.label, "chains": ", ".join(names)})
        _commit(
            kernel,
            family,
            [*(flush_chain(table, name) for name in names), *(delete_chain(table, name) for name in names)],
        )


def _find(kernel: Kernel, family: Family) -> TableState | None:
    table = TABLES[family]
    found = next((each for each in kernel.tables(family) if each.table == table), None)
    if found is not None and found.owner not in (0, kernel.port):
        raise TableTaken(f"table {family.label} {table.name} belongs to {owner_of(found.owner)}")
    return found


def _flags(found: TableState | None, wanted: TableFlag) -> TableFlag:
    """What the table can have: only one that was made to outlive its owner can be claimed. None stays dormant."""
    if found is None:
        return wanted
    kept = found.flags & ~TableFlag.DORMANT
    claimable = TableFlag.PERSIST in kept and TableFlag.OWNER in wanted
    return kept | TableFlag.OWNER if claimable else kept


def _establish_fixed(
    kernel: Kernel, family: Family, found: TableState | None, flags: TableFlag, surroundings: Surroundings
) -> TableFlag:
    """The table, its sets and constant chains; returns the flags it has."""
    rules = tuple(tables.rules(family, surroundings))
    kept = _flags(found, flags)
    if found is None or tables.schema_of(found.comment) == SCHEMA:
        requests = (*tables.create(family, kept), *_remove_wrong_ways(kernel, family), *rules)
        outcome = kernel.commit(requests)
        if isinstance(outcome, Committed):
            return kept
        failure = outcome.failures[0]
        cause = _said(requests, failure)
        if found is None or failure.index is None or failure.errno in _NO_FAULT_OF_THE_TABLE:
            raise _lost(family, cause)
    else:
        cause = f"its comment is {found.comment!r}, not {tables.COMMENT!r}"
    log.warning("table is replaced", extra={"family": family.label, "table": TABLES[family].name, "cause": cause})
    _commit(kernel, family, (delete_table(TABLES[family]), *tables.create(family, flags), *rules))
    return flags


def _remove_wrong_ways(kernel: Kernel, family: Family) -> Iterator[Request]:
    """Elements in the way of the right ones."""
    for form, names in ways.OF_FORM.items():
        for name in names:
            stored = kernel.elements(TABLES[family], name, complete=False) or ()
            yield from delete_elements(TABLES[family], name, ways.wrong(form, [each.element for each in stored]))


def _commit(kernel: Kernel, family: Family, requests: Sequence[Request]) -> None:
    outcome = kernel.commit(requests)
    if isinstance(outcome, Rejected):
        raise _lost(family, _said(requests, outcome.failures[0]))


def _said(requests: Sequence[Request], failure: Failure) -> str:
    return str(failure) if failure.index is None else f"{requests[failure.index].kind.name}: {failure}"


def _lost(family: Family, cause: str) -> DataplaneLost:
    return DataplaneLost(f"table {family.label} {TABLES[family].name}: {cause}")
